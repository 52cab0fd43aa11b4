"""How well hidden units agree with phones, from a table of joint counts (HuBERT Sec. IV-C).

    PNMI            I(phone; unit) / H(phone)       share of the phone's uncertainty that the unit removes
    phone purity    sum_unit max_phone p(phone, unit)    accuracy of naming each unit by its most frequent phone
    cluster purity  sum_phone max_unit p(phone, unit)    the same the other way round

Phone purity grows with the number of units, cluster purity falls: read them together. PNMI is no mean over utterances,
but a function of sums of counts: its interval comes from resampled utterances all the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.special import xlogy

from mmspeech.errors import BadItem
from mmspeech.scoring import bootstrap


@dataclass(frozen=True)
class Agreement:
    """Agreement of units and phones over all frames that have a phone."""

    pnmi: float
    phone_purity: float
    cluster_purity: float
    frames: int
    frames_without_phone: int  # left out
    phones: int  # different ones
    units: int  # different ones


class JointCounts:
    """How often each phone met each unit; grows as phones and units appear, whatever the number of cuts."""

    def __init__(self) -> None:
        self.phones: dict[str, int] = {}  # phone -> row
        self.table = np.zeros((0, 0), np.int64)  # (phones, units)
        self.without_phone = 0

    def add(self, units: np.ndarray, phones: Sequence[str | None]) -> None:
        """Count the frames of one cut: units (T,), and a phone (or None) for each. Raises BadItem if they differ."""
        if len(units) != len(phones):
            raise BadItem(f"{len(units)} units, but {len(phones)} phones; take both at 25 Hz")
        has_phone = np.array([phone is not None for phone in phones], bool)
        self.without_phone += int((~has_phone).sum())
        if not has_phone.any():
            return
        rows = np.array([self.phones.setdefault(phone, len(self.phones)) for phone in phones if phone is not None])
        columns = np.asarray(units)[has_phone]
        grown = np.zeros((len(self.phones), max(self.table.shape[1], int(columns.max()) + 1)), np.int64)
        if grown.shape != self.table.shape:
            grown[: self.table.shape[0], : self.table.shape[1]] = self.table
            self.table = grown
        np.add.at(self.table, (rows, columns), 1)

    def agreement(self) -> Agreement:
        """The measures over what was counted; with only one phone PNMI is 0. Raises BadItem if nothing was counted."""
        total = int(self.table.sum())
        if total == 0:
            raise BadItem("no frame has both a unit and a phone; give cuts with units and phone alignments")
        joint = self.table / total
        phones, units = joint.sum(1), joint.sum(0)
        information = _entropy(phones) + _entropy(units) - _entropy(joint.ravel())
        return Agreement(
            pnmi=max(float(information / _entropy(phones)), 0.0) if _entropy(phones) > 0 else 0.0,  # not -1e-17
            phone_purity=float(joint.max(0).sum()),
            cluster_purity=float(joint.max(1).sum()),
            frames=total,
            frames_without_phone=self.without_phone,
            phones=int((phones > 0).sum()),
            units=int((units > 0).sum()),
        )


def phones_of_frames(
    intervals: Sequence[tuple[float, float, str]], num_frames: int, rate_hz: float
) -> list[str | None]:
    """The phone at the centre of each frame, None where there is none.

    Args:
        intervals: (start, end, phone) in seconds.
    """
    centres = (np.arange(num_frames) + 0.5) / rate_hz
    phones: list[str | None] = [None] * num_frames
    for start, end, phone in intervals:
        for frame in range(*np.searchsorted(centres, [start, end])):
            phones[frame] = phone
    return phones


def resampled(
    phones: Sequence[np.ndarray], units: Sequence[np.ndarray], *, seed: int = 0, resamples: int = bootstrap.RESAMPLES
) -> np.ndarray:
    """PNMI in resamples of N utterances: (R,), nan where a resample has only one phone.

    Args:
        phones: N arrays (T,) of phones as whole numbers from 0; every frame has one.
        units: N arrays (T,), one for each frame.
    """
    lengths = [len(one) for one in phones]
    phone, unit = (np.concatenate(arrays).astype(np.int64) for arrays in (phones, units))
    cells, place = np.unique(phone * (int(unit.max(initial=0)) + 1) + unit, return_inverse=True)
    utterance = np.repeat(np.arange(len(lengths)), lengths)
    # (N, cells): few of the phones x units meet in an utterance.
    joint = sparse.csr_matrix((np.ones(len(place)), (utterance, place)), shape=(len(lengths), len(cells)))
    of_phone, of_unit = (_groups(one) for one in np.divmod(cells, int(unit.max(initial=0)) + 1))
    found = []
    for counts in bootstrap.draws(len(lengths), seed=seed, resamples=resamples, width=len(cells)):
        tables = counts @ joint  # (B, cells)
        information = _information(tables @ of_phone)
        shared = np.maximum(information + _information(tables @ of_unit) - _information(tables), 0.0)
        found.append(np.divide(shared, information, out=np.full(len(tables), np.nan), where=information > 0))
    return np.concatenate(found)


def _groups(names: np.ndarray) -> sparse.csr_matrix:
    """(cells, groups): 1 where a cell belongs to a group."""
    groups, place = np.unique(names, return_inverse=True)
    return sparse.csr_matrix((np.ones(len(place)), (np.arange(len(place)), place)), shape=(len(place), len(groups)))


def _information(counts: np.ndarray) -> np.ndarray:
    """Entropy in nats of each row of counts (B, C) -> (B,)."""
    total = counts.sum(1)
    return np.log(total) - xlogy(counts, counts).sum(1) / total


def _entropy(p: np.ndarray) -> float:
    """In bits; 0 log 0 counts 0."""
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())
