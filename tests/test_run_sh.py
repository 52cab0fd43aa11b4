"""recipes/lrs3/run.sh: which commands it gives for a plan and what there is; and once, small, to the end."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from cuts import FINETUNE, PRETRAIN, write_run

from mmspeech import config as configs
from mmspeech import plan
from mmspeech.claim_runs import Runs
from mmspeech.claim_terms import Claims, Encoder

ROOT = Path(__file__).parents[1]
CONF = ROOT / "recipes/lrs3/conf/uhubert"
CURRENT = "current, nothing to do"
GRID = ("s1/bbaf2n", "s3/sbia1a", "s4/lwbsza", "s5/lbax4n")
Recipe = Callable[..., subprocess.CompletedProcess]


def run_sh(
    *words: object, before: str = "", recipe: str = "lrs3", cwd: Path | None = None
) -> subprocess.CompletedProcess:
    """The recipe with the package and the Python of this test; `before` comes first in PATH."""
    path = os.pathsep.join([before, str(Path(sys.executable).parent), os.environ["PATH"]]).lstrip(os.pathsep)
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = ["bash", ROOT / "recipes" / recipe / "run.sh", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, timeout=300, env=env, cwd=cwd)


# What the tests call corpora and lists of files: run.sh looks whether they are there, its stand-ins read none.
PLACES = ["lrs3", "own", "bbc", "d", "data", "m", "musan", "v", "vox", "ted", "giga", "grids", "phones", "marks", "x"]
PLACES += ["tedlium", "gigaspeech", "text", "en.id", "valid.id", "es.tsv", "lexicon.txt", "my words.txt"]


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    """Run the recipe with stand-ins for `mmspeech` and `torchrun` that only print how they were called."""
    for name, line in (("mmspeech", 'echo "$@"'), ("torchrun", 'echo torchrun "$@"')):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{line}\n")
        program.chmod(0o755)

    there = tmp_path / "there"
    for place in PLACES:
        (there / place).mkdir(parents=True)

    def run(*words: object) -> subprocess.CompletedProcess:
        return run_sh(*words, "--exp", tmp_path / "exp", before=str(program.parent), cwd=there)

    return run


def write_splits(folder: Path, **texts: list[str | None]) -> None:
    """cuts_SPLIT.jsonl.gz with one cut per text, as far as run.sh looks at them; None: not transcribed."""
    folder.mkdir(parents=True)
    for split in ("pretrain", "trainval", "valid", "test"):
        with gzip.open(folder / f"cuts_{split}.jsonl.gz", "wt") as file:
            for text in texts.get(split, []):
                supervision = {"id": "a"} | ({"text": text} if text else {})
                file.write(json.dumps({"id": "a", "supervisions": [supervision]}) + "\n")


def test_each_recognizer_is_tuned_on_the_labels_its_plan_gives_it(recipe, tmp_path):
    """30 h: trainval alone; 433 h: pretrain and trainval."""
    mouth = tmp_path / "exp/mouth"
    write_splits(mouth, trainval=["yes"], valid=["yes"], test=["no"])
    done = recipe("--corpus", "lrs3", "--data", "lrs3", "--musan", "musan", "--stage", 6, "--stop-stage", 6)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    small = f"'{mouth}/cuts_trainval.jsonl.gz'"
    large = f"'{mouth}/cuts_pretrain.jsonl.gz',{small}"
    assert {Path(line[1]).stem: next(word for word in line if word.startswith("data.cuts=")) for line in lines} == {
        "base-lrs3-30h-v": f"data.cuts=[{small}]",
        "base-lrs3-433h-v": f"data.cuts=[{large}]",
        "base-noise-30h-av": f"data.cuts=[{small}]",
        "base-noise-433h-av": f"data.cuts=[{large}]",
    }
    assert all(f"data.valid_cuts=['{mouth}/cuts_valid.jsonl.gz']" in line for line in lines)


def test_a_stopped_recipe_waits_until_its_trainer_has_saved(tmp_path):
    """SIGTERM to run.sh alone reaches what it runs, and the line that says how to go on comes after its end."""
    program = tmp_path / "bin" / "mmspeech"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/bash\ntrap 'sleep 0.5; echo saved >&2; exit 143' TERM\necho begun\nsleep 30 > /dev/null 2>&1 & wait\n"
    )
    program.chmod(0o755)
    path = os.pathsep.join([str(program.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    line = ["bash", str(ROOT / "recipes/lrs3/run.sh"), "--exp", str(tmp_path / "exp")]
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as recipe:
        assert recipe.stdout is not None and recipe.stdout.readline() == "begun\n"
        recipe.terminate()
        _, said = recipe.communicate(timeout=20)
    assert recipe.returncode != 0
    assert "saved\n" in said and said.index("saved\n") < said.index("go on from there with"), said


def test_a_row_that_is_not_there_is_told_with_its_neighbours(recipe):
    done = recipe("--row", CONF / "rows/table2-drop-x.yaml", "--dry-run")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    near = done.stderr.partition("no such file; recipes/lrs3/conf/SYSTEM/rows has ")[2].split()
    assert set(near[:3]) == {"table2-drop-v", "table2-drop-a", "table2-drop-av"}


def test_noise_reaches_only_trainings_whose_files_name_it(recipe, tmp_path):
    """AV-HuBERT's published clean configurations stay clean beside --musan, which the tests in noise need."""
    write_splits(tmp_path / "exp/mouth", trainval=["yes"], valid=["yes"], test=["no"])
    line = ("--corpus", "lrs3", "--data", "lrs3", "--musan", "musan", "--stage", 4, "--stop-stage", 6)
    for system, noisy in (("uhubert", {"base-noise-30h-av", "base-noise-433h-av"}), ("av-data2vec", set())):
        done = recipe(*line, "--system", system)
        assert done.returncode == 0, done.stderr
        lines = [one for one in done.stdout.splitlines() if one.startswith(("pretrain", "finetune"))]
        assert len(lines) > 4
        assert {Path(one.split()[1]).stem for one in lines if "data.noise.cuts=" in one} == noisy


