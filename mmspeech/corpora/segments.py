"""Long clips -> segments of at most a given length, cut where nobody speaks."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from lhotse.supervision import AlignmentItem

from mmspeech.errors import BadItem
from mmspeech.media import FRAMES_PER_S

PAUSE_S = 0.4  # the public AV-HuBERT preparation cuts in the middle of pauses longer than this
LEAD_FRAMES = 5  # left before a word when the silence before it would not fit


class Segment(NamedTuple):
    """A span of the 25 Hz grid with the words [first, last) that are spoken in it."""

    start: int
    end: int
    first: int
    last: int


def split_at_pauses(words: Sequence[AlignmentItem], num_frames: int, max_frames: int) -> list[Segment]:
    """Segments that hold all words, each in one of them, and are no longer than `max_frames`.

    Cut in the middle of pauses longer than 0.4 s, chosen so that the parts are about equally long; where none is in
    reach, at the widest gap between words. Segments without a word are left out: only silence can be lost.

    Raises BadItem if there are no words, or one is longer than a segment may be.
    """
    if num_frames <= max_frames:
        return [Segment(0, num_frames, 0, len(words))]
    if not words:
        raise BadItem(f"lasts {num_frames / FRAMES_PER_S:.1f} s and has no times of words to cut it by; left out")
    starts = np.array([word.start for word in words]) * FRAMES_PER_S  # in frames, with fractions
    ends = np.maximum.accumulate([word.start + word.duration for word in words]) * FRAMES_PER_S
    # Before boundary k lies word k - 1; the last one is the end of the clip.
    gaps = np.append(starts[1:], num_frames) - ends
    middles = np.rint(np.append((starts[1:] + ends[:-1]) / 2, num_frames)).astype(int)
    segments, begin, first = [], 0, 0
    while first < len(words):
        if ends[first] > begin + max_frames:
            begin = max(begin, int(starts[first]) - LEAD_FRAMES)
        end, last = num_frames, len(words)
        if num_frames - begin > max_frames:
            reachable = np.flatnonzero((ends <= begin + max_frames) & (np.arange(len(words)) >= first))
            if not len(reachable):
                found = f"`{words[first].symbol}` lasts {words[first].duration:.1f} s"
                raise BadItem(f"{found}: more than a segment may; its word times cannot be right, left out")
            ends_at = np.minimum(middles[reachable], begin + max_frames)
            chosen = _choose(ends_at - begin, gaps[reachable], num_frames - begin, max_frames)
            end, last = int(ends_at[chosen]), int(reachable[chosen]) + 1
        if end <= begin:
            raise BadItem(f"its word times go back near {begin / FRAMES_PER_S:.1f} s; they cannot be right, left out")
        segments.append(Segment(begin, end, first, last))
        # After a very long pause the cut before it lies at the segment's limit, and the next begins at the middle.
        begin, first = max(end, int(middles[last - 1])), last
    return segments


def _choose(lengths: np.ndarray, gaps: np.ndarray, rest: int, max_frames: int) -> int:
    """Which of the possible ends to take, given the length (frames) of the segment up to it and the gap there."""
    pauses = np.flatnonzero((gaps > PAUSE_S * FRAMES_PER_S) & (lengths > 0))
    if len(pauses):
        wanted = rest / np.ceil(rest / max_frames)
        return int(pauses[np.argmin(np.abs(lengths[pauses] - wanted))])
    # A gap right at the beginning would leave a crumb.
    late = np.flatnonzero(lengths > max_frames / 3)
    late = late if len(late) else np.arange(len(lengths))
    return int(late[len(late) - 1 - np.argmax(gaps[late][::-1])])


def within(items: Sequence[AlignmentItem], start_s: float, end_s: float) -> list[AlignmentItem]:
    """The items that lie in the span, or reach into it by half a frame, cut to it; times count from its start."""
    inside = []
    for item in items:
        left, right = max(item.start, start_s), min(item.start + item.duration, end_s)
        if right - left >= min(0.5 / FRAMES_PER_S, item.duration / 2) and right > left:
            inside.append(item._replace(start=round(left - start_s, 4), duration=round(right - left, 4)))
    return inside
