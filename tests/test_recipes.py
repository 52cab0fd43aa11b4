"""Every YAML of the recipes loads, plans point at files that exist, and run.sh explains itself."""

import itertools
import math
import subprocess
from pathlib import Path

import pytest
import yaml

from mmspeech import config as configs
from mmspeech.cli import finetune, pretrain, sweep
from mmspeech.data.noise import NoiseConfig
from mmspeech.data.reading import check_streams
from mmspeech.errors import UserError
from mmspeech.plan import Plan, main, noisy
from mmspeech.pretraining.avdata2vec import AVData2vecConfig
from mmspeech.pretraining.vatlm import VatlmConfig

ROOT = Path(__file__).parents[1]
LRS3 = ROOT / "recipes" / "lrs3" / "conf"
CONF, DATA2VEC, VATLM = LRS3 / "uhubert", LRS3 / "av-data2vec", LRS3 / "vatlm"
SYSTEMS = sorted(folder.parent for folder in LRS3.glob("*/pretrain"))


def files(pattern):
    """As parameters of a test: those of every system."""
    found = [file for system in SYSTEMS for file in sorted(system.glob(pattern))]
    return pytest.mark.parametrize("file", found, ids=lambda file: str(file.relative_to(LRS3).with_suffix("")))


@files("pretrain/*.yaml")
def test_pretraining_files_load(file):
    """Keys and values fit; dropped streams are streams of the model; a tri-stage schedule ends with the updates."""
    tree = configs.read(file)
    run = configs.build(tree, pretrain.RUNS[tree["system"]][0], file)
    check_streams(run.data.streams)
    objective, training = run.objective, run.training
    tables = [objective.modality_dropout] if tree["system"] == "uhubert" else []
    if tree["system"] == "av-data2vec":
        tables = [objective.student.otherwise, objective.teacher.otherwise, objective.unmasked_weight]
        assert run.data.units is None and (objective.top_k or 1) <= run.model.num_layers
        assert objective.watch_after < training.updates, "a collapse would never be told"
    if tree["system"] == "vatlm":
        tables = [objective.modality_dropout, objective.weights]
    named = {name for table in tables for subset in table for name in subset.split("+")}
    taken = set(getattr(run.model, "streams", run.data.streams))  # a phoneme-to-unit model takes what is read
    assert named <= taken and set(run.data.streams) == taken
    if training.schedule == "tri_stage":
        assert training.warmup_updates + training.hold_updates + training.decay_updates == training.updates


@files("finetune/*.yaml")
def test_finetuning_files_load(file):
    """Keys and values fit; a tri-stage schedule ends within the updates."""
    tree = configs.read(file)
    swept = configs.build(tree.get("sweep", {"grid": {"seed": [1]}}), sweep.Sweep, file)
    for _, settings in sweep.combinations(swept.grid):
        run = finetune.read(file, Path("encoder"), settings)
        stages = run.training.warmup_updates + run.training.hold_updates + (run.training.decay_updates or 0)
        assert stages <= run.training.updates


@files("*.yaml")
def test_plans_name_files_that_exist(file):
    plan = configs.load(file, Plan)
    for name in filter(None, [*plan.pretrain, *plan.finetune, plan.phone2unit, plan.aligner, plan.teacher]):
        assert (file.parent / name).is_file(), name
    if plan.clusters_units:
        for name, clusters in zip(plan.pretrain, plan.clusters, strict=True):
            assert configs.read(file.parent / name)["objective"]["num_units"] == clusters


@files("*.yaml")
def test_433_hours_of_labels_are_pretrain_and_trainval(file):
    """A recognizer is tuned on the hours in its name; LRS3's trainval has 30."""
    plan = configs.load(file, Plan)
    for name, labelled in zip(plan.finetune, plan.labelled, strict=True):
        assert labelled == ("pretrain+trainval" if "433h" in name else "trainval"), name


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_every_training_of_the_papers_is_in_a_plan_or_a_row(system):
    """Fine-tunings named by hours of labels; but of u-HuBERT every pre-training, too, if it is of no claim."""
    plans = [configs.load(file, Plan) for file in system.glob("*.yaml")]
    rows = [configs.read(file) for file in system.glob("rows/*.yaml")]
    named = {name for plan in plans for name in [*plan.pretrain, *plan.finetune, plan.phone2unit]}
    named |= {name.removeprefix("../") for row in rows for name in [*row["pretrain"], *row["finetune"]]}
    patterns = ["finetune/*[0-9]h-*.yaml", *([] if system == CONF else ["pretrain/*.yaml"])]
    for claims in system.parent.glob(f"claims/{system.name}.yaml"):
        named |= {encoder["conf"] for encoder in configs.read(claims)["encoders"].values()}
    assert {str(file.relative_to(system)) for pattern in patterns for file in system.glob(pattern)} <= named