def test_a_plan_with_noise_is_refused_at_once_without_musan(recipe):
    """One line that names the file and the option, before anything runs; a plan without noise goes on."""
    done = recipe("--corpus", "lrs3", "--data", "lrs3")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "base-noise-30h-av.yaml trains with noise" in done.stderr and "--musan" in done.stderr
    done = recipe("--corpus", "lrs3", "--data", "lrs3", "--conf", CONF / "large-lrs3.yaml", "--stop-stage", 1)
    assert done.returncode == 0 and done.stdout.startswith("prepare lrs3 lrs3")


def test_the_embedded_corpus_takes_no_folder(recipe):
    """Who gives a folder and forgets --corpus is told, and does not train on digits."""
    for option in ("--data", "--musan", "--landmarks"):
        done = recipe(option, "/data/lrs3")
        assert (done.returncode, done.stdout) == (2, "") and "add --corpus lrs3, grid or clips" in done.stderr


def test_validation_list_and_alignments_reach_the_preparation_of_lrs3_alone(recipe):
    words = ["--valid-ids", "valid.id", "--alignments", "phones", "--data", "d", "--stop-stage", 1]
    done = recipe("--corpus", "lrs3", "--musan", "m", *words)
    assert "--valid-ids valid.id --alignments phones" in done.stdout.splitlines()[0]
    done = recipe("--corpus", "grid", *words)
    assert (done.returncode, done.stdout) == (2, "") and "are for --corpus lrs3" in done.stderr
    done = recipe("--corpus", "grid", *words[2:])
    assert (done.returncode, done.stdout) == (2, "") and "--alignments is for --corpus lrs3 or lrs2" in done.stderr


def test_a_plan_with_three_corpora_takes_each_for_what_it_is(recipe, tmp_path):
    """u-HuBERT's data: TED-LIUM's sound joins in iteration 5, its frames neither clustered nor stored."""
    words = ["--corpus", "lrs3", "--data", "lrs3", "--musan", "m", "--conf", CONF / "uhubert-large-td.yaml"]
    done = recipe(*words)
    assert (done.returncode, done.stdout) == (2, "") and "--vox: missing, but" in done.stderr
    exp = tmp_path / "exp"
    write_splits(exp / "mouth", pretrain=["a"], trainval=["b"], valid=["c"], test=["d"])
    done = recipe(*words, "--vox", "vox", "--vox-ids", "en.id", "--tedlium", "ted", "--stage", 1, "--stop-stage", 5)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert f"prepare voxceleb2 vox {exp}/vox/data --jobs" in done.stdout and "--ids en.id" in done.stdout
    assert f"prepare tedlium3 ted {exp}/tedlium/data" in done.stdout
    mouth = [line for line in lines if line.startswith("extract mouth")]
    assert f"extract mouth {exp}/tedlium/data/cuts_trainval.jsonl.gz {exp}/tedlium/mouth" in mouth[2]
    fits = [line for line in lines if line.startswith("cluster fit")]
    assert len(fits) == 5 and "--clusters 2000" in fits[4] and not any("tedlium" in line for line in fits)
    own = "features/pretrain+trainval"
    assert fits[4].startswith(
        f"cluster fit {exp}/iter5/{own}/cuts_pretrain.jsonl.gz {exp}/iter5/{own}/cuts_trainval.jsonl.gz "
        f"{exp}/iter5/features/vox/cuts_pretrain.jsonl.gz {exp}/iter5/codebook "
    )
    runs = [line for line in lines if line.startswith("pretrain ")]
    own = ",".join(f"'{exp}/iter5/units/pretrain+trainval/cuts_{name}.jsonl.gz'" for name in ("pretrain", "trainval"))
    vox, ted = f"'{exp}/iter5/units/vox/cuts_pretrain.jsonl.gz'", f"'{exp}/iter5/units/tedlium/cuts_trainval.jsonl.gz'"
    assert f"data.sources=[{{cuts: [{own}]}}, {{cuts: [{vox}]}}, {{cuts: [{ted}]}}, ]" in runs[4]
    assert "tedlium" not in runs[3] and f"data.valid_cuts=['{exp}/iter5/units/valid/cuts_valid.jsonl.gz']" in runs[4]
    label = f"extract units {exp}/tedlium/mouth/cuts_trainval.jsonl.gz {exp}/iter5/units/tedlium --name km "
    assert f"{label}--encoder {exp}/iter4/encoder --layer 12 --codebook {exp}/iter5/codebook" in lines
    assert lines.index(fits[4]) < next(i for i, line in enumerate(lines) if line.startswith(label))
    assert "features/tedlium" not in done.stdout


