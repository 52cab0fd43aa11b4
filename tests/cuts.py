"""Tiny cuts on disk for tests: sound, and lips or other arrays beside it; tiny runs that read them."""

import copy
import sys
from collections.abc import Collection
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import soundfile
import yaml
from lhotse import MonoCut, NumpyFilesWriter, Recording, SupervisionSegment
from lhotse.features.io import FeaturesWriter

from mmspeech.cli import app
from mmspeech.data.cutfiles import writing_cuts
from mmspeech.data.video import MouthWriter

# A model of 10,000 weights with all that trains at random: dropout, layer drop, crops, flips, noise, masks.
PRETRAIN = {
    "system": "uhubert",
    "seed": 5,
    "model": {
        "streams": {
            "audio": {"frontend": "linear", "size": 104},
            "video": {"frontend": "lips", "crop": 20, "stem": 4, "widths": [4, 4, 8, 8], "blocks": 1},
        },
        "num_layers": 2,
        "dim": 16,
        "ffn_dim": 32,
        "heads": 2,
        "layer_drop": 0.2,
        "position_kernel": 7,
        "position_groups": 4,
    },
    "objective": {"num_units": 7, "unit_dim": 8},
    "data": {
        "streams": {"audio": {"reader": "logmel"}, "video": {"reader": "mouth", "size": 24, "crop": 20}},
        "units": "km",
        "batch_s": 4.0,
        "max_batch_s": 2.0,
        "buckets": 2,
        "workers": 0,
    },
    "training": {"updates": 2, "lr": 0.01, "log_every": 1, "validate_every": 5, "checkpoint_every": 3},
}
# The same with phones; changes to PRETRAIN.
VATLM = {
    "system": "vatlm",
    "model.streams.text": {"frontend": "phones", "size": 46},
    "data.streams.text": {"reader": "phones"},
    "objective": {"num_units": 7},
}
FINETUNE = {
    "task": "seq2seq",
    "valid_streams": ["audio+video", "audio", "video"],
    "tokenizer": {"kind": "words"},
    "objective": {
        "encoder": {"freeze_updates": 1, "modality_dropout": {"audio+video": 0.5, "audio": 0.25, "video": 0.25}},
        "decoder": {"num_layers": 1, "dim": 16, "ffn_dim": 32, "heads": 2},
        "ctc_weight": 0.3,
    },
    "data": {"batch_s": 4.0, "max_batch_s": 4.0, "buckets": 2, "workers": 0},
    "training": {"updates": 2, "lr": 0.01, "log_every": 1, "validate_every": 2, "checkpoint_every": 2},
}


def write_run(file: Path, tree: dict, changes: dict[str, object]) -> Path:
    """A run's YAML: `tree` with `changes`, {"training.updates": 4, ...}; paths may be given as paths."""
    tree = copy.deepcopy(tree)
    for key, value in changes.items():
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        values = value if isinstance(value, list) else [value]
        values = [str(one) if isinstance(one, Path) else one for one in values]
        node[last] = values if isinstance(value, list) else values[0]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return file


def command(*words: object) -> int:
    """The real command line, in this process: `command("pretrain", conf, exp)` -> its exit code."""
    argv = ["mmspeech", *map(str, words)]
    with mock.patch.object(sys, "argv", argv), pytest.raises(SystemExit) as end:
        app.main()
    return int(end.value.code or 0)


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
    lips: Collection[int] = (),
    phones: Collection[int] = (),
    silent: Collection[int] = (),
) -> Path:
    """A file of cuts with noise for sound, random units at 25 Hz and, if asked, an 8-channel stream `emg`.

    The cuts whose numbers are in `lips` have a mouth track, those in `phones` have phones, those in `silent` no sound.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    path = folder / name
    numbers, tracks = NumpyFilesWriter(folder / f"{name}.arrays"), MouthWriter(folder / f"{name}.jpgs")
    with writing_cuts(path) as writer, numbers as arrays, tracks as mouths:
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
                cut = attach(cut, arrays, f"units_{units}", values)
            if emg:
                cut = attach(cut, arrays, "emg", rng.standard_normal((frames, 8)).astype(np.float32))
            if i in lips:
                cut = attach(cut, mouths, "mouth", rng.integers(0, 256, (frames, 96, 96)).astype(np.uint8))
            if i in phones:
                cut = attach(cut, arrays, "phones", rng.integers(4, 45, (frames, 4)).astype(np.uint8))
            if i in silent:
                cut.recording = None
            writer.write(cut)
    return path


def attach(cut: MonoCut, arrays: FeaturesWriter, field: str, values: np.ndarray) -> MonoCut:
    """The cut with an array of (T, ...) frames at 25 Hz in a field."""
    stored = arrays.store_array(f"{cut.id}-{field}", values, frame_shift=0.04, temporal_dim=0, start=0)
    setattr(cut, field, stored)
    return cut