@files("*/*-24gb.yaml")
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


def test_published_values_of_av_data2vec_are_those_of_the_paper():
    """Sec. 4.2: size, rate, seconds and updates of the four models; what they share; fine-tunings."""
    stated = {
        "base-433h": (12, 768, 3072, 12, 5e-4, 1280, 10**6),
        "base-1759h": (12, 768, 3072, 12, 5e-4, 2560, 2 * 10**6),
        "large-433h": (24, 1024, 4096, 16, 2e-4, 2560, 10**6),
        "large-1759h": (24, 1024, 4096, 16, 2e-4, 2560, 2 * 10**6),
    }
    for name, values in stated.items():
        run = configs.load(DATA2VEC / f"pretrain/{name}.yaml", pretrain.AVData2vecRun)
        model, training = run.model, run.training
        found = (model.num_layers, model.dim, model.ffn_dim, model.heads, training.lr, run.data.batch_s)
        assert (*found, training.updates) == values and model.fusion == "sum"
        assert run.objective == AVData2vecConfig()  # the paper's: test_avdata2vec.py looks at its schedules
        assert (run.objective.mask.probability, run.objective.mask.length) == (0.5, 10)
        assert run.data.max_batch_s >= min(run.data.max_s, run.data.trim_s or math.inf)  # the longest clip fits
    tunings = {  # schedule, updates, warm-up, freeze
        ("30h", "a"): ("tri_stage", 40_000, 10_000, 24_000),
        ("433h", "a"): ("tri_stage", 60_000, 20_000, 48_000),
        ("30h", "av"): ("tri_stage", 40_000, 10_000, 24_000),
        ("433h", "av"): ("tri_stage", 60_000, 20_000, 48_000),
        ("30h", "v"): ("cosine", 40_000, 2_000, 24_000),
        ("433h", "v"): ("cosine", 120_000, 20_000, 48_000),
    }
    decoders = {"base": (6, 768, 3072, 4), "large": (9, 1024, 4096, 8)}
    for ((hours, streams), values), (size, sizes) in itertools.product(tunings.items(), decoders.items()):
        run = configs.load(DATA2VEC / f"finetune/{size}-{hours}-{streams}.yaml", finetune.Seq2SeqRun)
        training, encoder, decoder = run.training, run.objective.encoder, run.objective.decoder
        assert (training.schedule, training.updates, training.warmup_updates, encoder.freeze_updates) == values
        assert (decoder.num_layers, decoder.dim, decoder.ffn_dim, decoder.heads) == sizes
        assert training.lr == 1e-3 and not encoder.modality_dropout and run.data.noise.probability == 0
        assert run.valid_streams == ["+".join(run.streams)]


