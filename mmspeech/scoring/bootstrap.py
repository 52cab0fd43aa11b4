"""Intervals for corpus scores, and for what lies between systems, by resampling utterances (Bisani and Ney, 2004).

An error rate is a ratio of sums over utterances, so a resample needs only how often each utterance was drawn: the
draws of all resamples are one matrix of counts, and a matrix product gives every resample's sums at once. Two systems
decoded the same utterances: they share the draws, so that what is hard for both does not widen their difference.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mmspeech.seeds import numpy_rng

RESAMPLES = 2000
LEVEL = 0.95
BLOCK = 4_000_000  # counts held at a time: 32 MB, whatever the number of utterances


class Interval(NamedTuple):
    """The bounds within which the score of a fresh test set of this size would fall."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A difference with its interval, and how often chance alone would give one so far from 0 (two-sided)."""

    value: float
    low: float
    high: float
    p: float

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval lies on that side of 0, else 0: nothing is shown."""
        return int(self.low > 0) - int(self.high < 0)


def interval(
    rows: np.ndarray,
    score: Callable[[np.ndarray], np.ndarray],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """The percentile interval of a score that is a function of sums over utterances; the same for the same seed.

    Args:
        rows: (N, S) what each utterance adds to the S sums, e.g. its errors and its words.
        score: from sums (R, S) to scores (R,); nan where a resample has none (no words in it), which is left out.
        resamples: R, how often N utterances are drawn with replacement.
    """
    rows = np.asarray(rows, dtype=np.float64)
    scores = score(resampled_sums(rows, seed=seed, resamples=resamples))
    tail = 50 * (1 - level)
    low, high = np.nanpercentile(scores, [tail, 100 - tail])
    return Interval(float(low), float(high))


def contrast(
    rows: Sequence[np.ndarray],
    weights: Sequence[float],
    score: Callable[[np.ndarray], np.ndarray],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Estimate:
    """A weighted sum of scores of the same utterances under C conditions, resampled together.

    Weights (-1, 1) are a difference of two systems, (-1, 1, 1, -1) a difference of two differences: whether a gap
    grows.

    Args:
        rows: C arrays (N, S), what each utterance adds to the sums under each condition, utterances in one order.
        score: from sums (R, S) to scores (R,).
    """
    tables = [np.asarray(one, dtype=np.float64) for one in rows]

    def combine(sums: np.ndarray) -> np.ndarray:
        parts = np.split(sums, len(tables), axis=1)
        return np.sum([weight * score(part) for weight, part in zip(weights, parts, strict=True)], axis=0)

    together = np.concatenate(tables, axis=1)  # (N, C * S)
    drawn = combine(resampled_sums(together, seed=seed, resamples=resamples))
    return estimate(float(combine(together.sum(axis=0, keepdims=True))[0]), drawn, level=level)


def estimate(value: float, drawn: np.ndarray, *, level: float = LEVEL) -> Estimate:
    """A difference, given what it is in each resample (R,); nan where a resample has none, which is left out.

    The p-value is twice the share of resamples that do not lie on the difference's side of 0, one more counted.
    """
    drawn = drawn[np.isfinite(drawn)]
    tail = 50 * (1 - level)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    against = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return Estimate(value, float(low), float(high), min(1.0, 2 * (against + 1) / (len(drawn) + 1)))


def resampled_sums(rows: np.ndarray, *, seed: int, resamples: int) -> np.ndarray:
    """Sums over `resamples` draws of N utterances with replacement: (N, S) -> (R, S)."""
    return np.concatenate([counts @ rows for counts in draws(len(rows), seed=seed, resamples=resamples)])


def draws(num_utterances: int, *, seed: int, resamples: int, width: int = 1) -> Iterator[np.ndarray]:
    """How often each utterance is in each resample, in blocks (B, N); the same for the same seed and N.

    Args:
        width: columns of what the caller multiplies with, so that B rows of it fit into memory, too.
    """
    rng = numpy_rng(seed, "bootstrap")
    block = max(1, BLOCK // max(num_utterances, width))
    for start in range(0, resamples, block):
        size = (min(block, resamples - start), num_utterances)
        drawn = rng.integers(num_utterances, size=size) + np.arange(size[0])[:, None] * num_utterances
        yield np.bincount(drawn.ravel(), minlength=size[0] * num_utterances).reshape(size)
