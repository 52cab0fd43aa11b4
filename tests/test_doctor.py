"""The doctor: exit code, what it says of parts that are missing, and the traps it knows."""

import importlib.util
import re
from pathlib import Path

import pytest
import typer

from mmspeech.cli import doctor


def test_doctor_finds_the_core_sound_and_names_every_part(mmspeech):
    done = mmspeech("doctor")
    assert done.returncode == 0, done.stdout
    assert all(part.distribution in done.stdout for part in doctor.PARTS)
    assert "The core is sound." in done.stdout
    assert "torch computes on" in done.stdout and "free disk" in done.stdout


@pytest.mark.parametrize(("missing", "code"), [("k2", 0), ("kaldifeat", 0), ("mediapipe", 0), ("lhotse", 1), ("av", 1)])
def test_only_a_missing_core_part_is_an_error_and_each_says_how_to_get_it(monkeypatch, capsys, missing, code):
    found = importlib.util.find_spec
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None if name == missing else found(name))
    if code:
        with pytest.raises(typer.Exit) as caught:
            doctor.run()
        assert caught.value.exit_code == code
    else:
        doctor.run()
    out = capsys.readouterr().out
    part = next(part for part in doctor.PARTS if part.module == missing)
    assert "missing" in out
    assert part.get.split()[-1] in out
    assert ("The core is sound." in out) == (code == 0)


@pytest.mark.parametrize(
    ("torch", "audio", "message"),
    [
        ("2.11.0", "2.11.0", None),
        ("2.11.0+cpu", "2.11.0+cpu", None),
        ("2.11.0+cpu", "2.11.0", "different builds"),
        ("2.12.0", "2.11.0", "not a matched pair"),
    ],
)
def test_torch_and_torchaudio_must_be_a_pair(torch, audio, message):
    problems = list(doctor.core_problems({"torch": torch, "torchaudio": audio}.get, (3, 11)))
    assert len(problems) == (message is not None)
    assert message is None or message in problems[0]


def test_a_wheel_for_another_torch_and_an_old_python_are_named():
    versions = {"torch": "2.11.0", "torchaudio": "2.11.0", "k2": "1.24.4.dev20250715+cpu.torch2.8.0"}
    assert ["made for torch 2.8" in line for line in doctor.advice(versions.get)] == [True]
    assert "Python 3.10" in next(doctor.core_problems(versions.get, (3, 10)))


def test_doctor_does_not_praise_what_nothing_imports():
    """A part that "adds nothing" is imported nowhere in the package; the others are, or are loaded by name."""
    folder = Path(doctor.__file__).parents[1]
    source = "\n".join(path.read_text() for path in folder.rglob("*.py"))
    for part in doctor.PARTS:
        imported = re.search(rf"^ *(import|from) {part.module}\b", source, re.M) is not None
        assert imported == (not part.adds.startswith("nothing")), part.distribution
