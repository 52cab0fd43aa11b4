"""Phones in time: ids at 100 Hz, four in each 25 Hz frame, from an alignment or at a fixed rate.

On a cut they are the field `phones`, (T, 4) uint8, T as of the other streams; a fixed rate may end before them.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from lhotse.cut import Cut

from mmspeech.batch import STACK
from mmspeech.data.audio import FRAMES_PER_S, num_frames
from mmspeech.data.phones import SILENCE, ids_of, is_english, spelt
from mmspeech.errors import BadItem

FIELD = "phones"
IDS_PER_S = STACK * FRAMES_PER_S  # 100


class Interval(NamedTuple):
    """A phone of an alignment and when it sounds, in seconds of the cut."""

    start_s: float
    end_s: float
    label: str


def alignment_of(cut: Cut) -> list[Interval]:
    """The phones of a cut's alignment, whose times count from their supervision's start. Raises BadItem if none."""
    found = [
        Interval(one.start + item.start, one.start + item.end, item.symbol)
        for one in cut.supervisions
        for item in (one.alignment or {}).get("phone", [])
    ]
    if not found:
        raise BadItem(
            f"{cut.id}: expected a phone alignment, found none; prepare the corpus with one, or give --aligner, or "
            "--durations cut-or-pad"
        )
    return found


def from_intervals(intervals: Sequence[Interval], frames: int, language: str = "en") -> np.ndarray:
    """(T, 4) uint8: the phone at the centre of each 10 ms, silence where there is none; a later one wins.

    A label of several letters (languages other than English) is cut into as many equal parts.

    Raises BadItem for a label that is no phone.
    """
    number = ids_of(language)
    ids = np.full(frames * STACK, number[SILENCE], np.uint8)
    centres = (np.arange(len(ids)) + 0.5) / IDS_PER_S
    for start_s, end_s, label in intervals:
        symbols = spelt(label, language)
        edges = np.searchsorted(centres, np.linspace(start_s, end_s, len(symbols) + 1))
        for symbol, first, last in zip(symbols, edges[:-1], edges[1:], strict=True):
            ids[first:last] = number[symbol]
    return ids.reshape(frames, STACK)


def at_fixed_rate(phones: Sequence[int], each: int, most: int | None = None) -> np.ndarray:
    """(T, 4) uint8: every phone `each` ids long, cut to at most `most` frames; never filled (public VATLM).

    A last frame that is not full repeats the last phone. No phones are no frames.
    """
    ids = np.repeat(np.asarray(phones, np.uint8), each)
    filled = np.pad(ids, (0, -len(ids) % STACK), mode="edge" if len(ids) else "constant")
    return filled.reshape(-1, STACK)[:most]


def repeated(ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """(T,) ids at 25 Hz -> (T, 4) uint8: the same one four times."""
    return np.repeat(np.asarray(ids, np.uint8)[:, None], STACK, axis=1)


def frames_of(cut: Cut) -> int:
    """The frames that phones of a cut have. Raises BadItem if it is too short for one."""
    frames = num_frames(cut)
    if frames < 1:
        raise BadItem(f"{cut.id}: {cut.duration:.3f} s are shorter than a frame of 0.04 s; leave such cuts out")
    return frames


def check_language(cut: Cut, language: str) -> None:
    """Raise BadItem if the cut's language, where it has one, is not that whose phones are wanted."""
    for supervision in cut.supervisions:
        own = re.split("[-_]", (supervision.language or language).lower())[0]
        # Names of languages (Spanish) are not compared with codes.
        if is_english(own) != is_english(language) or (len(own) == 2 and own != language[:2].lower()):
            raise BadItem(f"{cut.id}: its language is {own}, but phones of {language} are asked for; set --language")
