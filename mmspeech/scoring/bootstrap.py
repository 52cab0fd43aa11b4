"""Intervals for corpus scores by resampling utterances (Bisani and Ney, 2004).

An error rate is a ratio of sums over utterances, so a resample needs only how often each utterance was drawn: the
draws of all resamples are one matrix of counts, and a matrix product gives every resample's sums at once.
"""

from collections.abc import Callable
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


def resampled_sums(rows: np.ndarray, *, seed: int, resamples: int) -> np.ndarray:
    """Sums over `resamples` draws of N utterances with replacement: (N, S) -> (R, S)."""
    num_utterances = len(rows)
    rng = numpy_rng(seed, "bootstrap")
    block = max(1, BLOCK // num_utterances)
    sums = []
    for start in range(0, resamples, block):
        size = (min(block, resamples - start), num_utterances)
        drawn = rng.integers(num_utterances, size=size) + np.arange(size[0])[:, None] * num_utterances
        counts = np.bincount(drawn.ravel(), minlength=size[0] * num_utterances).reshape(size)  # (block, N)
        sums.append(counts @ rows)
    return np.concatenate(sums)
