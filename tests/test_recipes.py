"""Every YAML of the recipes loads, plans point at files that exist, and run.sh explains itself."""

import math
import subprocess
from pathlib import Path

import pytest

from mmspeech import config as configs
from mmspeech.cli import finetune, pretrain, sweep
from mmspeech.data.noise import NoiseConfig
from mmspeech.errors import UserError
from mmspeech.plan import Plan, main, noisy

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
    swept = configs.build(tree.get("sweep", {"grid": {"seed": [1]}}), sweep.Sweep, file)
    for _, settings in sweep.combinations(swept.grid):
        run = finetune.read(file, Path("encoder"), settings)
        stages = run.training.warmup_updates + run.training.hold_updates + (run.training.decay_updates or 0)
        assert stages <= run.training.updates


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda file: file.stem)
def test_plans_name_files_that_exist(file):
    plan = configs.load(file, Plan)
    for name in [*plan.pretrain, *plan.finetune]:
        assert (file.parent / name).is_file(), name
    for name, clusters in zip(plan.pretrain, plan.clusters, strict=True):
        assert configs.read(file.parent / name)["objective"]["num_units"] == clusters


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda file: file.stem)
def test_433_hours_of_labels_are_pretrain_and_trainval(file):
    """A recognizer is tuned on the hours in its name; LRS3's trainval has 30."""
    plan = configs.load(file, Plan)
    for name, labelled in zip(plan.finetune, plan.labelled, strict=True):
        assert labelled == ("pretrain+trainval" if "433h" in name else "trainval"), name


def test_every_recognizer_of_the_papers_is_in_a_plan_or_a_row():
    named = {name for file in CONF.glob("*.yaml") for name in configs.load(file, Plan).finetune}
    named |= {name.removeprefix("../") for file in CONF.glob("rows/*.yaml") for name in configs.read(file)["finetune"]}
    assert {f"finetune/{file.name}" for file in CONF.glob("finetune/*[0-9]h-*.yaml")} <= named


@pytest.mark.parametrize("file", sorted(CONF.glob("*/*-24gb.yaml")), ids=lambda file: file.stem)
def test_a_variant_for_24_gb_makes_the_same_update_in_smaller_batches(file):
    """Nothing else differs, and the longest clip still fits into a batch: else an update would hold more seconds."""
    ours, base = configs.read(file), configs.read(file.with_name(file.name.replace("-24gb", "")))
    assert ours["training"]["precision"] == "bf16"
    assert base["data"]["max_batch_s"] / ours["data"]["max_batch_s"] == 2
    assert ours["data"]["max_batch_s"] >= min(ours["data"]["max_s"], ours["data"].get("trim_s") or math.inf)
    ours["data"]["max_batch_s"] = base["data"]["max_batch_s"]
    assert ours == base


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


def test_table_6_is_four_files_that_differ_in_modality_dropout_alone():
    """(p_av, p_a, p_v) of the paper's Table 6: BASE, LRS3, 200k updates on 32 GPUs."""
    rows = {
        "av100": (1, 0, 0),
        "av70-a15-v15": (0.7, 0.15, 0.15),
        "av50-a25-v25": (0.5, 0.25, 0.25),
        "av50-a15-v35": (0.5, 0.15, 0.35),
    }
    trees = {}
    for name, shares in rows.items():
        run = configs.load(CONF / "pretrain" / f"{name}.yaml", pretrain.UHubertRun)
        table = run.objective.modality_dropout
        assert tuple(table.get(subset, 0.0) for subset in ("audio+video", "audio", "video")) == shares
        assert (run.model.num_layers, run.model.dim, run.training.updates, run.data.batch_s) == (
            12,
            768,
            200_000,
            32 * 40,
        )
        trees[name] = configs.plain(run)
        del trees[name]["objective"]["modality_dropout"]
    assert all(tree == trees["av100"] for tree in trees.values())


def test_mixed_modal_uhubert_differs_from_the_audio_visual_one_in_its_data():
    """LRS3 + VC2-En + TD (Sec. 4.1): sources and codebook stand in the plan, settings in the same file."""
    run = configs.load(CONF / "pretrain/uhubert-large-td.yaml", pretrain.UHubertRun)
    assert run == configs.load(CONF / "pretrain/uhubert-large.yaml", pretrain.UHubertRun)
    assert (run.training.lr, run.training.updates, run.training.clip_norm, run.data.batch_s) == (
        2e-3,
        10**6,
        1.0,
        64 * 40,
    )
    assert run.objective.modality_dropout == {"audio+video": 0.5, "audio": 0.25, "video": 0.25}
    plan = configs.load(CONF / "uhubert-large-td.yaml", Plan)
    assert [(source.cuts, source.first_iteration) for source in plan.sources][-1] == ("tedlium", 5)
    assert (plan.anchor, plan.pseudo_labels, plan.codebook) == ("audio", "complete", ["audio+video"])


def test_a_plan_whose_lists_do_not_match_is_refused():
    with pytest.raises(UserError, match="one entry per iteration"):
        Plan(pretrain=["a.yaml"], units=["mfcc"], clusters=[100, 200], finetune=[])
    with pytest.raises(UserError, match="one entry per file of finetune"):
        Plan(pretrain=[], units=[], clusters=[], finetune=["a.yaml", "b.yaml"], labelled=["trainval"])


def test_noise_without_its_place_is_found_before_anything_runs(tmp_path):
    """What NoiseConfig takes for noise: named, it falls on a quarter of the utterances."""
    noises = {
        "default": "{snr_db: [0, 5]}",
        "given": "{probability: 0.5}",
        "none": "{probability: 0}",
        "placed": "{probability: 0.5, cuts: exp/noise}",
    }
    for name, noise in noises.items():
        (tmp_path / f"{name}.yaml").write_text(f"data: {{noise: {noise}}}\n")
    (tmp_path / "bare.yaml").write_text("seed: 1\n")
    assert [path.stem for path in noisy(sorted(tmp_path.iterdir()))] == ["default", "given"]
    assert NoiseConfig().probability == 0.25  # as plan.py has it


def test_noise_of_pretraining_does_not_matter_where_there_is_none(tmp_path, capsys, monkeypatch):
    """`noisy` looks at all files of a plan, `noisy-finetune` at those that a run with --init uses."""
    for name, noise in (("loud", "{probability: 0.5}"), ("quiet", "{probability: 0}")):
        (tmp_path / f"{name}.yaml").write_text(f"data: {{noise: {noise}}}\n")
    lists = "pretrain: [loud.yaml]\nunits: [mfcc]\nclusters: [9]\nfinetune: [quiet.yaml]\n"
    (tmp_path / "plan.yaml").write_text(lists)
    for key, found in (("noisy", f"{tmp_path / 'loud.yaml'}\n"), ("noisy-finetune", "")):
        monkeypatch.setattr("sys.argv", ["plan", str(tmp_path / "plan.yaml"), key])
        main()
        assert capsys.readouterr().out == found


def test_run_sh_explains_its_stages():
    done = subprocess.run(["bash", ROOT / "recipes/lrs3/run.sh", "--help"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0 and "8  word error rates, table and report" in done.stdout