def test_sound_of_some_clips_joins_lips_and_sound_of_others(recipe, tmp_path):
    """The embedded stand-in for audio-only data: units of those clips are made of their sound alone."""
    exp = tmp_path / "exp"
    write_splits(exp / "mouth", pretrain=["a"], trainval=["b"], valid=["c"], test=["d"])
    done = recipe("--conf", CONF / "synth-mixed.yaml", "--stage", 3, "--stop-stage", 5)
    assert done.returncode == 0, done.stderr
    features = [line for line in done.stdout.splitlines() if line.startswith("extract features")]
    assert [line.split()[2].rpartition("/")[2] for line in features] == [
        f"cuts_{name}.jsonl.gz" for name in ("trainval", "pretrain", "valid", "trainval", "valid")
    ]
    (label,) = (line for line in done.stdout.splitlines() if line.startswith("extract units"))
    assert label.startswith(f"extract units {exp}/mouth/cuts_pretrain.jsonl.gz {exp}/iter2/units/pretrain --name km")
    assert label.endswith(f"--codebook {exp}/iter2/codebook --modalities audio")
    runs = [line for line in done.stdout.splitlines() if line.startswith("pretrain ")]
    assert all("/units/pretrain/cuts_pretrain.jsonl.gz'], streams: [audio]}, ]" in line for line in runs)
    done = recipe("--conf", CONF / "synth-mixed.yaml", "--vox", "v", "--stage", 3)
    assert done.returncode == 2 and "synth-mixed.yaml does not pre-train on it" in done.stderr


def test_without_transcripts_there_is_pretraining_alone(recipe, tmp_path):
    """No validation cut: it is not named. No transcript: fine-tuning, decoding and scoring are skipped with a line."""
    exp = tmp_path / "exp"
    write_splits(exp / "mouth", pretrain=[None, None])
    done = recipe("--corpus", "clips", "--data", "own", "--stage", 4)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith("pretrain ") and "data.sources=" in line and "data.valid_cuts=[]" in line
    assert f"validation: skipped, no cut to validate on in {exp}/mouth/cuts_valid.jsonl.gz" in done.stderr
    for name in ("fine-tuning", "decoding", "scoring"):
        assert f"{name}: skipped, no cut with a transcript in {exp}/mouth/cuts_trainval.jsonl.gz" in done.stderr


def test_labels_without_a_test_set_are_learnt_and_not_tested(recipe, tmp_path):
    """One or two transcribed clips are all trained on."""
    write_splits(tmp_path / "exp/mouth", trainval=["yes"])
    done = recipe("--corpus", "clips", "--data", "own", "--stage", 6)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["finetune"]
    assert "decoding: skipped, no cut to test on" in done.stderr and "scoring: skipped" in done.stderr


def test_av_data2vec_tests_each_recognizer_with_its_streams_and_its_beam(recipe, tmp_path):
    """Sec. 4.2: those that it was tuned on, and the best width; which that is, validation cuts say."""
    mouth = tmp_path / "exp/mouth"
    write_splits(mouth, trainval=["yes"], valid=["yes"], test=["no"])
    words = ["--system", "av-data2vec", "--corpus", "lrs3", "--data", "lrs3", "--stage", 7, "--stop-stage", 7]
    done = recipe(*words)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    decoded = {line.split("--label ")[1].split()[0]: line for line in lines if line.startswith("decode")}
    assert len(decoded) == 6
    for name, line in decoded.items():
        assert f"--modality {name.rpartition('-')[2]} --noise clean" in line
        assert f"--beam 5,10,25,50,100 --choose-on {mouth}/cuts_valid.jsonl.gz --set length_penalty=1.0" in line
    with gzip.open(mouth / "cuts_valid.jsonl.gz", "wt"):
        pass
    done = recipe(*words)
    assert done.returncode == 0 and "choosing the beam: skipped, no cut to choose it on" in done.stderr
    assert "--beam" not in done.stdout and done.stdout.count("--modality") == 6


