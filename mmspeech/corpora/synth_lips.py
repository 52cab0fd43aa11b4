"""From phones to the shape of a mouth over time, for the embedded corpus: visemes, coarticulation, sloppiness.

    phones with times ── visemes (homophenes share one) ── blending by dominance ── habits ── jitter ──▶ (T, 6)

Lips must carry less than sound, as in life, or the experiments cannot show what they are for: many phones share one
shape, neighbours pull at each other, some speakers hardly open their mouths, words are mumbled now and then.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from mmspeech.corpora.synth_speech import SILENCE, Mark

FRAMES_PER_S = 25

# What describes a mouth. opening: 0 closed - 1 wide; width: -1 pursed - 1 spread; rounding: lips pushed forward;
# tuck: lower lip under the upper teeth; teeth, tongue: how much of them shows where the mouth is open.
SHAPE = ("opening", "width", "rounding", "tuck", "teeth", "tongue")

# Viseme -> (its shape, how strongly it resists its neighbours).
VISEMES: dict[str, tuple[tuple[float, ...], float]] = {
    #            opening width rounding tuck teeth tongue
    "rest":      ((0.02, 0.00, 0.00, 0.0, 0.0, 0.0), 1.0),
    "lips":      ((0.00, 0.05, 0.00, 0.0, 0.0, 0.0), 3.0),
    "lip_teeth": ((0.12, 0.10, 0.00, 1.0, 0.7, 0.0), 2.2),
    "tongue":    ((0.26, 0.15, 0.00, 0.0, 0.7, 0.3), 0.7),
    "back":      ((0.30, 0.05, 0.00, 0.0, 0.4, 0.1), 0.4),
    "pushed":    ((0.26, -0.45, 0.60, 0.0, 0.7, 0.0), 1.4),
    "pursed":    ((0.14, -0.85, 1.00, 0.0, 0.0, 0.0), 1.8),
    "rounded":   ((0.55, -0.55, 0.75, 0.0, 0.1, 0.1), 1.3),
    "spread":    ((0.34, 0.70, 0.00, 0.0, 0.8, 0.2), 1.1),
    "middle":    ((0.60, 0.25, 0.00, 0.0, 0.5, 0.3), 1.1),
    "open":      ((1.00, 0.05, 0.00, 0.0, 0.4, 0.4), 1.4),
}  # fmt: skip

# Phones that look alike are one viseme; diphthongs go from one to another.
LOOKS_LIKE: dict[str, tuple[str, ...]] = {
    SILENCE: ("rest",),
    **dict.fromkeys(("P", "B", "M"), ("lips",)),
    **dict.fromkeys(("F", "V"), ("lip_teeth",)),
    **dict.fromkeys(("T", "D", "N", "S", "Z", "L", "TH", "DH"), ("tongue",)),
    **dict.fromkeys(("K", "G", "NG", "HH", "Y"), ("back",)),
    **dict.fromkeys(("SH", "ZH", "CH", "JH", "R", "ER"), ("pushed",)),
    **dict.fromkeys(("W", "UW", "UH"), ("pursed",)),
    "AO": ("rounded",),
    "OW": ("rounded", "pursed"),
    "OY": ("rounded", "spread"),
    **dict.fromkeys(("IY", "IH"), ("spread",)),
    "EY": ("middle", "spread"),
    **dict.fromkeys(("EH", "AE", "AH"), ("middle",)),
    "AA": ("open",),
    "AY": ("open", "spread"),
    "AW": ("open", "pursed"),
}


@dataclass(frozen=True, kw_only=True)
class Habits:
    """How one speaker moves the mouth; `draw_habits` draws them."""

    opening: float  # how far it opens, of what others do
    width: float  # how far the corners move
    rest: float  # opening when silent
    delay_s: float  # lips behind (or before) the sound
    reach_s: float  # how far in time a phone's shape is felt
    sloppiness: float  # how much effort varies from word to word, 0-1
    jitter: float  # standard deviation of what lips do for no reason, in units of SHAPE


def draw_habits(difficulty: float, rng: np.random.Generator) -> Habits:
    """A speaker's habits. With difficulty 0 all articulate alike and clearly; 1 is far beyond life."""
    lively = rng.beta(2.0, 1.5)  # some hardly open their mouths
    return Habits(
        opening=1.0 - difficulty * 0.75 * (1.0 - lively),
        width=1.0 - difficulty * 0.6 * rng.uniform(),
        rest=0.10 * difficulty * rng.uniform(),
        delay_s=difficulty * rng.normal(0.01, 0.02),
        reach_s=0.028 + difficulty * rng.uniform(0.05, 0.10),
        sloppiness=min(1.0, difficulty * rng.uniform(0.6, 1.5)),
        jitter=difficulty * rng.uniform(0.16, 0.32),
    )


