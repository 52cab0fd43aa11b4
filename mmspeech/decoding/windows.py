"""Long recordings in overlapping windows: where they lie, about when their words are said, one text out of them all.

Searches tell which words are said, not when. A window's words are spread over its frames with speech by their number
of characters: good enough to see which words of two neighbours are the same one, heard twice. Words are compared by
the clock of speech, which stands still in pauses: else the least error would carry a word over a pause, seconds away.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

REACH = 0.75  # of the speech in an overlap: how far apart one word may be placed by two windows ...
MIN_REACH = 15  # ... but at least so many frames: windows begin and end within words


class Span(NamedTuple):
    """Frames [start, stop)."""

    start: int
    stop: int


class Word(NamedTuple):
    """A word, and about where it is said."""

    text: str
    start: int  # frames [start, stop) of the file
    stop: int
    said: float  # its middle by the clock of speech


def spans(num_frames: int, size: int, overlap: int) -> list[Span]:
    """Windows of at most `size` frames and of one length, to a frame, each sharing `overlap` with the next."""
    count = max(1, math.ceil((num_frames - overlap) / (size - overlap)))
    starts = [round(i * (num_frames - overlap) / count) for i in range(count + 1)]
    return [Span(start, following + overlap) for start, following in itertools.pairwise(starts)]


def clock_of(speaking: np.ndarray) -> np.ndarray:
    """The clock of speech: (T,) bool, frames that are no pause -> (T + 1,) how many of them precede each frame."""
    return np.concatenate([[0], np.cumsum(speaking)])


def place(text: str, clock: np.ndarray, window: Span) -> list[Word]:
    """The words of a window's text with their places in the file; `clock` (T + 1,) is the file's."""
    words = text.split()
    if not words:
        return []
    own = clock[window.start : window.stop + 1]
    if own[0] == own[-1]:  # no speech that is loud enough: all of it may be
        own = own[0] + np.linspace(0, 1e-3, len(own))
    characters = np.cumsum([0, *(len(word) + 1 for word in words)])
    said = own[0] + characters / characters[-1] * (own[-1] - own[0])  # at the start of each word and the last one's end
    starts = np.searchsorted(own, said[:-1], side="right") - 1  # behind a pause, not before it
    stops = np.searchsorted(own, said[1:], side="left")
    middles = (said[:-1] + said[1:]) / 2
    places = zip(
        words, (window.start + starts).tolist(), (window.start + stops).tolist(), middles.tolist(), strict=True
    )
    return [Word(*one) for one in places]


def join(left: Sequence[Word], right: Sequence[Word], overlap: Span) -> list[Word]:
    """The words of everything before a window, and its own, with what both have in their overlap once.

    The words that both heard are the series of equal words, in order, that are placed nearest to each other; the text
    goes over from the left to the right at the one nearest to the middle of the overlap, because at the edge of a
    window words are cut off. Without any such word it goes over at the middle itself, or, if a side heard fewer than
    two words there, at the seam: one of them cut off is more likely than one heard twice.

    Args:
        overlap: by the clock of speech.
    """
    if overlap.start == overlap.stop:
        return [*left, *right]
    reach = max(MIN_REACH, REACH * (overlap.stop - overlap.start))
    middle = (overlap.start + overlap.stop) / 2
    first = len(left)
    while first and left[first - 1].said > overlap.start - reach:
        first -= 1
    tail, head = left[first:], [word for word in right if word.said < overlap.stop + reach]
    same = _same_words(tail, head, reach)
    if not same and min(_count_in(tail, overlap), _count_in(head, overlap)) < 2:
        return [*left, *right]
    if not same:
        return [*left[:first], *(w for w in tail if w.said < middle), *(w for w in right if w.said >= middle)]
    last, also = min(same, key=lambda pair: abs(tail[pair[0]].said + head[pair[1]].said - 2 * middle))
    return [*left[: first + last + 1], *right[also + 1 :]]


def _same_words(tail: Sequence[Word], head: Sequence[Word], reach: float) -> list[tuple[int, int]]:
    """Places (in `tail`, in `head`) of the best common subsequence: a pair counts 1, less its distance / reach."""
    best = [[0.0] * (len(head) + 1) for _ in range(len(tail) + 1)]  # of the words before places i and j
    for i, word in enumerate(tail):
        for j, other in enumerate(head):
            best[i + 1][j + 1] = max(best[i][j + 1], best[i + 1][j], best[i][j] + _sameness(word, other, reach))
    pairs, i, j = [], len(tail), len(head)
    while i and j:
        if best[i][j] == best[i - 1][j]:
            i -= 1
        elif best[i][j] == best[i][j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs


def _count_in(words: Sequence[Word], overlap: Span) -> int:
    return sum(overlap.start <= word.said <= overlap.stop for word in words)


def _sameness(word: Word, other: Word, reach: float) -> float:
    return max(0.0, 1 - abs(word.said - other.said) / reach) if word.text == other.text else 0.0
