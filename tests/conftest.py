"""Fixtures: where real recordings lie, and a command line that runs in this process."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real recordings and reference vectors; tests that need it are skipped where it is missing."""
    folder = Path(os.environ.get("MMSPEECH_SHARED", Path(__file__).parents[1] / ".." / "shared")).resolve()
    if not (folder / "reference").is_dir():
        pytest.skip(f"no reference data at {folder}: set MMSPEECH_SHARED to the folder that holds data/ and reference/")
    return folder


@pytest.fixture
def mmspeech() -> Callable[..., subprocess.CompletedProcess]:
    """Run the real command: `mmspeech("prepare", "lrs3", folder, out)` -> the finished process with its output."""

    def run(*words: object, **kwargs: object) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "mmspeech", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, **kwargs)

    return run
