"""Audio features, one clip and a batch of eight, against the libraries that they replace."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmspeech import seeds
from mmspeech.bench.measure import Ready, Row, Settings
from mmspeech.data import audio

Features = list[np.ndarray]  # one (F, C) per clip


def ours(settings: Settings, folder: Path, kind: str, batch: int) -> Ready:
    """All clips in one padded batch, on the device; what comes out is on the host again."""
    clips = draw_clips(settings, batch)
    lengths = torch.tensor([len(clip) for clip in clips])
    padded = np.zeros((batch, int(lengths.max())), np.float32)
    for row, clip in zip(padded, clips, strict=True):
        row[: len(clip)] = clip / 32768
    waves = torch.from_numpy(padded)
    functions: dict[str, Callable[[Tensor, Tensor], audio.Frames]] = {
        "logmel": audio.stacked_log_mel,
        "fbank": audio.fbank,
    }
    function = functions[kind]

    def run(number: int) -> tuple[Tensor, Tensor]:
        for _ in range(_repeats(settings)):
            values, frames = function(waves.to(settings.device), lengths)
            values, frames = values.cpu(), frames.cpu()
        return values, frames

    def answer() -> Features:
        return [values[:frames].numpy() for values, frames in zip(*run(0), strict=True)]

    return Ready(run, answer, _work(settings, clips))


def python_speech_features(settings: Settings, folder: Path, batch: int) -> Ready:
    """The filterbank alone, clip by clip: stacking and normalisation are left to nobody."""
    from python_speech_features import logfbank  # an extra: the package imports without it

    clips = draw_clips(settings, batch)

    def run(number: int) -> Features:
        for _ in range(_repeats(settings)):
            found = [logfbank(clip, audio.RATE_HZ) for clip in clips]
        return found

    return Ready(run, lambda: [_stack_and_normalise(energies) for energies in run(0)], _work(settings, clips))


def kaldi_native_fbank(settings: Settings, folder: Path, batch: int) -> Ready:
    """Clip by clip and frame by frame, as the library is used."""
    import kaldi_native_fbank as library

    options = library.FbankOptions()
    options.frame_opts.dither = 0
    options.mel_opts.num_bins = 80
    clips = draw_clips(settings, batch)
    samples = [clip.astype(np.float32) for clip in clips]

    def one(clip: np.ndarray) -> np.ndarray:
        fbank = library.OnlineFbank(options)
        fbank.accept_waveform(audio.RATE_HZ, clip)
        fbank.input_finished()
        return np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])

    def run(number: int) -> Features:
        for _ in range(_repeats(settings)):
            found = [one(clip) for clip in samples]
        return found

    return Ready(run, lambda: run(0), _work(settings, clips))


def difference(a: Features, b: Features, allowed: float) -> tuple[float, float]:
    """The greatest of all values; infinite for another number of frames."""
    if [one.shape for one in a] != [one.shape for one in b]:
        return float("inf"), allowed
    return max(float(np.abs(ours - theirs).max()) for ours, theirs in zip(a, b, strict=True)), allowed


def rows() -> dict[str, Row]:
    found = {}
    kinds = (  # kind, what, ours, peer's name, peer, its package, greatest difference (float32 in quiet bins)
        (
            "logmel",
            "26-bin log-mel at 25 Hz",
            "audio.stacked_log_mel",
            "python_speech_features.logfbank",
            python_speech_features,
            ("python_speech_features",),
            1e-3,
        ),
        ("fbank", "80-bin Kaldi fbank", "audio.fbank", "kaldi-native-fbank", kaldi_native_fbank, (), 0.05),
    )
    clips = (("", "one clip of 10 s", 1), ("-batch", "8 clips of 4 to 5 s, padded", 8))
    for kind, what, name, peer_name, peer, needs, allowed in kinds:
        for suffix, clip, batch in clips:
            found[f"{kind}{suffix}"] = Row(
                f"{what}, {clip}",
                (name, functools.partial(ours, kind=kind, batch=batch)),
                {peer_name: functools.partial(peer, batch=batch)},
                ("x real time",),
                functools.partial(difference, allowed=allowed),
                needs=needs,
            )
    return found


def draw_clips(settings: Settings, batch: int) -> list[np.ndarray]:
    """int16 samples at 16 kHz: noise that swells four times a second, as syllables do."""
    rng = seeds.numpy_rng(settings.seed, "clips")
    seconds = rng.uniform(4, 5, batch) if batch > 1 else [10.0]  # batches hold clips of similar length
    clips = []
    for length in seconds:
        times = np.arange(round(length * audio.RATE_HZ)) / audio.RATE_HZ
        swell = 3000 * (1.1 + np.sin(2 * np.pi * (4 * times + rng.random())))
        clips.append((swell * rng.standard_normal(len(times)).clip(-4, 4)).astype(np.int16))
    return clips


def _stack_and_normalise(energies: np.ndarray) -> np.ndarray:
    """(F, 26) -> (T, 104): what the encoders see, written once more in numpy."""
    filled = np.pad(energies, ((0, -len(energies) % 4), (0, 0))).reshape(-1, 104)
    return (filled - filled.mean(1, keepdims=True)) / np.sqrt(filled.var(1, keepdims=True) + 1e-5)


def _repeats(settings: Settings) -> int:
    return 2 if settings.quick else 10


def _work(settings: Settings, clips: list[np.ndarray]) -> dict[str, float]:
    return {"speech_s": _repeats(settings) * sum(map(len, clips)) / audio.RATE_HZ}