def target(phone: str) -> tuple[float, ...]:
    """The shape that a phone aims at (a diphthong: at first); homophenes have the same."""
    return VISEMES[LOOKS_LIKE[phone][0]][0]


def move(
    phones: Sequence[Mark], words: Sequence[Mark], num_frames: int, habits: Habits, rng: np.random.Generator
) -> NDArray[np.float64]:
    """The mouth over time, (T, 6) in the order of SHAPE; frame i shows the middle of its 40 ms.

    Each phone pulls with a strength that falls off exponentially with the distance in time, and the shape is the mean
    of all pulls (Cohen and Massaro, "Modeling coarticulation in synthetic visual speech", 1993).

    Args:
        phones: with times in the clip; what they leave out is silence.
        words: a word is said with one effort.
        num_frames: T.
        habits: of the speaker.
        rng: for effort and jitter.
    """
    shapes, strengths, centres, halves = [], [], [], []
    efforts = 1.0 - habits.sloppiness * rng.uniform(0.0, 0.8, size=len(words) + 1)
    ends = np.array([word.end_s for word in words])
    for label, start_s, end_s in without_gaps(phones, num_frames / FRAMES_PER_S, SILENCE):
        effort = efforts[np.searchsorted(ends, (start_s + end_s) / 2)] if label != SILENCE else 1.0
        parts = LOOKS_LIKE[label]
        edges = np.linspace(start_s, end_s, len(parts) + 1)
        for part, first, last in zip(parts, edges[:-1], edges[1:], strict=True):
            shape, strength = VISEMES[part]
            # Without effort every vowel tends to the same half-open mouth; lips still meet for p, b, m.
            lazy = 1.0 if part in ("rest", "lips") else effort
            shapes.append(lazy * np.array(shape) + (1.0 - lazy) * np.array(VISEMES["back"][0]))
            strengths.append(strength)
            centres.append((first + last) / 2 + habits.delay_s)
            halves.append((last - first) / 2)
    times = (np.arange(num_frames) + 0.5) / FRAMES_PER_S
    distance = np.maximum(np.abs(times[:, None] - np.array(centres)) - np.array(halves), 0.0)  # (T, phones)
    # Within a phone the pull still grows towards its middle, so that short ones do not become steps.
    distance += 0.3 * np.minimum(np.abs(times[:, None] - np.array(centres)), np.array(halves))
    pull = np.array(strengths) * np.exp(-distance / habits.reach_s) + 1e-12
    mouth = (pull / pull.sum(axis=1, keepdims=True)) @ np.stack(shapes)  # (T, 6)
    mouth += habits.jitter * _wander(num_frames, rng) * (0.6, 0.9, 0.7, 0.3, 0.8, 0.8)
    opening, width, rounding, tuck, teeth, tongue = mouth.T
    opening = np.clip(habits.rest + habits.opening * opening, 0.0, 1.2)
    width = np.clip(habits.width * width, -1.0, 1.0)
    rest = np.stack([rounding, tuck, teeth, tongue], axis=1).clip(0.0, 1.0)
    return np.concatenate([opening[:, None], width[:, None], rest], axis=1)


def without_gaps(marks: Sequence[Mark], duration_s: float, label: str) -> list[Mark]:
    """The marks with `label` before, between and after them, from 0 to `duration_s`."""
    filled, now = [], 0.0
    for mark in [*marks, Mark(label, duration_s, duration_s)]:
        if mark.start_s > now + 1e-6:
            filled.append(Mark(label, now, mark.start_s))
        if mark.end_s > mark.start_s:
            filled.append(mark)
        now = max(now, mark.end_s)
    return filled


def _wander(num_frames: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(T, 6) noise of unit variance that stays for about 0.2 s: what changes every frame, a model averages away."""
    keep = 0.8
    steps = rng.standard_normal((num_frames, len(SHAPE))) * np.sqrt(1 - keep**2)
    steps[0] = rng.standard_normal(len(SHAPE))
    return lfilter([1.0], [1.0, -keep], steps, axis=0)