def test_a_model_to_start_from_takes_the_place_of_pretraining(recipe, tmp_path):
    """A file is imported, a folder taken as it is; skipped stages have a line each; a recognizer is decoded too."""
    exp, published = tmp_path / "exp", tmp_path / "base.pt"
    published.touch()
    write_splits(exp / "mouth", trainval=["yes"], valid=["yes"], test=["no"])
    done = recipe("--corpus", "clips", "--data", "own", "--init", published, "--stage", 3)
    assert done.returncode == 0, done.stderr
    first, tuned, *_ = lines = [line.split() for line in done.stdout.splitlines()]
    assert first == ["import", str(published), f"{exp}/init"]
    assert [line[0] for line in lines] == ["import", "finetune", "decode", "score", "score"]
    assert tuned[1].endswith("finetune/init-av.yaml") and tuned[tuned.index("--encoder") + 1] == f"{exp}/init"
    for name in ("first units", "iteration 1", "further iterations"):
        assert f"{name}: skipped, --init {published} is the model\n" in done.stderr

    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").touch()
    done = recipe("--corpus", "grid", "--data", "own", "--init", model, "--stage", 6)
    tuned, given, *_ = lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["finetune", "decode", "decode", "score", "score"]
    assert tuned[tuned.index("--encoder") + 1] == given[1] == str(model) and given[3] == f"{exp}/as-given/decode"


def test_lrs2_is_tuned_on_what_was_pretrained_elsewhere(recipe, tmp_path):
    """VATLM, Table II: its own lists validate; a row of LRS2 takes --init, and no other corpus."""
    exp, model, row = tmp_path / "exp", tmp_path / "encoder", tmp_path / "row.yaml"
    model.mkdir()
    tree = {"table": "Table II", "row": "BASE", "encoder": str(CONF / "pretrain/base-vox-5.yaml"), "corpus": "LRS2"}
    row.write_text(
        yaml.safe_dump(tree | {"labelled_corpus": "LRS2", "finetune": [str(CONF / "finetune/base-vox-433h-v.yaml")]})
    )
    write_splits(exp / "mouth", trainval=["yes"], valid=["yes"], test=["no"])
    words = ["--corpus", "lrs2", "--data", "bbc", "--init", model, "--alignments", "phones", "--landmarks", "marks"]
    done = recipe(*words, "--row", row)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert done.stdout.startswith(f"prepare lrs2 bbc {exp}/data --jobs")
    assert lines[0][-4:] == ["--max-s", "15", "--alignments", "phones"]
    tuned = next(line for line in lines if line[0] == "finetune")
    assert tuned[2] == f"{exp}/row" and tuned[tuned.index("--encoder") + 1] == str(model)
    assert not any(line[0] == "pretrain" for line in lines)
    done = recipe(*words)
    assert done.returncode == 0 and "finetune/init-av.yaml" in done.stdout
    rows = CONF.parent / "vatlm/rows"
    for row_of_lrs2, same in (("table2-base-av", "table1-base-vox-30h-av"), ("table2-avhubert-large-v", None)):
        done = recipe("--corpus", "lrs2", "--data", "d", "--row", rows / f"{row_of_lrs2}.yaml")
        assert (done.returncode, done.stdout) == (2, "") and "--init: missing; LRS2 is only tuned on" in done.stderr
        if same:  # what is advised leaves its encoder where it says
            one, other = (plan.load_row(rows / f"{name}.yaml") for name in (row_of_lrs2, same))
            assert f"--corpus lrs3 --row {rows / same}.yaml --stop-stage 5" in done.stderr
            assert f"give EXP/{plan.folders(other, rows)[-1]}/encoder" in done.stderr
            assert plan.folders(one, rows) == plan.folders(other, rows)
            talks = ["--tedlium", "ted", "--gigaspeech", "giga", "--text", "text", "--vox", "v", "--musan", "m"]
            given = ["--corpus", "lrs3", "--data", "lrs3", *talks, "--row", rows / f"{same}.yaml", "--stop-stage", 0]
            assert recipe(*given).returncode == 0
        else:
            assert "with a plan that ends with" in done.stderr and "base-vox-iter5.yaml" not in done.stderr
    for words, message in [
        (["--corpus", "lrs3", "--data", "d", "--row", row], "is tuned on LRS2; give --corpus lrs2"),
        (["--corpus", "lrs2", "--data", "d", "--row", CONF / "rows/table2-drop-v.yaml"], "is tuned on LRS3; give"),
        (
            ["--corpus", "lrs2", "--data", "d", "--init", model, "--valid-ids", "x"],
            "--valid-ids and --translations are",
        ),
    ]:
        done = recipe(*words)
        assert (done.returncode, done.stdout) == (2, "") and message in done.stderr, done.stderr