def test_published_values_of_vatlm_are_those_of_the_paper():
    """Sec. IV-B: sizes, updates, units, lambdas; else those of the published configurations, as fine-tunings are."""
    stated = {  # layers, width, inner, heads, updates; rate, warm-up; batches of an update
        "base-lrs3": (12, 768, 3072, 12, 400_000, 5e-4, 32_000, 64),
        "base-vox": (12, 768, 3072, 12, 400_000, 2e-3, 64_000, 64),
        "large-vox": (24, 1024, 4096, 16, 600_000, 2e-3, 48_000, 128),
    }
    for name, values in stated.items():
        run = configs.load(VATLM / f"pretrain/{name}.yaml", pretrain.VatlmRun)
        model, training = run.model, run.training
        found = (model.num_layers, model.dim, model.ffn_dim, model.heads, training.updates, training.lr)
        batches = math.ceil(run.data.batch_s / run.data.max_batch_s)
        assert (*found, training.warmup_updates, batches) == values
        assert (training.optimizer, model.fusion, list(model.streams)) == ("adam", "concat", ["audio", "video", "text"])
        assert run.objective == VatlmConfig(num_units=2000)  # the paper's: test_vatlm.py looks at it
        assert set(run.objective.weights.values()) == {1.0}
        assert (run.data.min_s, run.data.max_s, run.data.trim_s) == (0.2, 20, None)
        plan = configs.load(VATLM / f"{name}.yaml", Plan)
        corpus = {"base-lrs3": "lrs3", "base-vox": "base-vox", "large-vox": "large-vox"}[name]
        before = configs.load(CONF / f"{corpus}.yaml", Plan)
        assert [CONF / one for one in before.pretrain[:4]] == [(VATLM / one).resolve() for one in plan.pretrain[:4]]
        assert (plan.units, plan.clusters, plan.pretrain[4:]) == (
            before.units,
            before.clusters,
            [f"pretrain/{name}.yaml"],
        )
    tunings = {  # updates, warm-up, decay, freeze, seconds of an update
        "base-lrs3-30h-av": (50_000, 15_000, 20_000, 30_000, 640),
        "base-lrs3-30h-v": (40_000, 10_000, 20_000, 24_000, 640),
        "base-vox-30h-av": (50_000, 15_000, 20_000, 30_000, 640),
        "base-vox-30h-v": (50_000, 15_000, 20_000, 30_000, 640),
        "base-vox-433h-av": (60_000, 20_000, 40_000, 48_000, 640),
        "base-vox-433h-v": (30_000, 10_000, 20_000, 18_000, 640),
        "large-vox-30h-av": (60_000, 20_000, 40_000, 48_000, 320),
        "large-vox-30h-v": (18_000, 6_000, 12_000, 14_400, 320),
        "large-vox-433h-av": (60_000, 20_000, 40_000, 48_000, 320),
        "large-vox-433h-v": (30_000, 10_000, 20_000, 18_000, 320),
    }
    # Recognition of sound alone: not published, nor stated; as of sound and lips.
    tunings |= {name.removesuffix("v"): values for name, values in tunings.items() if name.endswith("-av")}
    streams = {"av": ["audio", "video"], "v": ["video"], "a": ["audio"]}
    decoders = {"base": (6, 768, 3072, 4), "large": (9, 1024, 4096, 8)}
    for name, values in tunings.items():
        run = configs.load(VATLM / f"finetune/{name}.yaml", finetune.Seq2SeqRun)
        training, decoder = run.training, run.objective.decoder
        found = (
            training.updates,
            training.warmup_updates,
            training.decay_updates,
            run.objective.encoder.freeze_updates,
        )
        assert (*found, run.data.batch_s) == values and training.lr == 1e-3 and run.tokenizer.size == 1000
        assert (decoder.num_layers, decoder.dim, decoder.ffn_dim, decoder.heads) == decoders[name.partition("-")[0]]
        kept = streams[name.rpartition("-")[2]]
        assert (run.streams, run.valid_streams) == (kept, ["+".join(kept)])
        assert run.remove == [one for one in ("audio", "video", "text") if one not in kept]


def test_ablations_of_av_data2vec_differ_from_their_base_in_one_setting():
    """Student, teacher, EMA or K (Tables 3-5, Figure 3)."""
    for file in sorted(DATA2VEC.glob("pretrain/ablation-*.yaml")):
        own = yaml.safe_load(file.read_text())
        assert own.keys() == {"base", "objective"} and len(own["objective"]) == 1, file.name
        ours, base = (
            configs.load(one, pretrain.AVData2vecRun).objective for one in (file, file.with_name(own["base"]))
        )
        (setting,) = own["objective"]
        assert getattr(ours, setting) != getattr(base, setting), file.name


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
    with pytest.raises(UserError, match="modalities: needs one entry per file of finetune:"):
        Plan(finetune=["a.yaml", "b.yaml"], modalities=["a"])
    with pytest.raises(UserError, match="beams: and `beam=` in search: are both set"):
        Plan(finetune=["a.yaml"], beams=[1, 5], search=["beam=3"])


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
