"""Modality dropout: the table's shares, exactly, for any table and any mixture of items; nobody is left without."""

import itertools

import numpy as np
import pytest
import torch

from mmspeech import seeds
from mmspeech.batch import Batch
from mmspeech.errors import UserError
from mmspeech.finetuning.tuning import TuningConfig, draw_kept
from mmspeech.models.presence import check_shares, draw_presence

# Table 6 of the u-HuBERT paper, and tables over three streams.
TABLES = [
    {"audio+video": 1.0},
    {"audio+video": 0.70, "audio": 0.15, "video": 0.15},
    {"audio+video": 0.50, "audio": 0.25, "video": 0.25},
    {"audio+video": 0.50, "audio": 0.15, "video": 0.35},
    {"audio+video": 1.0, "audio": 0.0, "video": 0.0},
    {"audio+video+emg": 0.4, "audio+emg": 0.3, "video": 0.2, "emg": 0.1},
    {"audio+video+emg": 0.1, "audio": 0.3, "video": 0.3, "emg": 0.3},
    {"audio": 1.0},
]
STREAMS = ("audio", "video", "emg")
KINDS = [kind for size in (1, 2, 3) for kind in itertools.combinations(STREAMS, size)]


def batch_of(kinds):
    """Items that have the streams named; every stream is in the batch, if some item has it."""
    lengths = {name: torch.tensor([10 * (name in kind) for kind in kinds]) for name in STREAMS}
    lengths = {name: own for name, own in lengths.items() if own.any()}
    streams = {name: torch.zeros(len(kinds), 10, 1) for name in lengths}
    return Batch(ids=[f"cut{i}" for i in range(len(kinds))], streams=streams, lengths=lengths, passes=[0] * len(kinds))


def kept_by(batch, table, **options):
    present = draw_presence(batch, table, seed=1, **options)
    rows = zip(*(present[name].tolist() for name in present), strict=True)
    return [frozenset(name for name, keeps in zip(present, row, strict=True) if keeps) for row in rows]


def expected(kind, table):
    """What an item of this kind keeps, with its probability: the table, given that something is left."""
    named = {name for subset in table for name in subset.split("+")}
    free = frozenset(kind) - named
    outcomes = {}
    for subset, share in table.items():
        if left := frozenset(subset.split("+")) & set(kind):
            outcomes[left | free] = outcomes.get(left | free, 0.0) + share
    total = sum(outcomes.values())
    return {left: share / total for left, share in outcomes.items() if share} if total else {frozenset(kind): 1.0}


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_every_kind_of_item_keeps_each_subset_as_often_as_the_table_says(table, monkeypatch):
    """Exactly: with draws that stand evenly over [0, 1), 1,000 per kind, counts are the shares times 1,000."""
    even = (np.arange(1000) + 0.5)[:, None] / 1000
    monkeypatch.setattr(seeds, "uniforms", lambda keys, count: np.tile(even, (len(keys) // 1000, 1)))
    kept = kept_by(batch_of([kind for kind in KINDS for _ in range(1000)]), table)
    for k, kind in enumerate(KINDS):
        own = kept[1000 * k : 1000 * (k + 1)]
        assert all(left and left <= set(kind) for left in own)
        shares = expected(kind, table)
        assert set(own) == set(shares)
        for left, share in shares.items():
            assert abs(own.count(left) - 1000 * share) <= 2


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_drawn_shares_are_the_tables(table):
    """With the real draws, 4,000 complete items: within four standard deviations."""
    kept = kept_by(batch_of([STREAMS] * 4000), table)
    for left, share in expected(STREAMS, table).items():
        assert abs(kept.count(left) - 4000 * share) <= 4 * np.sqrt(4000 * share * (1 - share)) + 1e-9


@pytest.mark.parametrize("table", TABLES, ids=str)
@pytest.mark.parametrize("update", [None, 0, 1, 2])
def test_no_item_is_left_without_a_stream_in_any_mixture(table, update):
    """Whatever is in the batch, also drawn once for all of it; and an item keeps the same alone and in company."""
    kinds = KINDS * 20
    kept = kept_by(batch_of(kinds), table, update=update)
    assert all(left and left <= set(kind) for left, kind in zip(kept, kinds, strict=True))
    sound = [kind for kind in kinds if kind == ("audio",)]
    assert kept_by(batch_of(sound), table, update=update) == [frozenset({"audio"})] * len(sound)


def test_an_item_keeps_the_same_in_whatever_batch_it_is():
    """The draw follows from seed, pass and id; that nobody beside it has lips changes nothing."""
    table = {"audio+video+emg": 0.4, "audio": 0.3, "video": 0.3}
    kinds = [("audio", "video"), ("audio",), ("audio", "video", "emg")] * 10
    whole = kept_by(batch_of(kinds), table)
    for i, kind in enumerate(kinds):
        alone = batch_of([kind])
        alone.ids = [f"cut{i}"]
        assert kept_by(alone, table) == [whole[i]]


def test_streams_that_an_earlier_draw_took_stay_away():
    """Decoding on lips alone with a dropout table: `present` says what may be used."""
    batch = batch_of([("audio", "video")] * 50)
    batch.present = {"audio": torch.zeros(50, dtype=torch.bool), "video": torch.ones(50, dtype=torch.bool)}
    assert set(kept_by(batch, TABLES[2])) == {frozenset({"video"})}


def test_fine_tuning_drops_as_its_own_table_says_and_by_default_nothing():
    """The same draw, any values; without a table all that an item has is kept (the public code's way)."""
    batch = batch_of([("audio", "video")] * 2000)
    everything = draw_kept(batch, TuningConfig(), seed=1).present
    assert everything["audio"].all() and everything["video"].all()
    for table in TABLES[1:4]:
        kept = draw_kept(batch, TuningConfig(modality_dropout=table), seed=1).present
        both = (kept["audio"] & kept["video"]).float().mean()
        assert float(both) == pytest.approx(table["audio+video"], abs=0.05)
        assert float((kept["video"] & ~kept["audio"]).float().mean()) == pytest.approx(table["video"], abs=0.04)
    with pytest.raises(UserError, match="add up to 1"):
        TuningConfig(modality_dropout={"audio+video": 0.7, "audio": 0.7})


def test_shares_below_zero_are_refused():
    with pytest.raises(UserError, match="positive and add up to 1"):
        check_shares({"audio+video": 1.2, "audio": -0.2}, "modality_dropout")
