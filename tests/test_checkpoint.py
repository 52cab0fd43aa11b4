"""Checkpoints: never half-written, never silently wrong."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_toys import Toy, ToyGroups, toy_config

from mmspeech import files
from mmspeech.errors import UserError
from mmspeech.training import checkpoint, random_states, trainer

DEAL = [[[0, 1], [2, 3]]]


def train(folder: Path, toy: Toy | None = None, **changes: object) -> Toy:
    toy = toy or Toy(dropout=0.2)
    trainer.run(toy, ToyGroups(DEAL), toy_config(**changes), folder, device=torch.device("cpu"))
    return toy


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_last_few_are_kept(tmp_path):
    train(tmp_path, updates=9, keep_last=2)
    assert checkpoint.kept(tmp_path / "checkpoints") == [8, 9]


def test_checkpoint_loads_without_running_code(tmp_path):
    """torch.load(weights_only=True) is enough, and everything that a resumed run needs is there."""
    train(tmp_path, updates=2)
    content = torch.load(tmp_path / "checkpoints/step-0000002.ckpt", weights_only=True)
    assert content["update"] == 2 and content["groups"] == {"done": 2} and content["config"]["updates"] == 2
    assert set(content["optimizer"]["head.weight"]) == {"step", "exp_avg", "exp_avg_sq"}
    assert set(content["random"][0]) == {"python", "numpy", "torch", "cuda"}


@pytest.mark.parametrize("damage", ["cut off", "empty", "flipped bits"])
def test_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, capsys, damage):
    """One line names it, it is set aside, and the losses come out as if nothing had been."""
    train(tmp_path / "whole")
    train(tmp_path / "parts", updates=8)
    newest = tmp_path / "parts/checkpoints/step-0000008.ckpt"
    content = newest.read_bytes()
    half, flipped = len(content) // 2, bytearray(content)
    flipped[half : half + 64] = bytes(255 - byte for byte in content[half : half + 64])
    newest.write_bytes({"cut off": content[:half], "empty": b"", "flipped bits": flipped}[damage])
    train(tmp_path / "parts")
    said = " ".join(capsys.readouterr().err.split())
    assert "step-0000008.ckpt: damaged checkpoint" in said and "going back to the checkpoint before" in said
    assert newest.with_name("step-0000008.ckpt.damaged").exists()
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_nothing_but_damaged_checkpoints_is_an_error(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/step-0000002.ckpt").write_bytes(b"PK")
    with pytest.raises(UserError, match="none of its checkpoints can be read; remove the folder"):
        train(tmp_path)


def test_checkpoint_of_another_size_names_the_first_difference(tmp_path):
    train(tmp_path, updates=2)
    other = Toy()
    other.video = torch.nn.Linear(5, 6)
    with pytest.raises(
        UserError, match=r"step-0000002.ckpt: `video.weight` has shape \(6, 3\), in this model \(6, 5\)"
    ):
        train(tmp_path, other)
    less = Toy()
    less.trunk.blocks = less.trunk.blocks[:1]
    with pytest.raises(UserError, match=r"has `trunk.blocks.1.linear.weight`, which this model lacks"):
        train(tmp_path, less)


SMALL_DISK = """
import resource, sys
from pathlib import Path
from test_checkpoint import train
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
train(Path(sys.argv[1]), updates=4)
"""


def test_full_disk_is_one_line_and_nothing_is_lost(tmp_path):
    """A limit on file size below that of a checkpoint: the one before stays, no rest lies about, the run goes on."""
    train(tmp_path, updates=2)
    before = (tmp_path / "checkpoints/step-0000002.ckpt").read_bytes()
    room = len(before) // 2
    done = subprocess.run(
        [sys.executable, "-c", SMALL_DISK, tmp_path, str(room)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    assert "UserError" in done.stderr and "could not be written (File too large); make room" in done.stderr
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-0000002.ckpt"]
    assert (tmp_path / "checkpoints/step-0000002.ckpt").read_bytes() == before
    train(tmp_path, updates=4)
    assert len(losses(tmp_path)) == 4


def test_no_space_left_is_told_the_same_way(tmp_path, monkeypatch):
    """An injected ENOSPC when the file is forced to disk."""

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(UserError, match="No space left on device"):
        train(tmp_path, updates=2)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_average_is_the_mean_and_keeps_counters(tmp_path):
    toy = train(tmp_path, Toy(norm=True), updates=6)
    paths = [checkpoint.path_of(tmp_path / "checkpoints", update) for update in (2, 4, 6)]
    mean = checkpoint.average(paths)
    weights = [checkpoint.read(path)["model"]["audio.weight"].double() for path in paths]
    torch.testing.assert_close(mean["audio.weight"], (sum(weights) / 3).float())
    assert mean["norm.num_batches_tracked"] == toy.norm.num_batches_tracked
    assert mean.keys() == toy.state_dict().keys()


def test_random_states_are_put_back_exactly():
    """Python, numpy and torch draw the same numbers again."""
    import random

    import numpy as np

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.standard_normal()), float(torch.randn(()))

    draw()
    states = random_states.get()
    first = draw()
    random_states.put_back(states)
    assert draw() == first
