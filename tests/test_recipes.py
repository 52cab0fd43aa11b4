"""Every YAML of the recipes loads, plans point at files that exist, and run.sh explains itself."""

import subprocess
from pathlib import Path

import pytest

from mmspeech import config as configs
from mmspeech.cli import finetune, pretrain
from mmspeech.errors import UserError
from mmspeech.plan import Plan

ROOT = Path(__file__).parents[1]
CONF = ROOT / "recipes" / "lrs3" / "conf" / "uhubert"


@pytest.mark.parametrize("file", sorted(CONF.glob("pretrain/*.yaml")), ids=lambda file: file.stem)
def test_pretraining_files_load(file):
    """Keys and values fit; dropped streams are streams of the model."""
    tree = configs.read(file)
    run = configs.build(tree, pretrain.RUNS[tree["system"]][0], file)
    named = {name for subset in run.objective.modality_dropout for name in subset.split("+")}
    assert named <= set(run.model.streams) and set(run.data.streams) == set(run.model.streams)


@pytest.mark.parametrize("file", sorted(CONF.glob("finetune/*.yaml")), ids=lambda file: file.stem)
def test_finetuning_files_load(file):
    """Keys and values fit; a tri-stage schedule ends within the updates."""
    tree = configs.read(file)
    run = configs.build(tree, finetune.RUNS[tree["task"]][0], file)
    stages = run.training.warmup_updates + run.training.hold_updates + (run.training.decay_updates or 0)
    assert stages <= run.training.updates


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda file: file.stem)
def test_plans_name_files_that_exist(file):
    plan = configs.load(file, Plan)
    for name in [*plan.pretrain, *plan.finetune]:
        assert (file.parent / name).is_file(), name
    for name, clusters in zip(plan.pretrain, plan.clusters, strict=True):
        assert configs.read(file.parent / name)["objective"]["num_units"] == clusters


def test_published_values_are_those_of_the_papers():
    """Spot checks against the tables: BASE iteration 1 and 5, LARGE, u-HuBERT."""
    load = lambda name: configs.load(CONF / "pretrain" / f"{name}.yaml", pretrain.UHubertRun)  # noqa: E731
    first, fifth, large, ours = map(load, ("base-lrs3-iter1", "base-lrs3-iter5", "large-vox-iter5", "uhubert-large"))
    assert (first.objective.masking, first.objective.modality_dropout) == ("feature", {"audio+video": 1.0})
    assert (fifth.objective.masking, fifth.objective.num_units, fifth.training.lr) == ("input", 2000, 5e-4)
    assert fifth.objective.input_masks["video"].probability == 0.3 and fifth.objective.unmasked_weight == 0.0
    assert (large.model.num_layers, large.model.dim, large.objective.unmasked_weight) == (24, 1024, 1.0)
    assert (large.data.batch_s, large.data.trim_s, large.training.updates) == (2560, 16, 600_000)
    assert (ours.training.updates, ours.training.clip_norm, ours.data.noise.probability) == (1_000_000, 1.0, 0.25)


def test_a_plan_whose_lists_do_not_match_is_refused():
    with pytest.raises(UserError, match="one entry per iteration"):
        Plan(pretrain=["a.yaml"], units=["mfcc"], clusters=[100, 200], finetune=[])


def test_run_sh_explains_its_stages():
    done = subprocess.run(["bash", ROOT / "recipes/lrs3/run.sh", "--help"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0 and "8  word error rates, table and report" in done.stdout
