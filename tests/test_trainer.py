"""The loop: what it logs, keeps, skips, refuses; and that a killed run goes on as if nothing had been."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from training_toys import Toy, ToyGroups, item, join, kill_self_before, on_ranks, toy_config, validation

from mmspeech.batch import Batch, Loss
from mmspeech.errors import UserError
from mmspeech.training import optimizers, parallel, trainer
from mmspeech.training.step import agree, train_step
from mmspeech.training.validate import Best

CPU = torch.device("cpu")
DEAL = [[[0, 1], [2, 3]]]


def metrics(folder: Path, kind: str, name: str = "loss") -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines if line["kind"] == kind]


def train(folder: Path, toy: nn.Module | None = None, groups: ToyGroups | None = None, **changes: object) -> nn.Module:
    toy = toy if toy is not None else Toy(dropout=0.2, norm=True)
    config = toy_config(**changes)
    trainer.run(toy, groups or ToyGroups(DEAL), config, folder, device=CPU, validation=validation())
    return toy


def killed(folder: str) -> None:
    """In a process of its own: train, and die without a word before the sixth update."""
    groups = ToyGroups(DEAL)
    groups.before = kill_self_before(5)
    train(Path(folder), groups=groups)


def test_resumed_run_equals_uninterrupted_run(tmp_path):
    """kill -9 after five updates, checkpoint at four: the same losses and weights, to the last bit, with dropout."""
    whole = train(tmp_path / "whole")
    (dead,) = on_ranks(1, "test_trainer:killed", tmp_path / "parts")
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    assert len(metrics(tmp_path / "parts", "train")) == 5
    parts = train(tmp_path / "parts")

    for kind, number in (("train", 10), ("valid", 3)):
        losses = metrics(tmp_path / "whole", kind)
        assert len(losses) == number and len(set(losses)) == number
        assert metrics(tmp_path / "parts", kind) == losses
    for (name, ours), theirs in zip(parts.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert "resumed after update 4" in (tmp_path / "parts" / "log.txt").read_text()


def test_an_objective_sees_what_is_logged_and_its_warning_is_said(tmp_path):
    """Of training and of validation, with the update; a collapse may show in either first."""

    class Watched(Toy):
        def watch(self, update: int, figures: dict[str, float]) -> str | None:
            self.seen.append((update, figures["loss"]))
            return f"warning: at {update}" if "lr" not in figures else None

    toy = Watched(dropout=0.2, norm=True)
    toy.seen = []
    train(tmp_path, toy)
    said = (tmp_path / "log.txt").read_text()
    logged = metrics(tmp_path, "train") + metrics(tmp_path, "valid")
    assert sorted(loss for _, loss in toy.seen) == sorted(logged) and len(metrics(tmp_path, "valid")) == 3
    assert said.count("warning: at ") == 3 and "warning: at 10" in said


def test_two_runs_do_not_write_into_one_folder(tmp_path):
    """While another process trains in it, a folder is refused; one that was killed does not keep it."""
    hold = "import sys, pathlib; from mmspeech import files\nwith files.alone_in(pathlib.Path(sys.argv[1])):\n"
    words = [sys.executable, "-c", f"{hold} print('in', flush=True); input()", str(tmp_path / "run")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"in\n"
        with pytest.raises(UserError, match="run: another process is at work in it; wait"):
            train(tmp_path / "run")
        other.kill()
    train(tmp_path / "run")


def test_sigterm_leaves_a_checkpoint_and_exits_with_143(tmp_path):
    """Also between the checkpoints of the schedule; the run that goes on equals one that was never stopped."""
    whole = train(tmp_path / "whole")
    groups = ToyGroups(DEAL)
    groups.before = lambda update: os.kill(os.getpid(), signal.SIGTERM) if update == 4 else None
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path / "parts", groups=groups)
    assert stopped.value.code == 143
    assert (tmp_path / "parts/checkpoints/step-0000005.ckpt").exists()
    parts = train(tmp_path / "parts")
    assert metrics(tmp_path / "parts", "train") == metrics(tmp_path / "whole", "train")
    assert torch.equal(parts.head.weight, whole.head.weight)


def test_finished_run_is_only_loaded(tmp_path):
    first = train(tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text()
    again = train(tmp_path)
    assert torch.equal(first.head.weight, again.head.weight)
    assert (tmp_path / "metrics.jsonl").read_text() == lines


def test_run_may_be_prolonged(tmp_path):
    train(tmp_path, updates=4)
    train(tmp_path, updates=6)
    assert len(metrics(tmp_path, "train")) == 6


def test_best_last_and_average_are_what_they_say(tmp_path):
    """The best by a figure of the objective, where more is better; the mean of the last two checkpoints."""
    best = train(tmp_path, select="small", use="best", average_last=2)
    figures = dict(zip((4, 8, 10), metrics(tmp_path, "valid", "small"), strict=True))
    update = max(figures, key=lambda u: (figures[u], -u))
    read = trainer.checkpoint.read
    folder = tmp_path / "checkpoints"
    assert torch.equal(best.head.weight, read(folder / f"step-{update:07d}.ckpt")["model"]["head.weight"])

    used = train(tmp_path, select="small", use="average", average_last=2)
    last = [read(folder / f"step-{u:07d}.ckpt")["model"]["head.weight"] for u in (8, 10)]
    torch.testing.assert_close(used.head.weight.detach(), (last[0] + last[1]) / 2)
    assert (folder / "average-2.safetensors").exists()


def test_a_figure_that_is_no_number_is_never_the_best():
    """A first one would stay for ever: nothing is smaller than it."""
    best = Best("loss")
    assert not best.better({"loss": float("nan")}, 1) and best.update is None
    assert best.better({"loss": 3.0}, 2) and not best.better({"loss": float("nan")}, 3)
    assert (best.value, best.update) == (3.0, 2)


def test_unknown_figure_to_select_by_is_named(tmp_path):
    with pytest.raises(UserError, match="no validation figure `wer`; there are loss, loss/lips, loss/masked, small"):
        train(tmp_path, select="wer")


class Poison(Toy):
    """The loss of lips is not finite in the updates of `bad`."""

    def __init__(self, bad: set[int]) -> None:
        super().__init__()
        self.bad = bad

    def forward(self, batch: Batch, update: int) -> Loss:
        loss = super().forward(batch, update)
        if update in self.bad and "video" in batch.streams:
            total, weight = loss.parts["lips"]
            loss.parts["lips"] = (total * torch.inf, weight)
        return loss


def test_step_that_is_not_finite_is_skipped_and_its_cuts_are_named(tmp_path):
    """Weights and Adam's moments are as if the update had not been; only the batch with the bad loss is accused."""
    toy = train(tmp_path / "bad", Poison({1}), updates=2, log_every=2)
    train(tmp_path / "good", Poison(set()), updates=2, checkpoint_every=1)
    after_one = trainer.checkpoint.read(tmp_path / "good/checkpoints/step-0000001.ckpt")
    after_bad = trainer.checkpoint.read(tmp_path / "bad/checkpoints/step-0000002.ckpt")
    for name, weights in toy.state_dict().items():
        assert torch.equal(weights, after_one["model"][name]), name
    for name, moments in after_one["optimizer"].items():
        assert all(torch.equal(value, after_bad["optimizer"][name][key]) for key, value in moments.items()), name
    text = (tmp_path / "bad/log.txt").read_text()
    assert "update 2: loss or gradient not finite, step skipped; cuts: cut4, cut5\n" in text