def test_a_corpus_that_is_not_there_is_told_at_once(recipe, tmp_path):
    """Also one that is opened after days of pre-training; each part of a list of files."""
    gone = tmp_path / "nowhere"
    vatlm = ["--system", "vatlm", "--corpus", "lrs3", "--data", "lrs3", "--tedlium", "ted", "--gigaspeech", "giga"]
    for words, message in [
        (["--corpus", "lrs3", "--data", gone, "--musan", "m"], f"--data: {gone} is not there"),
        (["--corpus", "lrs3", "--data", "lrs3", "--musan", gone], f"--musan: {gone} is not there"),
        ([*vatlm, "--text", f"lexicon.txt,{gone}"], f"--text: {gone} is not there"),
        ([*vatlm, "--text", "lexicon.txt", "--talk-alignments", gone], f"--talk-alignments: {gone} is not there"),
    ]:
        done = recipe(*words)
        assert (done.returncode, done.stdout) == (2, "") and message in done.stderr, done.stderr


def test_a_system_without_a_plan_for_a_corpus_says_so(recipe):
    """VATLM wants talks and text: with clips alone it can only be tuned."""
    done = recipe("--system", "vatlm", "--corpus", "clips", "--data", "own")
    assert (done.returncode, done.stdout) == (2, "") and "has no plan for --corpus clips; tune a model" in done.stderr
    assert "base-vox.yaml" in done.stderr and "claims" not in done.stderr


def test_vatlm_on_own_clips_is_tuned_without_its_text_encoder(recipe, tmp_path):
    done = recipe("--system", "vatlm", "--corpus", "clips", "--data", "own", "--init", "x", "--stop-stage", 1)
    assert done.returncode == 0 and "prepare clips own" in done.stdout, done.stderr
    assert configs.read(CONF.parent / "vatlm/finetune/init-av.yaml")["remove"] == ["text"]


def test_a_model_that_is_not_there_is_told_at_once(recipe, tmp_path):
    done = recipe("--corpus", "clips", "--data", "own", "--init", tmp_path / "nowhere.pt")
    assert (done.returncode, done.stdout) == (2, "") and "nowhere.pt is not there" in done.stderr
    done = recipe("--corpus", "clips", "--data", "own", "--conf", CONF / "init.yaml")
    assert (done.returncode, done.stdout) == (2, "") and "init.yaml has no pre-training" in done.stderr


def test_own_clips_on_a_published_model_end_in_a_table(shared, tmp_path):
    """Four clips of GRID as somebody's own, a checkpoint in the public layout, two updates; again: nothing to do."""
    pytest.importorskip("mediapipe", reason="finding faces needs pip install mmspeech[video]")
    grid = shared / "data" / "grid"
    for name in GRID:
        clip = tmp_path / "own" / f"{name}.mpg"
        clip.parent.mkdir(parents=True)
        clip.symlink_to(grid / f"{name}.mpg")
        words = [line.split()[2] for line in (grid / "alignments" / f"{name}.align").read_text().splitlines()]
        clip.with_suffix(".txt").write_text(" ".join(word for word in words if word not in ("sil", "sp")) + "\n")
    changes = {"training.updates": 2, "training.warmup_updates": 0, "training.hold_updates": 0}
    changes |= {"training.decay_updates": 2, "training.validate_every": 2, "data.workers": 0}
    write_run(tmp_path / "conf/tune.yaml", configs.read(CONF / "finetune/init-av.yaml"), changes)
    plan = {"finetune": ["tune.yaml"], "modality": "av", "noise": "clean", "search": ["beam=1"]}
    (tmp_path / "conf/plan.yaml").write_text(yaml.safe_dump(plan))
    words = ["--corpus", "clips", "--data", tmp_path / "own", "--init", shared / "reference/avhubert/tiny_base.pt"]
    words += ["--exp", tmp_path / "exp", "--conf", tmp_path / "conf/plan.yaml", "--jobs", 1]
    done = run_sh(*words)
    assert done.returncode == 0, done.stderr
    assert "research only, no commercial use" in done.stderr and "iteration 1: skipped" in done.stderr
    assert "tune" in done.stdout and "floor (no input)" in done.stdout  # the table
    table = (tmp_path / "exp/report/table.tsv").read_text()
    assert "tune" in table and "floor (no input)" in table
    again = run_sh(*words, "--stage", 6, "--stop-stage", 6)
    assert again.returncode == 0, again.stderr
    for name in ("init", "tune/model"):
        assert f"{tmp_path / 'exp' / name}: {CURRENT}" in again.stderr


