"""Agreement of units and phones: known cases, and scikit-learn on random ones."""

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from mmspeech.errors import BadItem
from mmspeech.scoring import pnmi


def agreement(units, phones) -> pnmi.Agreement:
    counts = pnmi.JointCounts()
    counts.add(np.asarray(units), list(phones))
    return counts.agreement()


def test_units_that_are_phones_agree_fully():
    """One unit per phone, whatever its number: all measures are 1."""
    found = agreement([5, 5, 0, 2, 2, 2], "aabccc")
    assert (found.pnmi, found.phone_purity, found.cluster_purity) == pytest.approx((1, 1, 1))
    assert (found.frames, found.phones, found.units) == (6, 3, 3)


def test_units_that_know_nothing_of_phones_agree_not():
    """Independent: no information; purity is the share of the most frequent one."""
    found = agreement([0, 1, 0, 1, 0, 1, 0, 1], "aabbaaaa")
    assert found.pnmi == pytest.approx(0, abs=1e-12)
    assert (found.phone_purity, found.cluster_purity) == pytest.approx((0.75, 0.5))


def test_finer_units_keep_information_and_lose_cluster_purity():
    """Each phone split over two units: PNMI and phone purity 1, cluster purity 1/2."""
    found = agreement([0, 1, 2, 3], "aabb")
    assert (found.pnmi, found.phone_purity, found.cluster_purity) == pytest.approx((1, 1, 0.5))


def test_counts_of_many_cuts_equal_one_count():
    """Streaming changes nothing, and PNMI is I(phone; unit) / H(phone) as scikit-learn has it."""
    rng = np.random.default_rng(0)
    phones = rng.integers(0, 5, 600)
    units = np.where(rng.random(600) < 0.5, phones * 2, rng.integers(0, 12, 600))
    names = [f"p{phone}" for phone in phones]
    counts = pnmi.JointCounts()
    for start in range(0, 600, 7):
        counts.add(units[start : start + 7], names[start : start + 7])
    assert counts.agreement() == agreement(units, names)
    expected = mutual_info_score(phones, units) / mutual_info_score(phones, phones)
    assert counts.agreement().pnmi == pytest.approx(expected)


def test_phone_of_a_frame_is_the_one_at_its_centre():
    """At 25 Hz centres lie at 0.02, 0.06, ...; gaps and what lies outside give none."""
    intervals = [(-0.5, 0.05, "a"), (0.05, 0.10, "b"), (0.15, 9.0, "c")]
    assert pnmi.phones_of_frames(intervals, 5, 25) == ["a", "b", None, None, "c"]


def test_frames_without_phone_are_left_out_and_counted():
    """They are neither a phone of their own nor lost in silence."""
    found = agreement([0, 0, 1, 1], ["a", None, "b", None])
    assert (found.frames, found.frames_without_phone, found.pnmi) == (2, 2, pytest.approx(1))
    with pytest.raises(BadItem, match="no frame"):
        agreement([0], [None])
    with pytest.raises(BadItem, match="2 units, but 1 phones"):
        agreement([0, 1], ["a"])