def test_run_stops_after_so_many_updates_that_are_not_finite(tmp_path):
    with pytest.raises(UserError, match="update 6: not finite for the 3th time in a row, expected less than 3"):
        train(tmp_path, Poison({0, 1, 3, 4, 5, 6}), max_nonfinite=3)


class Couples(Toy):
    couples_items = True


def test_loss_that_couples_items_is_not_split(tmp_path):
    with pytest.raises(UserError, match="cannot be split into 2 batches; raise"):
        train(tmp_path, Couples())
    train(tmp_path, Couples(), ToyGroups([[[0, 1]]]), updates=1)


class Hooked(Toy):
    """Audio alone until update 3; keeps a mean of the head's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", self.head.weight.detach().clone())
        self.calls: list[tuple[str, int]] = []

    def freeze(self, update: int) -> None:
        self.calls.append(("freeze", update))
        self.video.requires_grad_(update >= 3)

    def after_step(self, update: int, skipped: torch.Tensor) -> None:
        self.calls.append(("after", update))
        self.mean.lerp_(self.head.weight.detach(), 0.5)


def test_hooks_run_around_each_step(tmp_path):
    """freeze(u) before, after_step(u) behind step u; frozen weights stay, thawed ones move."""
    toy = Hooked()
    start = toy.video.weight.detach().clone()
    train(tmp_path, toy, updates=5, checkpoint_every=1, keep_last=9)
    steps = [call for call in toy.calls if call != ("freeze", 0)]
    assert steps == [("after", 0), *[(name, u) for u in range(1, 5) for name in ("freeze", "after")]]
    weights = [trainer.checkpoint.read(path)["model"] for path in sorted((tmp_path / "checkpoints").glob("step*"))]
    moved = [not torch.equal(one["video.weight"], start) for one in weights]
    assert moved == [False, False, False, True, True]
    assert not torch.equal(weights[1]["mean"], weights[0]["mean"])


class Rehearsed(ToyGroups):
    size = 50

    def longest(self) -> Iterator[tuple[str, Batch]]:
        self.batches = getattr(self, "batches", 0) + 1
        yield "toy", join([item(1000 + i, video=True) for i in range(self.size)])


def test_longest_batch_is_tried_first_and_leaves_no_trace(tmp_path, capsys):
    """The same weights, batch-norm statistics and losses as without it; one line says what it took."""
    plain = train(tmp_path / "plain")
    groups = Rehearsed(DEAL)
    tried = train(tmp_path / "tried", groups=groups)
    assert groups.batches == 1
    assert "longest batch (50 items, 250 frames of audio+video): peak" in (tmp_path / "tried/log.txt").read_text()
    assert metrics(tmp_path / "tried", "train") == metrics(tmp_path / "plain", "train")
    for name, weights in plain.state_dict().items():
        assert torch.equal(weights, tried.state_dict()[name]), name


class Shy(Toy):
    """Frozen at first, and its draws leave out lips; notes what the rehearsal gave it."""

    def draw(self, batch: Batch, update: int) -> Batch:
        batch = super().draw(batch, update)
        batch.present = {name: torch.zeros(len(batch), dtype=torch.bool) for name in batch.streams}
        return batch

    def forward(self, batch: Batch, update: int) -> Loss:
        if len(batch) == 50:
            self.tried = (update, {name: bool(present.all()) for name, present in batch.present.items()})
        return super().forward(batch, update)


def test_longest_batch_is_tried_thawed_and_with_all_streams(tmp_path):
    """As in the last update: what is frozen, or dropped by chance, would need its memory later."""
    shy = Shy()
    train(tmp_path, shy, Rehearsed(DEAL))
    assert shy.tried == (10, {"audio": True, "video": True})


class Hungry(Toy):
    def forward(self, batch: Batch, update: int) -> Loss:
        if len(batch) == 50:
            torch.empty(2**60, dtype=torch.uint8)
        return super().forward(batch, update)


def test_batch_that_does_not_fit_is_an_error_with_advice(tmp_path):
    with pytest.raises(
        UserError, match=r"longest batch \(50 items, 250 frames of .*\) does not fit .*data.max_batch_s"
    ):
        train(tmp_path, Hungry(), Rehearsed(DEAL))


def test_several_objectives_share_an_update(tmp_path):
    """Each part is named after its objective; a group may hold any of them."""

    class Two(ToyGroups):
        def __iter__(self):
            for group in super().__iter__():
                yield [("a", group[0][1]), ("b", group[1][1])]

    both = nn.ModuleDict({"a": Toy(), "b": Toy()})
    trainer.run(both, Two(DEAL), toy_config(updates=2), tmp_path, device=CPU)
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"loss/a/masked", "loss/a/lips", "loss/b/masked"} <= line.keys()
    assert line["loss"] == pytest.approx(line["loss/a/masked"] + line["loss/b/masked"] + 0.01 * line["loss/a/lips"])


def test_logs_say_what_was_seen(tmp_path):
    """20 frames of 40 ms per update; the share of small errors is a ratio over both batches; curves are written."""
    train(tmp_path, updates=2)
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])
    assert line["hours"] == pytest.approx(2 * 20 * 0.04 / 3600)
    assert 0 <= line["small"] <= 1 and line["lr"] == 0.02
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_an_idle_batch_leaves_the_update_as_it_is():
    """A rank without a usable cut trains on one that does not count."""
    after = []
    for idle in ([], [1]):
        toy = Toy()
        optimizer = optimizers.build(toy, "adam", weight_decay=0.0)
        optimizers.set_rates(optimizer, 0.1, 0)
        batches = [item(0, video=True), *(dataclasses.replace(item(n, video=True), idle=True) for n in idle)]
        group = [("toy", toy.draw(batch, 0)) for batch in batches]
        agreed = agree(parallel.Dispatch(toy), group)
        outcome = train_step(parallel.Dispatch(toy), group, agreed.counts, optimizer, update=0, clip_norm=None)
        weights = torch.cat([parameter.detach().flatten() for parameter in toy.parameters()])
        after.append((agreed.frames, outcome.losses.sum(), outcome.logs["small"][1], weights))
    for alone, accompanied in zip(*after, strict=True):
        torch.testing.assert_close(alone, accompanied)
