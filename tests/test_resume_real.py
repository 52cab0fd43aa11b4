"""The real command, stopped and started again: `mmspeech pretrain` on sound and lips, everything random switched on."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from cuts import FINETUNE, PRETRAIN, command, write_cuts, write_run
from safetensors.torch import load_file

from mmspeech import dist
from mmspeech.data.loader import DataConfig, TrainingStream, make_reading
from mmspeech.training import checkpoint

UPDATES = 16
LAST = f"step-{UPDATES:07d}.ckpt"


@pytest.fixture(scope="module")
def conf(tmp_path_factory) -> Path:
    """A run with two loader processes, noise, crops, flips, masks, modality dropout, dropout and layer drop."""
    folder = tmp_path_factory.mktemp("resume")
    train = write_cuts(folder / "cuts", [0.6 + 0.1 * (i % 5) for i in range(14)], lips=range(12))
    valid = write_cuts(folder / "cuts", [0.7, 0.9], name="valid.jsonl.gz", lips=range(2))
    for category in ("babble", "music"):
        write_cuts(folder / "noise", [2.0, 0.5], units=None, name=f"noise_{category}_train.jsonl.gz")
    noise = {"cuts": str(folder / "noise"), "probability": 0.5, "categories": {"babble": 1, "music": 1}}
    changes = {"data.cuts": [train], "data.valid_cuts": [valid], "data.noise": noise, "data.workers": 2}
    return write_run(folder / "run.yaml", PRETRAIN, changes | {"training.updates": UPDATES})


@pytest.fixture(scope="module")
def whole(conf) -> Path:
    """The run that was never stopped."""
    assert command("pretrain", conf, conf.parent / "whole") == 0
    return conf.parent / "whole"


def start(
    conf: Path, exp: Path, *torchrun: str, command: str = "pretrain", more: Sequence[object] = ()
) -> subprocess.Popen:
    """The command in a process group of its own; its words go to EXP.txt, not a pipe that its workers keep open."""
    words = [sys.executable, *torchrun, "-m", "mmspeech", command, str(conf), str(exp), *map(str, more)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with open(exp.with_suffix(".txt"), "w") as text:
        return subprocess.Popen(words, env=env, stdout=text, stderr=text, start_new_session=True)


def stop_after(conf: Path, exp: Path, update: int, number: signal.Signals, *, all_processes: bool = False) -> int:
    """Start the run and send it a signal as soon as `update` updates are told; returns its exit code.

    `all_processes`: its workers get it too, as from Slurm or a terminal.
    """
    process = start(conf, exp)
    try:
        deadline = time.monotonic() + 120
        while not told(exp, "train") or told(exp, "train")[-1]["update"] < update:
            assert process.poll() is None and time.monotonic() < deadline, exp.with_suffix(".txt").read_text()
            time.sleep(0.005)
        (os.killpg if all_processes else os.kill)(process.pid, number)
        return process.wait(timeout=60)
    finally:
        end(process)


def end(process: subprocess.Popen) -> None:
    """Nothing of a process group stays: workers notice only after seconds that nobody waits for them any more."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=60)


def told(exp: Path, kind: str) -> list[dict]:
    """The whole lines of metrics.jsonl of one kind, without what depends on the clock."""
    path = exp / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("}\n")]
    return [line for line in lines if line["kind"] == kind and (line.pop("frames_per_s", None) or True)]


def check_equal(whole: Path, parts: Path) -> None:
    """The same figures of every update, the same weights, the same moments and random states: bit for bit."""
    for kind, number in (("train", UPDATES), ("valid", 4)):
        lines = told(whole, kind)
        assert len(lines) == number and len({line["loss"] for line in lines}) == number
        assert told(parts, kind) == lines
    ours, theirs = (load_file(folder / "encoder" / "encoder.safetensors") for folder in (parts, whole))
    for name, weights in theirs.items():
        assert torch.equal(ours[name], weights), name
    ours, theirs = (checkpoint.read(folder / "checkpoints" / LAST) for folder in (parts, whole))
    assert ours["groups"] == theirs["groups"] and ours["frames"] == theirs["frames"]
    assert torch.equal(ours["random"][0]["torch"], theirs["random"][0]["torch"])


def test_killed_run_goes_on_as_if_it_had_never_stopped(conf, whole):
    """kill -9 between two checkpoints: losses, gradient norms, accuracies, validation and weights are the same bits."""
    parts = conf.parent / "killed"
    assert stop_after(conf, parts, 5, signal.SIGKILL) == -signal.SIGKILL
    assert not (parts / "encoder").exists()
    assert command("pretrain", conf, parts) == 0
    assert "resumed after update" in (parts / "log.txt").read_text()
    check_equal(whole, parts)


@pytest.mark.parametrize("all_processes", [False, True])
def test_terminated_run_saves_and_goes_on_as_if_it_had_never_stopped(conf, whole, all_processes):
    """SIGTERM: the update in progress is finished, a checkpoint is written, the exit code is 143."""
    parts = conf.parent / f"terminated-{all_processes}"
    assert stop_after(conf, parts, 4, signal.SIGTERM, all_processes=all_processes) == 143
    done = told(parts, "train")[-1]["update"]
    assert checkpoint.kept(parts / "checkpoints")[-1] == done < UPDATES
    assert "run again to go on" in (parts / "log.txt").read_text()
    assert command("pretrain", conf, parts) == 0
    check_equal(whole, parts)


