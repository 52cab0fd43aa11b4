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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many tests against real recordings and reference vectors ran: a green run without them shows less."""
    ran, skipped = 0, 0
    for outcome in ("passed", "failed", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            if getattr(report, "when", "") == "teardown" or "shared" not in getattr(report, "keywords", {}):
                continue
            ran, skipped = ran + (outcome != "skipped"), skipped + (outcome == "skipped")
    terminalreporter.write_line(f"tests with real recordings or reference vectors: {ran} ran, {skipped} skipped")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the shared folder, so that the summary can count it."""
    for item in items:
        if "shared" in getattr(item, "fixturenames", ()):
            item.add_marker("shared")
