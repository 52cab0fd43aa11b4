"""Tiny cuts on disk for tests: sound, and lips or other arrays beside it."""

from pathlib import Path

import numpy as np
import soundfile
from lhotse import MonoCut, NumpyFilesWriter, Recording, SupervisionSegment

from mmspeech.data.cutfiles import writing_cuts


def write_cuts(
    folder: Path,
    durations: list[float],
    *,
    name: str = "cuts.jsonl.gz",
    units: str | None = "km",
    num_units: int = 7,
    emg: bool = False,
    rate: int = 16000,
    texts: list[str] | None = None,
) -> Path:
    """A file of cuts with noise for sound, random units at 25 Hz and, if asked, an 8-channel stream `emg`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    path = folder / name
    with writing_cuts(path) as writer, NumpyFilesWriter(folder / f"{name}.arrays") as arrays:
        for i, duration in enumerate(durations):
            wav = folder / f"{name}-{i}.wav"
            soundfile.write(wav, 0.1 * rng.standard_normal(round(duration * rate)), rate)
            recording = Recording.from_file(wav, recording_id=f"clip{i:03d}")
            cut = MonoCut(f"clip{i:03d}", 0, recording.duration, 0, recording=recording)
            text = texts[i] if texts else f"word {i}"
            cut.supervisions = [
                SupervisionSegment(cut.id, recording.id, 0, cut.duration, text=text, speaker=f"s{i % 3}")
            ]
            frames = round(duration * 25)
            if units:
                values = rng.integers(0, num_units, frames).astype(np.int32)
                cut = _attach(cut, arrays, f"units_{units}", values)
            if emg:
                cut = _attach(cut, arrays, "emg", rng.standard_normal((frames, 8)).astype(np.float32))
            writer.write(cut)
    return path


def _attach(cut: MonoCut, arrays: NumpyFilesWriter, field: str, values: np.ndarray) -> MonoCut:
    stored = arrays.store_array(f"{cut.id}-{field}", values, frame_shift=0.04, temporal_dim=0, start=0)
    setattr(cut, field, stored)
    return cut