def test_recipe_goes_to_the_end_on_two_processes_and_then_has_nothing_to_do(tmp_path):
    """Made clips to a table, really; a second call, with one process, trains nothing."""
    pytest.importorskip("espeakng_loader", reason="making clips needs pip install mmspeech[synth]")
    write_run(tmp_path / "conf/tiny.yaml", PRETRAIN, {"data.batch_s": 8.0, "data.max_batch_s": 4.0})
    objective = {"encoder": {"freeze_updates": 1}}
    changes = {"task": "ctc", "objective": objective, "valid_streams": ["audio+video"], "data.batch_s": 8.0}
    write_run(tmp_path / "conf/ctc.yaml", FINETUNE, changes)
    changes = {"text": "translation.es", "valid_streams": ["audio+video"], "data.batch_s": 8.0}
    write_run(tmp_path / "conf/es.yaml", FINETUNE, changes)
    plan = {
        "synth": "--vocabulary commands --pretrain-clips 3 --trainval-clips 4 --test-clips 2 --speakers 7 "
        "--noise-files 16",
        "pretrain": ["tiny.yaml"],
        "units": ["mfcc"],
        "clusters": [7],
        "cluster": "--starts 1",
        "sources": [{"cuts": "trainval", "weight": 2}, {"cuts": "pretrain", "streams": ["audio"], "weight": 1}],
        "finetune": ["ctc.yaml", "es.yaml"],
        "modality": "av",
        "noise": "clean",
        "search": ["beam=1"],
    }
    (tmp_path / "conf/plan.yaml").write_text(yaml.safe_dump(plan))
    exp = tmp_path / "it's an exp, #1"  # all that a path may hold and shells and YAML do not like
    words = ["--exp", exp, "--conf", tmp_path / "conf/plan.yaml", "--jobs", 1, "--babbles", 3]

    done = run_sh(*words, "--nproc", 2)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(": written") == 3 and CURRENT not in done.stderr
    table = (exp / "report/table.tsv").read_text()
    rows = {(row.split("\t")[1], row.split("\t")[5]) for row in table.splitlines()[1:]}
    assert rows == {("ctc", "wer"), ("floor (no input)", "wer"), ("es", "bleu"), ("floor (no input)", "bleu")}
    assert (exp / "report/index.html").exists()
    assert "translations (es) of 9 of 9 clips" in done.stderr

    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in exp.rglob("*")}

    before = state()
    again = run_sh(*words, "--stage", 4, "--stop-stage", 6)  # test_thread.py has all, command by command
    assert again.returncode == 0, again.stderr
    for name in ("iter1/encoder", "ctc/model"):
        assert f"{exp / name}: {CURRENT}" in again.stderr
    assert state() == before


def test_vatlm_reads_four_kinds_of_data(recipe, tmp_path):
    """Phones of what is read along, units of all by one codebook, those of text by a model that learns from speech."""
    exp = tmp_path / "exp"
    write_splits(exp / "mouth", trainval=["yes"], valid=["yes"], test=["no"])
    done = recipe("--system", "vatlm", "--stop-stage", 5)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()

    def given(start):
        return [line for line in lines if line.startswith(start)]

    corpus = exp / "corpus"
    assert f"prepare tedlium3 {corpus}/tedlium {exp}/tedlium/data" in given("prepare tedlium3")[0]
    assert f"--alignments {corpus}/talk-alignments" in given("prepare tedlium3")[0]
    assert "--subset XL --source youtube" in given("prepare gigaspeech")[0]
    mouth = f"{exp}/tedlium/mouth"
    assert given("extract phones") == [
        f"extract phones {mouth}/cuts_trainval.jsonl.gz {mouth}/cuts_valid.jsonl.gz {exp}/tedlium/phones"
    ]
    second = f"{exp}/iter2"
    assert not any(f"{second}/features/{name} " in done.stdout for name in ("tedlium", "gigaspeech"))
    (learnt,) = (line for line in given("pretrain") if "phone2unit" in line)
    assert f"'{second}/units/tedlium/cuts_trainval.jsonl.gz'" in learnt and "model.num_units=200" in learnt
    by = f"--name km --encoder {exp}/iter1/encoder --layer 3 --codebook {second}/codebook --modalities audio"
    assert given("extract units") == [
        f"extract units {exp}/tedlium/phones/cuts_trainval.jsonl.gz {second}/units/tedlium {by}",
        f"extract units {exp}/gigaspeech/mouth/cuts_trainval.jsonl.gz {second}/units/gigaspeech {by}",
        f"extract units --from text {corpus}/text/sentences.txt {second}/units/text --name km "
        f"--phone2unit {second}/phone2unit/model",
    ]
    last = given("pretrain")[-1]
    valid = [f"'{second}/units/{name}/cuts_valid.jsonl.gz'" for name in ("valid", "tedlium-valid")]
    assert f"data.valid_cuts=[{','.join(valid)}]" in last  # sound with phones is validated on, too
    for source in (
        "cuts_trainval.jsonl.gz'], weight: 0.5}",
        f"{{cuts: ['{second}/units/tedlium/cuts_trainval.jsonl.gz'], streams: [audio, text], weight: 0.2}}",
        f"{{cuts: ['{second}/units/text'], streams: [text], weight: 0.15}}",
        f"{{cuts: ['{second}/units/gigaspeech/cuts_trainval.jsonl.gz'], streams: [audio], weight: 0.15}}",
    ):
        assert source in last, last


