"""One update is the same however the batches of real speech are dealt: u-HuBERT on sound and lips, VATLM on
phones, too, all read from disk."""

import json
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from cuts import PRETRAIN, VATLM, write_cuts, write_run
from training_toys import on_ranks

from mmspeech import dist
from mmspeech.cli import pretrain
from mmspeech.data.loader import TrainingStream, make_reading
from mmspeech.pretraining.uhubert import UHubert
from mmspeech.pretraining.vatlm import Vatlm
from mmspeech.training import checkpoint, trainer

CUTS = 4
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "input_dropout": 0.0, "layer_drop": 0.0}


def make(conf: Path) -> tuple[UHubert | Vatlm, TrainingStream, pretrain.Run]:
    """What `mmspeech pretrain` makes of a YAML; the front-ends' batch norm does not look at the batch."""
    config = pretrain.read(conf, [], dry_run=False)
    torch.manual_seed(config.seed)
    objective = pretrain.objective_of(config, pretrain.build(config))
    objective.encoder.frontends.eval()
    stream = TrainingStream(config.data, make_reading(config.data, seed=config.seed, train=True), seed=config.seed)
    return objective, stream, config


def train(conf: Path) -> None:
    """Two updates, beside the YAML. Writes which cuts of which pass this rank saw in which update."""
    objective, stream, config = make(conf)
    seen: list[list[list[str]]] = []

    class Noted:
        """The stream, and a list of what it handed out."""

        def __iter__(self):
            for group in stream:
                seen.append([[f"{batch.passes[0]} {name}" for name in batch.ids] for _, batch in group])
                yield group

        trained, state_dict, longest = stream.trained, stream.state_dict, stream.longest

    trainer.run(objective, Noted(), config.training, conf.with_suffix(""), device=torch.device("cpu"))
    conf.with_suffix(f".{dist.rank()}.json").write_text(json.dumps(seen))


def two_ranks(folder: str) -> None:
    """In each of two processes: every run for two ranks."""
    for conf in sorted(Path(folder).glob("*two ranks.yaml")):
        train(conf)


def write_runs(
    folder: Path, name: str, lips: Collection[int], phones: Collection[int] = (), silent: Collection[int] = ()
) -> None:
    """Cuts, and three runs on them: four cuts in one batch; in two; in two on two ranks. A pass is an update."""
    path = write_cuts(folder, [1.0] * CUTS, name=f"{name}.jsonl.gz", lips=lips, phones=phones, silent=silent)
    # Adam divides by the gradient's size: with a small eps it turns rounding errors into steps.
    training = {"updates": 2, "eps": 1e-3, "schedule": "constant", "clip_norm": 1.0, "checkpoint_every": 2}
    changes = {f"training.{key}": value for key, value in training.items()}
    changes |= {f"model.{key}": value for key, value in NO_DROPOUT.items()} | {"data.cuts": [path]}
    changes |= VATLM if phones else {}
    for how, most in (("one batch", 4.0), ("two batches", 2.0), ("two ranks", 2.0)):
        write_run(folder / f"{name} {how}.yaml", PRETRAIN, changes | {"data.max_batch_s": most})


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """All runs, with lips on every cut, and on those alone that one rank gets in the first update; of VATLM, the other
    rank has sound with phones, and phones."""
    folder = tmp_path_factory.mktemp("equal")
    write_runs(folder, "all", range(CUTS))
    _, stream, _ = make(folder / "all two batches.yaml")
    first = next(iter(stream))[0][1]  # the order of the cuts does not depend on what is in them
    lips = [int(name.removeprefix("clip")) for name in first.ids]
    phones = sorted({*range(CUTS)} - {*lips})
    write_runs(folder, "some", lips)
    write_runs(folder, "vatlm", lips, phones, phones[:1])
    for conf in sorted(folder.glob("*.yaml")):
        if "two ranks" not in conf.name:
            train(conf)
    for done in on_ranks(2, "test_updates_equal:two_ranks", folder):
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", ["all", "some", "vatlm"])
def test_the_same_cuts_are_dealt_in_three_ways(runs, name):
    """What the next test compares: the same four cuts in each update, in other batches."""

    def seen(how: str, rank: int) -> list[list[list[str]]]:
        return json.loads((runs / f"{name} {how}.{rank}.json").read_text())

    for update in range(2):
        whole = sorted(f"{update} clip{i:03d}" for i in range(CUTS))
        (one,) = seen("one batch", 0)[update]
        two = seen("two batches", 0)[update]
        ranks = [seen("two ranks", rank)[update] for rank in range(2)]
        assert sorted(one) == whole and [len(batch) for batch in two] == [2, 2] and sorted(two[0] + two[1]) == whole
        assert [*ranks[0], *ranks[1]] == two


@pytest.mark.parametrize("how", ["two batches", "two ranks"])
@pytest.mark.parametrize("name", ["all", "some", "vatlm"])
def test_update_does_not_depend_on_how_its_cuts_are_dealt(runs, name, how):
    """Two updates: the same weights to 1e-6, and the same losses, also where only one rank has lips, or text."""

    def weights(how: str) -> dict[str, torch.Tensor]:
        return checkpoint.read(runs / f"{name} {how}" / "checkpoints" / "step-0000002.ckpt")["model"]

    def losses(how: str) -> list[float]:
        lines = (runs / f"{name} {how}" / "metrics.jsonl").read_text().splitlines()
        return [figure for line in map(json.loads, lines) for figure in (line["loss"], line["grad_norm"])]

    start, expected = make(runs / f"{name} one batch.yaml")[0].state_dict(), weights("one batch")
    text = ["encoder.frontends.text.embedding.weight"] if name == "vatlm" else []
    for key in ("encoder.frontends.video.project.weight", "encoder.frontends.audio.project.weight", "codebook", *text):
        assert (expected[key] - start[key]).abs().max() > 1e-4, key
    for key, value in weights(how).items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-6, msg=f"{name}, {how}: {key}")
    assert losses(how) == pytest.approx(losses("one batch"), rel=1e-5)
