"""Span masks, drawn for a whole batch at once; each row depends on its own key and length alone.

The public AV-HuBERT code also cuts all rows of a batch to the fewest masked frames; here rows do not see each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmspeech.seeds import uniforms


@dataclass(frozen=True, kw_only=True)
class SpanMask:
    """Spans of masked frames; how often and how long."""

    probability: float  # times the number of frames, divided by `length`: the number of spans
    length: int  # frames
    replace: Literal["embedding", "other_frames"] = "embedding"  # by a learned vector, or by frames of the same clip


def draw_spans(
    keys: Sequence[int], lengths: np.ndarray, size: int, *, probability: float, length: int, min_spans: int = 2
) -> np.ndarray:
    """Spans of masked frames.

    Each row gets floor(probability * T / length + u) spans, u uniform, at least `min_spans`; their starts are drawn
    without repetition from [0, T - length), and spans may overlap, so `probability` is not the covered share: 0.8 with
    length 10 covers 57 %. A row shorter than two spans gets spans of half its length.

    Args:
        keys: N integers, one per row.
        lengths: (N,) valid frames of each row; a row of none gets no mask.
        size: T of the result.

    Returns:
        (N, size) bool, False beyond each row's length.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if probability <= 0:
        return np.zeros((len(lengths), size), dtype=bool)
    numbers = uniforms(keys, size + 1)  # (N, size + 1)
    spans = np.minimum(length, np.maximum(lengths // 2, 1))  # (N,) length of the row's spans
    count = np.maximum(np.floor(probability * lengths / length + numbers[:, 0]), min_spans)
    starts_from = np.maximum(lengths - spans, 1)
    count = np.where(lengths > 0, np.minimum(count, starts_from), 0).astype(np.int64)
    frame = np.arange(size)[None, :]
    order = np.where(frame < starts_from[:, None], numbers[:, 1:], 2.0).argsort(axis=1).argsort(axis=1)
    is_start = order < count[:, None]  # the `count` smallest of the numbers that may start a span
    # A frame is masked if a span started at most `span - 1` frames before: a running count minus the same, shifted.
    started = np.concatenate([np.zeros((len(lengths), 1), dtype=np.int64), is_start.cumsum(axis=1)], axis=1)
    before = np.take_along_axis(started, np.maximum(frame + 1 - spans[:, None], 0), axis=1)
    return (started[:, 1:] > before) & (frame < lengths[:, None])


def replacement_frames(keys: Sequence[int], masked: np.ndarray, lengths: np.ndarray, length: int) -> np.ndarray:
    """Where each frame of a clip comes from when masked runs are filled with other frames of the same clip.

    For every run of masked frames [start, end) a source start is drawn uniformly from the clip's frames except
    [start - length, end); frame start + i then shows source + i, clipped to the clip's last frame (AV-HuBERT's
    `same_seq`; there the positions include the batch's padding, here only the clip's own frames).

    Args:
        keys: N integers, one per row.
        masked: (N, T) bool.
        lengths: (N,) valid frames.
        length: the mask's span length in frames.

    Returns:
        (N, T) int64; a frame that is not masked comes from its own place.
    """
    size = masked.shape[1]
    frame = np.arange(size)[None, :]
    previous = np.pad(masked, ((0, 0), (1, 0)))[:, :-1]
    start = np.maximum.accumulate(np.where(masked & ~previous, frame, 0), axis=1)  # (N, T) of the run a frame is in
    following = np.pad(masked, ((0, 0), (0, 1)))[:, 1:]
    ends = np.where(masked & ~following, frame + 1, size)
    end = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]  # (N, T)
    low = np.maximum(start - length, 0)
    choices = lengths[:, None] - (end - low)
    number = np.take_along_axis(uniforms(keys, size), start, axis=1)  # one per run
    source = np.floor(number * np.maximum(choices, 0)).astype(np.int64)
    source = np.where(source >= low, source + (end - low), source)
    source = np.where(choices > 0, source, 0)
    moved = np.minimum(source + frame - start, np.maximum(lengths[:, None] - 1, 0))
    return np.where(masked, moved, frame)