TALKS = [f"--{name}={name}" for name in ("data", "tedlium", "gigaspeech", "text")]


def test_phones_of_talks_are_found_before_they_are_read(recipe, tmp_path):
    """Without alignments a recognizer of phones is tuned on the talks, on the model of the iteration before; with a
    folder nothing is tuned, and a lexicon, which alignments do not need, is not given to them.
    """
    exp = tmp_path / "exp"
    write_splits(exp / "mouth", trainval=["yes"], valid=["yes"], test=["no"])
    (exp / "iter5/units/text").mkdir(parents=True)
    words = ["--system", "vatlm", "--corpus", "lrs3", *TALKS, "--lexicon", "my words.txt"]
    done = recipe(*words, "--stop-stage", 5)
    assert done.returncode == 0, done.stderr
    lines, before = done.stdout.splitlines(), f"{exp}/iter4"
    (tuned,) = (line for line in lines if line.startswith("finetune "))
    talks = f"'{exp}/tedlium/mouth/cuts_trainval.jsonl.gz'"
    assert f"base-phones.yaml {before}/aligner --encoder {before}/encoder --set data.cuts=[{talks}]" in tuned
    assert "tokenizer.lexicon='my words.txt'" in tuned
    (spelt,) = (line for line in lines if line.startswith("extract phones "))
    assert spelt.endswith(f"{before}/phones/tedlium --aligner {before}/aligner/model")
    trained = next(line for line in lines if line.startswith("pretrain") and f" {before} " in line)
    assert lines.index(trained) < lines.index(tuned) < lines.index(spelt)
    assert f"extract units {before}/phones/tedlium/cuts_trainval.jsonl.gz {exp}/iter5/units/tedlium " in done.stdout
    done = recipe(*words, "--talk-alignments", "grids", "--stage", 2, "--stop-stage", 2)
    (spelt,) = (line for line in done.stdout.splitlines() if line.startswith("extract phones "))
    assert spelt.endswith(f"{exp}/tedlium/phones") and not done.stderr.count("error")


def test_phones_without_times_are_for_plans_without_text_alone(recipe, tmp_path):
    """The public code's way teaches no durations, but may stand in Table III's line 4; it wants the lexicon."""
    rows = ROOT / "recipes/lrs3/conf/vatlm/rows"
    words = ["--system", "vatlm", "--corpus", "lrs3", "--talk-alignments", "cut-or-pad", "--lexicon", "lexicon.txt"]
    done = recipe(*words, *TALKS)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert "--talk-alignments cut-or-pad: " in done.stderr and "leave it out, or give a folder" in done.stderr
    line4 = ["--row", rows / "table3-4-no-p-a-av.yaml", *TALKS[:2], "--stage", 1, "--stop-stage", 2]
    done = recipe(*words, *line4)
    assert done.returncode == 0, done.stderr
    (spelt,) = (line for line in done.stdout.splitlines() if line.startswith("extract phones "))
    assert spelt.endswith(f"{tmp_path}/exp/tedlium/phones --durations cut-or-pad --lexicon lexicon.txt")
    assert "--alignments" not in done.stdout


def test_the_report_of_vatlm_shows_phones_beside_sound_and_lips(recipe, tmp_path):
    """Figure 3: test clips with phones from their alignments; without, from the recognizer that aligned the talks."""
    exp = tmp_path / "exp"
    write_splits(exp / "mouth", trainval=["yes"], valid=["yes"], test=["no"])
    done = recipe("--system", "vatlm", "--stage", 8)
    assert done.returncode == 0, done.stderr
    phones = f"{exp}/mouth/cuts_test.jsonl.gz {exp}/test/phones"
    figure = f"score modalities {exp}/iter2/encoder {exp}/test/phones/cuts_test.jsonl.gz {exp}/iter2/modalities"
    lines = done.stdout.splitlines()
    assert lines[-3:-1] == [f"extract phones {phones}", f"{figure} --modalities av,a,v,text"]
    done = recipe("--system", "vatlm", "--corpus", "lrs3", *TALKS, "--stage", 8)
    assert f"{exp}/iter4/phones/test --aligner {exp}/iter4/aligner/model" in done.stdout
    done = recipe("--system", "vatlm", "--corpus", "lrs3", *TALKS, "--talk-alignments", "grids", "--stage", 8)
    assert f"{exp}/mouth/cuts_test.jsonl.gz {exp}/iter5/modalities --modalities av,a,v\n" in done.stdout


