"""Audio at 16 kHz -> frames, in batches: what the encoders and the first clustering see.

    log_mel   26 log filterbank energies at 100 Hz, the public AV-HuBERT input (python_speech_features.logfbank)
    stacked   4 of them side by side, each 25 Hz frame normalised: (N, T, 104)
    mfcc      39 Kaldi values (13 + deltas + double deltas) at 100 Hz: what the first codebook is learnt on
    fbank     80 Kaldi log-mel bins at 100 Hz

All of it is double precision inside: it costs little beside reading the file, and a frame is the same alone and in a
batch to the last digit that float32 keeps. Waveforms are float in [-1, 1].
"""

import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from lhotse.audio import DurationMismatchError
from lhotse.audio.utils import AudioLoadingError
from lhotse.cut import Cut
from torch import Tensor
from torch.nn import functional as F
from torchaudio.compliance.kaldi import get_mel_banks

from mmspeech.batch import STACK, valid_frames
from mmspeech.errors import BadItem

RATE_HZ = 16_000
WINDOW, HOP, FFT_SIZE = 400, 160, 512  # samples: 25 ms every 10 ms
INT16_SCALE = 32768.0
FRAMES_PER_S = 25
NUM_BINS = 26
STACKED_SIZE = STACK * NUM_BINS
KALDI_FLOOR = float(np.finfo(np.float32).eps)


class Frames(NamedTuple):
    """A padded batch of frames."""

    values: Tensor  # (N, T, C) float32, zero in padding
    lengths: Tensor  # (N,) int64


def read_audio(cut: Cut) -> np.ndarray:
    """The cut's samples (S,), float32 in [-1, 1].

    Raises BadItem for anything but 16 kHz mono with finite samples: `prepare` resamples, nothing later does.
    """
    if not cut.has_recording:
        raise BadItem(f"{cut.id}: expected a recording on the cut, found none; prepare the corpus again")
    if cut.sampling_rate != RATE_HZ or cut.num_channels != 1:
        found = f"{cut.sampling_rate} Hz with {cut.num_channels} channel(s)"
        raise BadItem(f"{cut.id}: expected {RATE_HZ} Hz mono, found {found}; `mmspeech prepare` resamples")
    try:
        wave = cut.load_audio()[0]
    except (AudioLoadingError, DurationMismatchError, OSError) as error:
        source = cut.recording.sources[0]
        if source.type == "file" and not Path(source.source).exists():
            raise BadItem(f"{cut.id}: {source.source}: no such file; prepare the corpus again") from error
        # Of several readers that tried, what the first one found: lhotse lists them all, with their classes.
        said = " ".join(str(error).split())
        first = re.search(r"Error'>: (?:Error : )?(.+?)\.?(?: Exception #|$)", said)
        reason = first[1] if first else said[:200]
        raise BadItem(f"{cut.id}: {source.source} cannot be read ({reason}); prepare the corpus again") from error
    if wave.size == 0 or not np.isfinite(wave).all():
        found = "no samples" if wave.size == 0 else "samples that are not finite"
        raise BadItem(f"{cut.id}: expected finite samples, found {found}; replace the recording and prepare again")
    return wave.astype(np.float32, copy=False)


def num_frames(cut: Cut) -> int:
    """Number of 25 Hz frames of a cut: its mouth frames, if it has a mouth track."""
    return math.floor(cut.duration * FRAMES_PER_S + 0.5 + 1e-8)  # halves go up, as when lhotse cuts a track


def stacked_log_mel(waves: Tensor, lengths: Tensor, num_frames: Tensor | None = None) -> Frames:
    """The encoders' audio input (N, T, 104) at 25 Hz, float32.

    Four 100 Hz frames side by side; a last incomplete group is filled with zeros (log domain); cut or extended with
    zeros to `num_frames`; then a layer norm without scale and shift over the 104 values of each frame.

    Args:
        waves: (N, S) in [-1, 1]; what stands behind `lengths` is ignored.
        lengths: (N,) int64, samples of each.
        num_frames: (N,) int64, e.g. the number of video frames; None: as many as the audio fills.
    """
    energies, fine_lengths = log_mel(waves, lengths)
    wanted = (fine_lengths + STACK - 1) // STACK if num_frames is None else num_frames.to(waves.device)
    size = int(wanted.max())
    energies = F.pad(energies, (0, 0, 0, max(size * STACK - energies.shape[1], 0)))[:, : size * STACK]
    stacked = energies.unflatten(1, (size, STACK)).flatten(2)  # (N, T, 104)
    stacked = F.layer_norm(stacked, (STACKED_SIZE,), eps=1e-5)  # an all-zero frame stays zero
    return Frames(stacked.masked_fill(~valid_frames(wanted, size)[..., None], 0.0).float(), wanted)