def test_finished_run_started_again_changes_nothing(conf, whole, capsys):
    """Neither a line nor a file is touched."""

    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in whole.rglob("*")}

    before = state()
    assert command("pretrain", conf, whole) == 0
    assert "encoder: current, nothing to do" in capsys.readouterr().err and state() == before


def test_run_of_one_rank_is_finished_by_two(conf, whole):
    """A run killed on one rank goes on under torchrun on two, and ends where the one of one rank ends in the data."""
    parts = conf.parent / "two"
    assert stop_after(conf, parts, 4, signal.SIGKILL) == -signal.SIGKILL
    process = start(conf, parts, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    try:
        assert process.wait(timeout=120) == 0, parts.with_suffix(".txt").read_text()
    finally:
        end(process)
    assert (parts / "encoder" / "config.yaml").exists()
    ours, theirs = (checkpoint.read(folder / "checkpoints" / LAST) for folder in (parts, whole))
    assert len(ours["random"]) == 2 and len(theirs["random"]) == 1
    assert ours["groups"] == theirs["groups"] and ours["frames"] == theirs["frames"]
    lines = told(parts, "train")
    assert [line["update"] for line in lines] == list(range(1, UPDATES + 1))
    for line, other in zip(lines, told(whole, "train"), strict=True):  # dropout differs, data and masks do not
        assert line["hours"] == other["hours"] and line["lr"] == other["lr"]
        assert line["loss"] == pytest.approx(other["loss"], rel=0.2)


def test_sharded_runs_write_whole_models(tmp_path):
    """FSDP2 on two ranks, from pre-training to a recognizer: both files load in one process, and decode."""
    cuts = write_cuts(tmp_path / "cuts", [0.6 + 0.1 * (i % 5) for i in range(8)], lips=range(8))
    data = {"data.cuts": [cuts], "data.valid_cuts": [cuts], "training.parallel": "fsdp2"}
    pretrain, finetune = tmp_path / "pretrain", tmp_path / "finetune"
    ranks = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    for words in (
        ("pretrain", write_run(tmp_path / "pretrain.yaml", PRETRAIN, data), pretrain),
        ("finetune", write_run(tmp_path / "ft.yaml", FINETUNE, data), finetune, "--encoder", pretrain / "encoder"),
    ):
        process = start(words[1], words[2], *ranks, command=words[0], more=words[3:])
        try:
            assert process.wait(timeout=120) == 0, words[2].with_suffix(".txt").read_text()
        finally:
            end(process)
    for folder, last in ((pretrain / "encoder", "encoder"), (finetune / "model", "model")):
        weights = load_file(folder / f"{last}.safetensors")
        assert all(tensor.numel() and tensor.isfinite().all() for tensor in weights.values())
    assert command("decode", finetune / "model", cuts, tmp_path / "decode", "--modality", "av") == 0


@pytest.mark.parametrize("ranks", [(1, 2), (2, 1), (3, 2)])
def test_no_cut_is_lost_or_repeated_when_the_number_of_ranks_changes(tmp_path, monkeypatch, ranks):
    """After 4 updates on some ranks and a stop, other ranks go on: every cut comes once in each pass."""
    durations = [0.5 + 0.1 * (i % 7) for i in range(23)]
    cuts = write_cuts(tmp_path, durations)
    config = DataConfig(
        cuts=[cuts], streams={"audio": {"reader": "logmel"}}, units="km", batch_s=5.0, max_batch_s=1.5, workers=0
    )
    reading = make_reading(config, seed=3, train=True)
    seen: Counter[tuple[int, str]] = Counter()
    state = None
    for number, updates in zip(ranks, (4, 11), strict=True):
        states = []
        for rank in range(number):
            monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
            monkeypatch.setattr(dist, "world_size", lambda number=number: number)
            stream = TrainingStream(config, reading, seed=3)
            if state is not None:
                stream.load_state_dict(state)
            groups = iter(stream)
            for _ in range(updates):
                for _, batch in next(groups):
                    seen.update(zip(batch.passes, batch.ids, strict=True))
                stream.trained()
            next(groups)  # loaded ahead, never trained
            states.append(stream.state_dict())
        assert all(other == states[0] for other in states)
        state = states[0]
    assert state["pass"] >= 2
    wanted = {(number, f"clip{i:03d}") for number in range(state["pass"]) for i in range(len(durations))}
    assert wanted <= seen.keys() and set(seen.values()) == {1}


ENDS_EARLY = """
import sys
from pathlib import Path
from mmspeech import config
from mmspeech.cli.pretrain import UHubertRun
from mmspeech.data.loader import TrainingStream, make_reading

data = config.load(Path(sys.argv[1]), UHubertRun).data
groups = iter(TrainingStream(data, make_reading(data, seed=0, train=True)))
next(groups)
raise RuntimeError("a mistake of ours")
"""


def test_process_that_ends_by_an_error_does_not_wait_for_its_workers(conf):
    """They outlive a SIGTERM from others; the one from their parent at its end they obey."""
    words = [sys.executable, "-c", ENDS_EARLY, conf]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and "a mistake of ours" in done.stderr