def test_a_row_in_noise_selects_in_noise(recipe, tmp_path):
    """Table IV: the weights that are kept are best in the fifteen noises, frozen for the validation clips."""
    exp = tmp_path / "exp"
    write_splits(exp / "mouth", trainval=["yes"], valid=["yes"], test=["no"])
    row = ROOT / "recipes/lrs3/conf/vatlm/rows/table4-av.yaml"
    words = ["--system", "vatlm", "--corpus", "lrs3", *TALKS, "--musan", "m", "--row", row, "--stage", 6]
    done = recipe(*words, "--stop-stage", 6)
    assert done.returncode == 0, done.stderr
    frozen, tuned = done.stdout.splitlines()
    assert frozen.startswith(
        f"prepare noisy {exp}/data/cuts_valid.jsonl.gz {exp}/noise {exp}/noisy-valid --split valid"
    )
    listed = tuned.partition("data.valid_noise=[")[2].partition("]")[0].split(",")
    assert len(listed) == frozen.count("--noise ") == 15 and f"'{exp}/noisy-valid/music_-10dB.jsonl'" in listed


@pytest.mark.parametrize("name", ["vatlm/synth", "uhubert/synth-mixed"])
def test_claims_train_on_what_run_sh_trains_on(recipe, tmp_path, name):
    """Sources of a plan's last iteration, their files, streams and weights: one plan, two who read it."""
    exp, conf = tmp_path / "exp", ROOT / f"recipes/lrs3/conf/{name}.yaml"
    write_splits(exp / "mouth", pretrain=["a"], trainval=["b"], valid=["c"], test=["d"])
    done = recipe("--system", name.partition("/")[0], "--conf", conf, "--stage", 5, "--stop-stage", 5)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("pretrain ")][-1].split(" --set ")
    ours = configs.load(ROOT / "recipes/lrs3/conf/claims" / f"{name.partition('/')[0]}.yaml", Claims)
    sets = Runs(ours, conf.parent, tmp_path, nproc=1)._data(exp, plan.load(conf), Encoder(conf=""))

    def sources(words: list[str]) -> object:
        return yaml.safe_load(next(word for word in words if word.startswith("data.sources=")).partition("=")[2])

    assert sources(said) == sources(sets) and len(sources(said)) > 1


def test_self_training_transcribes_before_it_tunes(recipe, tmp_path):
    """A row of Table I: a teacher of LRS3's labels transcribes VoxCeleb2, on all GPUs, then both are tuned on.

    Rows share the folder, and what teachers left there: each is called by its name.
    """
    write_splits(tmp_path / "exp/mouth", trainval=["yes"], valid=["yes"], test=["no"])
    row = ROOT / "recipes/lrs3/conf/vatlm/rows/table1-large-vox-30h-v-self.yaml"
    words = ["--corpus", "lrs3", "--stage", 6, "--stop-stage", 6, "--row", row]
    for name in ("data", "vox", "tedlium", "gigaspeech", "text"):
        words += [f"--{name}", name]
    done = recipe("--system", "vatlm", "--nproc", 8, *words)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    on_all = "torchrun --standalone --nproc-per-node 8 -m mmspeech "
    assert [line.startswith(on_all) for line in lines] == [True, True, False, True]
    exp, lines = tmp_path / "exp", [line.removeprefix(on_all) for line in lines]
    assert [line.split()[0] for line in lines] == ["finetune", "decode", "extract", "finetune"]
    by = "large-vox-30h-av"
    assert f"{by}.yaml {exp}/teacher-{by} " in lines[0] and f"{exp}/teacher-{by}/model" in lines[1]
    assert f"data.cuts=['{exp}/mouth/cuts_trainval.jsonl.gz']" in lines[0]
    assert f"{exp}/vox/mouth/cuts_pretrain.jsonl.gz {exp}/vox/heard-{by} --modality audio+video" in lines[1]
    assert lines[2].endswith(f"{exp}/vox/heard-{by}/pretrain-audio+video-clean {exp}/vox/labels-{by} --min-s 2.0")
    assert f"['{exp}/mouth/cuts_trainval.jsonl.gz','{exp}/vox/labels-{by}/cuts_pretrain.jsonl.gz']" in lines[3]