def stacked_log_mel_of_one(wave: np.ndarray, num_frames: int | None = None) -> Tensor:
    """`stacked_log_mel` of one waveform (S,): (T, 104) float32."""
    wanted = None if num_frames is None else torch.tensor([num_frames])
    return stacked_log_mel(torch.from_numpy(wave)[None], torch.tensor([len(wave)]), wanted).values[0]


def log_mel(waves: Tensor, lengths: Tensor) -> Frames:
    """26 log filterbank energies at 100 Hz, (N, F, 26) float64, with F = 1 + ceil((S - 400) / 160), at least 1.

    As python_speech_features.logfbank on int16 samples: pre-emphasis over the whole signal, rectangular window, zeros
    behind the end, energies of exactly 0 become 2.2e-16.
    """
    counts = 1 + (lengths.to(waves.device) - WINDOW).clamp(min=0).add(HOP - 1).div(HOP, rounding_mode="floor")
    size = int(counts.max())
    waves = waves.double() * INT16_SCALE
    waves = torch.cat([waves[:, :1], waves[:, 1:] - 0.97 * waves[:, :-1]], dim=1)
    waves = waves.masked_fill(~valid_frames(lengths.to(waves.device), waves.shape[1]), 0.0)
    waves = F.pad(waves, (0, max(WINDOW + (size - 1) * HOP - waves.shape[1], 0)))
    frames = waves.unfold(1, WINDOW, HOP)[:, :size]  # (N, F, 400)
    filters = _triangles().to(waves.device) / FFT_SIZE
    energies = _in_blocks(lambda block: _power(block) @ filters, frames)
    energies = energies.masked_fill(energies == 0, float(np.finfo(float).eps)).log()
    return Frames(energies.masked_fill(~valid_frames(counts, size)[..., None], 0.0), counts)


def mfcc(waves: Tensor, lengths: Tensor) -> Frames:
    """39 values at 100 Hz, (N, F, 39) float32, F = 1 + floor((S - 400) / 160): 98 in the first second, log_mel has 99.

    Kaldi's MFCC (13 of 23 mel bins, no energy, samples in [-1, 1], snipped edges, no dither) with deltas and deltas
    of deltas over five frames.
    """
    energies, counts = _kaldi_log_mel(waves.double(), lengths, num_bins=23)
    cepstra = energies @ _cosines(23, 13).to(waves.device)
    deltas = _deltas(cepstra, counts)
    values = torch.cat([cepstra, deltas, _deltas(deltas, counts)], dim=-1)
    return Frames(values.masked_fill(~valid_frames(counts, values.shape[1])[..., None], 0.0).float(), counts)


