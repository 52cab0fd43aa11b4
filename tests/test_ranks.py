"""One update is the same update however its items are dealt over ranks and batches."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from training_toys import Toy, ToyGroups, on_ranks, toy_config, validation

from mmspeech.training import checkpoint, trainer

CPU = torch.device("cpu")

# Items 0 and 1 of each update have lips, 2 and 3 have none: `lips` is a part that some ranks lack.
DEALS = {
    "two batches": [[[0, 1], [2, 3]]],
    "four batches": [[[0], [3], [1], [2]]],
    "two ranks": [[[0, 1]], [[2, 3]]],
    "unequal": [[[0], [1], [2]], [[3]]],
    "lips first": [[[0, 1], [2]], [[3]]],
}


def train(folder: Path, deal: list[list[list[int]]], *, drop: float = 0.0, **changes: object) -> None:
    # FSDP2 wants the same parameters to take part on all ranks.
    toy = Toy(drop=drop, everywhere=changes.get("parallel") == "fsdp2")
    trainer.run(toy, ToyGroups(deal), toy_config(updates=3, **changes), folder, device=CPU, validation=validation())


def two_ranks(folder: str) -> None:
    """In each of two processes: every deal for two ranks, DDP and FSDP2, and a resumed FSDP2 run."""
    for name, deal in DEALS.items():
        if len(deal) == 2:
            train(Path(folder) / f"ddp {name}", deal)
            train(Path(folder) / f"fsdp2 {name}", deal, parallel="fsdp2")
    train(Path(folder) / "dropped", DEALS["unequal"], drop=0.5, parallel="fsdp2")
    train_in_parts(Path(folder) / "resumed", DEALS["unequal"])


def train_in_parts(folder: Path, deal: list[list[list[int]]]) -> None:
    """Stop after two of three updates, begin again with fresh weights; sharded."""
    config = toy_config(updates=3, checkpoint_every=1, parallel="fsdp2")
    groups = ToyGroups(deal)

    def stop(update: int) -> None:
        if update == 2:
            raise InterruptedError

    groups.before = stop
    with pytest.raises(InterruptedError):
        trainer.run(Toy(everywhere=True), groups, config, folder, device=CPU, validation=validation())
    trainer.run(Toy(everywhere=True), ToyGroups(deal), config, folder, device=CPU, validation=validation())


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """All runs: those of one process here, those of two ranks in two."""
    folder = tmp_path_factory.mktemp("runs")
    for done in on_ranks(2, "test_ranks:two_ranks", folder):
        assert done.returncode == 0, done.stderr
    for name, deal in DEALS.items():
        if len(deal) == 1:
            train(folder / f"one {name}", deal)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read(folder / "checkpoints/step-0000003.ckpt")["model"]


@pytest.mark.parametrize(
    "name",
    ["one four batches"]
    + [f"{how} {deal}" for how in ("ddp", "fsdp2") for deal in ("two ranks", "unequal", "lips first")],
)
def test_update_does_not_depend_on_ranks_or_batches(runs, name):
    """Three updates: the same weights to 1e-6, though a rank may lack a part of the loss and all lips."""
    expected = weights(runs / "one two batches")
    assert (expected["video.weight"] - Toy().video.weight).abs().max() > 1e-4
    for key, value in weights(runs / name).items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-6, msg=f"{name}: {key}")


def test_logged_figures_are_those_of_all_ranks(runs):
    """Losses, gradient norms, ratios, validation: the same lines from two ranks as from one process."""

    def lines(name: str) -> list[dict]:
        return [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]

    for one, two in zip(lines("one two batches"), lines("ddp unequal"), strict=True):
        one.pop("frames_per_s", None), two.pop("frames_per_s", None)
        assert one.keys() == two.keys()
        assert {k: v for k, v in two.items() if k != "kind"} == pytest.approx(
            {k: v for k, v in one.items() if k != "kind"}, rel=1e-4, abs=1e-6
        )


def test_sharded_run_resumes(runs):
    """Weights and moments of FSDP2 go through the checkpoint whole."""
    expected = weights(runs / "fsdp2 unequal")
    for key, value in weights(runs / "resumed").items():
        assert torch.equal(value, expected[key]), key


def test_blocks_are_dropped_alike_on_sharded_ranks(runs):
    """Each rank has random numbers of its own; if they decided who runs a block, sharded ranks would wait for ever."""
    assert not torch.equal(weights(runs / "dropped")["head.weight"], weights(runs / "fsdp2 unequal")["head.weight"])


def test_checkpoint_of_two_ranks_serves_one(runs, tmp_path):
    """What FSDP2 wrote on two ranks is gone on with by one process."""
    shutil.copytree(runs / "resumed", tmp_path / "one")
    toy = Toy()
    config = toy_config(updates=4)
    trainer.run(toy, ToyGroups(DEALS["two batches"]), config, tmp_path / "one", device=CPU)
    assert checkpoint.kept(tmp_path / "one/checkpoints")[-1] == 4
