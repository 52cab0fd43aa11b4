"""Long recordings in overlapping windows: where they lie, about when their words are said, one text out of them all.

Searches tell which words are said, not when. A window's words are spread over its frames with speech by their number
of characters; that is good enough to see which words of two neighbours are the same one, heard twice.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

REACH = 0.75  # of an overlap: how far apart one word may be placed by two windows


class Span(NamedTuple):
    """Frames [start, stop) of a file."""

    start: int
    stop: int


class Word(NamedTuple):
    """A word, and about where it is said: frames [start, stop) of the file."""

    text: str
    start: int
    stop: int

    @property
    def middle(self) -> float:
        return (self.start + self.stop) / 2


def spans(num_frames: int, size: int, overlap: int) -> list[Span]:
    """Windows of at most `size` frames and of one length, to a frame, each sharing `overlap` with the next."""
    count = max(1, math.ceil((num_frames - overlap) / (size - overlap)))
    starts = [round(i * (num_frames - overlap) / count) for i in range(count + 1)]
    return [Span(start, following + overlap) for start, following in zip(starts, starts[1:], strict=False)]


def place(text: str, speaking: np.ndarray, start: int) -> list[Word]:
    """The words of a window's text with their places in the file.

    Args:
        speaking: (T,) bool, the window's frames that are no pause; if all are, pauses are taken for speech.
        start: the window's first frame.
    """
    words = text.split()
    if not words:
        return []
    spoken = np.concatenate([[0], np.cumsum(speaking if speaking.any() else np.ones_like(speaking))])  # (T + 1,)
    characters = np.cumsum([0, *(len(word) + 1 for word in words)])
    share = characters / characters[-1] * spoken[-1]  # speech before each word, in frames, and after the last one
    starts = np.searchsorted(spoken, share[:-1], side="right") - 1  # behind a pause, not before it
    stops = np.searchsorted(spoken, share[1:], side="left")
    return [Word(word, start + int(a), start + int(b)) for word, a, b in zip(words, starts, stops, strict=True)]


def join(left: Sequence[Word], right: Sequence[Word], overlap: Span) -> list[Word]:
    """The words of everything before a window, and its own, with what both have in their overlap once.

    The words that both heard are the series of equal words, in order, that are placed nearest to each other; the text
    goes over from the left to the right at the one nearest to the middle of the overlap, because at the edge of a
    window words are cut off. Without any such word it goes over at the middle itself, unless one side heard nothing.
    """
    reach, middle = REACH * (overlap.stop - overlap.start), (overlap.start + overlap.stop) / 2
    first = len(left)
    while first and left[first - 1].middle > overlap.start - reach:
        first -= 1
    tail, head = left[first:], [word for word in right if word.middle < overlap.stop + reach]
    same = _same_words(tail, head, reach)
    if not same and not (_any_in(tail, overlap) and _any_in(head, overlap)):
        return [*left, *right]
    if not same:
        return [*left[:first], *(w for w in tail if w.middle < middle), *(w for w in right if w.middle >= middle)]
    last, also = min(same, key=lambda pair: abs(tail[pair[0]].middle + head[pair[1]].middle - 2 * middle))
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


def _any_in(words: Sequence[Word], overlap: Span) -> bool:
    return any(overlap.start <= word.middle <= overlap.stop for word in words)


def _sameness(word: Word, other: Word, reach: float) -> float:
    return max(0.0, 1 - abs(word.middle - other.middle) / reach) if word.text == other.text else 0.0