def every_fourth(frames: Frames) -> Frames:
    """100 Hz -> 25 Hz: frame t of the result is frame 4 t, as labels at 100 Hz are picked for 25 Hz features."""
    return Frames(frames.values[:, ::STACK], (frames.lengths + STACK - 1) // STACK)


def fbank(waves: Tensor, lengths: Tensor, num_bins: int = 80) -> Frames:
    """Kaldi log-mel bins at 100 Hz of int16-scaled samples, (N, F, 80) float32; no dither, snipped edges."""
    energies, counts = _kaldi_log_mel(waves.double() * INT16_SCALE, lengths, num_bins)
    return Frames(energies.masked_fill(~valid_frames(counts, energies.shape[1])[..., None], 0.0).float(), counts)


def stack(frames: Frames) -> Frames:
    """100 Hz -> 25 Hz by laying four frames side by side (N, T, 4 C); a last incomplete group is filled with zeros."""
    filled = F.pad(frames.values, (0, 0, 0, -frames.values.shape[1] % STACK))
    return Frames(filled.unflatten(1, (-1, STACK)).flatten(2), (frames.lengths + STACK - 1) // STACK)


def _kaldi_log_mel(waves: Tensor, lengths: Tensor, num_bins: int) -> tuple[Tensor, Tensor]:
    """(N, F, num_bins) float64 log energies of whole windows only, and (N,) counts of frames."""
    counts = (lengths.to(waves.device) - WINDOW).div(HOP, rounding_mode="floor").add(1).clamp(min=0)
    if waves.shape[1] < WINDOW:
        waves = F.pad(waves, (0, WINDOW - waves.shape[1]))
    frames = waves.unfold(1, WINDOW, HOP)[:, : max(int(counts.max()), 1)]  # (N, F, 400)
    window = torch.hann_window(WINDOW, periodic=False, dtype=torch.float64, device=waves.device) ** 0.85  # "povey"
    filters = _kaldi_triangles(num_bins).to(waves.device)

    def energies(block: Tensor) -> Tensor:
        block = block - block.mean(-1, keepdim=True)
        previous = torch.cat([block[..., :1], block[..., :-1]], dim=-1)
        return _power((block - 0.97 * previous) * window) @ filters

    return _in_blocks(energies, frames).clamp(min=KALDI_FLOOR).log(), counts


def _deltas(x: Tensor, counts: Tensor) -> Tensor:
    """Slopes over five frames, (N, F, C); each item's first and last frame are repeated outwards."""
    times = torch.arange(x.shape[1], device=x.device)
    last = (counts - 1).clamp(min=0)[:, None]  # (N, 1)

    def shifted(by: int) -> Tensor:
        index = torch.minimum((times + by).clamp(min=0)[None], last)  # (N, F)
        return x.gather(1, index[..., None].expand_as(x))

    return (shifted(1) - shifted(-1) + 2 * (shifted(2) - shifted(-2))) / 10


def _in_blocks(function: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
    """`function` over (N, F, 400), on a CPU few frames at a time: what stays in its cache takes a third of the time."""
    if frames.device.type != "cpu":
        return function(frames)
    return torch.cat([function(block) for block in frames.split(max(1, 512 // len(frames)), dim=1)], dim=1)


def _power(frames: Tensor) -> Tensor:
    """(..., 400) -> (..., 257) power spectrum."""
    spectrum = torch.fft.rfft(frames, FFT_SIZE)
    return spectrum.real.square() + spectrum.imag.square()  # a sum over the last axis of two takes ten times longer


@functools.cache
def _triangles() -> Tensor:
    """(257, 26): triangular filters between 0 and 8000 Hz whose edges are floored FFT bins."""
    top = 2595 * math.log10(1 + RATE_HZ / 2 / 700)
    hertz = 700 * (10 ** (torch.linspace(0, top, NUM_BINS + 2, dtype=torch.float64) / 2595) - 1)
    edges = ((FFT_SIZE + 1) * hertz / RATE_HZ).floor()
    bins = torch.arange(FFT_SIZE // 2 + 1, dtype=torch.float64)[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising = ((bins - left) / (centre - left)).where((bins >= left) & (bins < centre), 0.0)
    return ((right - bins) / (right - centre)).where((bins >= centre) & (bins < right), rising)


@functools.cache
def _kaldi_triangles(num_bins: int) -> Tensor:
    """(257, num_bins): Kaldi's triangles on the mel scale from 20 to 8000 Hz; none reaches the last FFT bin."""
    banks, _ = get_mel_banks(num_bins, FFT_SIZE, float(RATE_HZ), 20.0, 0.0, 100.0, -500.0, 1.0)
    return F.pad(banks, (0, 1)).T.double()


@functools.cache
def _cosines(num_bins: int, num_cepstra: int) -> Tensor:
    """(num_bins, num_cepstra): orthonormal DCT and Kaldi's liftering with 22."""
    n, k = torch.arange(num_bins).double()[:, None] + 0.5, torch.arange(num_cepstra).double()
    dct = math.sqrt(2 / num_bins) * torch.cos(math.pi / num_bins * n * k)
    dct[:, 0] = math.sqrt(1 / num_bins)
    return dct * (1 + 11 * torch.sin(math.pi * k / 22))
