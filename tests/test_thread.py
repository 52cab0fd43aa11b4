"""The whole thread on real recordings, command by command: clips on disk to a table and a report."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from cuts import FINETUNE, PRETRAIN, command, write_run
from lhotse import CutSet

from mmspeech.data.audio import num_frames
from mmspeech.data.cutfiles import is_empty, open_cuts, writing_cuts
from mmspeech.data.units import read_features, read_units
from mmspeech.data.video import read_mouth

GRID = ("s1/bbaf2n", "s3/sbia1a", "s4/lwbsza", "s5/lbax4n", "s23/lrwp9a")  # with --unseen, s1 is for test
CURRENT = "current, nothing to do"
Line = list[object]


def splits(folder: Path, names: str) -> list[Path]:
    return [folder / f"cuts_{name}.jsonl.gz" for name in names.split()]


def lines_of(exp: Path, corpus: str, data: Path, *options: object) -> list[Line]:
    """The commands of a recipe, from the corpus to decoded sets, with tiny models; see recipes/lrs3/run.sh."""
    speech = "pretrain trainval valid"
    changes = {
        "data.cuts": splits(exp / "iter1/units", "pretrain trainval"),
        "data.valid_cuts": splits(exp / "iter1/units", "trainval"),
        "data.batch_s": 12.0,
        "data.max_batch_s": 6.0,
    }
    pretrain = write_run(exp / "conf/pretrain.yaml", PRETRAIN, changes)
    changes = {key: splits(exp / "mouth", "trainval") for key in ("data.cuts", "data.valid_cuts")}
    finetune = write_run(
        exp / "conf/finetune.yaml", FINETUNE, changes | {"data.batch_s": 12.0, "data.max_batch_s": 12.0}
    )
    lines: list[Line] = [
        ["prepare", corpus, data, exp / "data", "--jobs", 1, *options],
        ["extract", "mouth", *splits(exp / "data", f"{speech} test"), exp / "mouth", "--jobs", 1],
    ]
    for number, source in ((1, ["--feature", "mfcc"]), (2, ["--encoder", exp / "iter1/encoder", "--layer", 1])):
        new = exp / f"iter{number}"
        lines += [
            ["extract", "features", *splits(exp / "mouth", speech), new / "features", *source, "--jobs", 1],
            ["cluster", "fit", *splits(new / "features", "pretrain trainval"), new / "codebook", "--clusters", 7],
            ["cluster", "label", *splits(new / "features", speech), new / "codebook", new / "units", "--name", "km"],
        ]
        if number == 1:
            lines.append(["pretrain", pretrain, new])
    test = exp / "mouth/cuts_test.jsonl.gz"
    decode = ["--modality", "av,a,v", "--set", "beam=2", "--set", "max_length_ratio=0.2", "--workers", 0]
    return [
        *lines,
        ["finetune", finetune, exp / "av", "--encoder", exp / "iter1/encoder"],
        ["decode", exp / "av/model", test, exp / "av/decode", *decode],
        ["score", "floor", exp / "mouth/cuts_trainval.jsonl.gz", test, exp / "floor"],
    ]


def run(lines: Sequence[Line]) -> None:
    """Each command in this process, the first in one of its own."""
    words = [sys.executable, "-m", "mmspeech", *map(str, lines[0])]
    done = subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for line in lines[1:]:
        assert command(*line) == 0, line


def state(exp: Path) -> dict[str, tuple[int, int]]:
    """Every file with its size and time of change."""
    files = ((path, path.stat()) for path in exp.rglob("*") if path.is_file())
    return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in files}


@pytest.fixture(scope="module")
def grid(shared, tmp_path_factory) -> tuple[Path, list[Line]]:
    """Five clips of five speakers of GRID, through all commands."""
    pytest.importorskip("mediapipe", reason="finding faces needs pip install mmspeech[video]")
    folder = tmp_path_factory.mktemp("grid")
    for name in GRID:
        for file in (f"{name}.mpg", f"alignments/{name}.align"):
            (folder / "corpus" / file).parent.mkdir(parents=True)
            (folder / "corpus" / file).symlink_to(shared / "data" / "grid" / file)
    exp = folder / "exp"
    lines = lines_of(exp, "grid", folder / "corpus", "--unseen")
    run(lines)
    return exp, lines


@pytest.fixture(scope="module")
def sound(shared, tmp_path_factory) -> tuple[Path, list[Line]]:
    """Two seconds of each of three readers of LibriSpeech, without any picture, through all commands."""
    folder = tmp_path_factory.mktemp("sound")
    sources = sorted((shared / "data" / "librispeech" / "LibriSpeech" / "train-clean-100").rglob("*.flac"))[:3]
    for number, source in enumerate(sources):
        clip = folder / "corpus" / f"reader{number}" / "clip.wav"
        clip.parent.mkdir(parents=True)
        soundfile.write(clip, *soundfile.read(source, frames=32_000))
        clip.with_suffix(".txt").write_text("one two\n" if number else "two three\n")
    exp = folder / "exp"
    lines = lines_of(exp, "clips", folder / "corpus")
    run(lines)
    return exp, lines


def check_units(exp: Path, iteration: int, width: int) -> None:
    """Frames and units of every training cut: as many as it has frames, or up to two fewer."""
    for cut in open_cuts(exp / f"iter{iteration}/features/cuts_trainval.jsonl.gz"):
        frames = read_features(cut)
        assert frames.shape[1] == width and 0 <= num_frames(cut) - len(frames) <= 2 and np.isfinite(frames).all()
    for cut in open_cuts(exp / f"iter{iteration}/units/cuts_trainval.jsonl.gz"):
        units = read_units(cut, "km")
        assert 0 <= num_frames(cut) - len(units) <= 2 and set(units) <= set(range(7)) and not cut.has_custom("features")


def check_decoded(folder: Path, streams: Sequence[str]) -> None:
    """A hypothesis and a reference for every cut of the test set."""
    hypotheses, references = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()] for name in ("hyp.jsonl", "ref.jsonl")
    )
    assert [one["id"] for one in hypotheses] == [one["id"] for one in references] and references[0]["text"]
    facts = json.loads((folder / "decode.json").read_text())
    settings = json.loads((folder / "stage.json").read_text())["settings"]
    assert (settings["streams"], facts["noise"], facts["label"]) == (list(streams), "clean", "av")


def test_real_clips_become_cuts_with_lips_and_units(grid):
    """Four clips to train on, one to test; 75 frames each, in every stage."""
    exp, _ = grid
    assert [is_empty(path) for path in splits(exp / "mouth", "pretrain trainval valid test")] == [
        True,
        False,
        True,
        False,
    ]
    cuts = [*open_cuts(splits(exp / "mouth", "trainval test"))]
    assert [len(read_mouth(cut)) for cut in cuts] == [num_frames(cut) for cut in cuts] == [75] * 5
    assert [cut.supervisions[0].speaker for cut in cuts][-1] == "s1"
    assert cuts[-1].supervisions[0].text == "bin blue at f two now"
    report = json.loads((exp / "mouth/report.json").read_text())
    assert report["tracks"] == report["clips"] == 5 and report["centred_frames"] >= 0.95 * report["frames"]
    assert (exp / "mouth/contact-sheet.jpg").stat().st_size > 10_000
    check_units(exp, 1, 39)
    check_units(exp, 2, 16)


def test_training_on_real_clips_leaves_models_and_curves(grid):
    exp, _ = grid
    for name, result in (("iter1", "encoder"), ("av", "model")):
        lines = [json.loads(line) for line in (exp / name / "metrics.jsonl").read_text().splitlines()]
        assert [line["update"] for line in lines if line["kind"] == "train"] == [1, 2]
        assert all(np.isfinite(line["loss"]) for line in lines)
        assert (exp / name / result / f"{result}.safetensors").exists()
    assert (exp / "av/model/tokenizer.json").exists()


def test_units_of_real_clips_are_compared_with_what_is_aligned(grid, tmp_path, capsys):
    """With the words as phones: measures between 0 and 1. GRID has no phones: one line says so."""
    exp, _ = grid
    units = exp / "iter1/units/cuts_trainval.jsonl.gz"
    with writing_cuts(tmp_path / "cuts.jsonl.gz") as writer:
        for cut in CutSet.from_jsonl_lazy(units):
            cut.supervisions[0].alignment["phone"] = cut.supervisions[0].alignment["word"]
            writer.write(cut)
    assert command("cluster", "purity", tmp_path / "cuts.jsonl.gz", "--name", "km", "--out", tmp_path / "km.json") == 0
    measures = json.loads((tmp_path / "km.json").read_text())
    assert 0 < measures["pnmi"] < 1 and 0 < measures["phone_purity"] < 1 and measures["cuts_left_out"] == 0
    capsys.readouterr()
    assert command("cluster", "purity", units, "--name", "km") == 2
    assert f"error: {units}: " in capsys.readouterr().err


def test_decoded_clips_are_scored_and_shown(grid, capsys):
    """Three conditions, each with its rate; a table and a page that name them."""
    exp, _ = grid
    folders = [exp / "av/decode" / f"test-{name}-clean" for name in ("av", "a", "v")]
    for folder, streams in zip(folders, (["audio", "video"], ["audio"], ["video"]), strict=True):
        check_decoded(folder, streams)
    assert command("score", "wer", *folders) == 0
    scores = [json.loads((folder / "score.json").read_text()) for folder in folders]
    assert all(score["wer"] >= 0 and score["words"] == 6 for score in scores)
    assert "floor (no input)" in json.loads((exp / "floor/score.json").read_text())["label"]
    assert command("score", "table", exp) == 0
    table = (exp / "report/table.tsv").read_text()
    assert "floor (no input)" in table and f"{scores[0]['wer']:.1f}" in table
    assert command("score", "report", exp, "--cuts", exp / "mouth/cuts_test.jsonl.gz") == 0
    page = (exp / "report/index.html").read_text()
    assert "bin blue at f two now" in page and "data:image" in page
    before = state(exp)
    capsys.readouterr()
    assert command("score", "wer", *folders) == 0
    assert capsys.readouterr().err.count(CURRENT) == 3 and state(exp) == before


@pytest.mark.parametrize("thread", ["grid", "sound"])
def test_every_stage_run_again_says_so_and_changes_nothing(request, thread, capsys):
    """From preparation to the decoded sets, not one file is touched."""
    exp, lines = request.getfixturevalue(thread)
    before = state(exp)
    capsys.readouterr()
    for line in lines:
        assert command(*line) == 0
        assert CURRENT in capsys.readouterr().err, line
        assert state(exp) == before, line


def test_sound_alone_goes_the_same_way_without_the_lips(sound, capsys):
    """Every stage runs; mouth tracks pass through with a line, and what needs lips is skipped with a line."""
    exp, lines = sound
    assert [len(list(open_cuts(path))) for path in splits(exp / "mouth", "trainval valid test")] == [1, 1, 1]
    assert not any(cut.has_custom("mouth") for cut in open_cuts(splits(exp / "mouth", "trainval test")))
    check_units(exp, 1, 39)
    check_units(exp, 2, 16)
    assert [path.name for path in (exp / "av/decode").iterdir()] == ["test-a-clean"]
    check_decoded(exp / "av/decode/test-a-clean", ["audio"])
    capsys.readouterr()
    *mouth, out = [word for word in lines[1] if isinstance(word, Path)]
    assert command("extract", "mouth", *mouth, out.with_name("again"), "--jobs", 1) == 0
    assert "3 of 3 cuts have no video: passed through without lips" in capsys.readouterr().err
    decode = next(line for line in lines if line[0] == "decode")
    assert command(*decode) == 0
    said = capsys.readouterr().err
    assert all(f"test-{name}-clean: skipped, no cut in {decode[2]} has video" in said for name in ("av", "v"))
    assert command("decode", *decode[1:3], exp / "lips", "--modality", "v") == 2
    assert f"error: {decode[2]}: no cut has video; decode audio alone with --modality" in capsys.readouterr().err


def test_sound_alone_is_reported(sound):
    """A table and a page from what there is."""
    exp, _ = sound
    assert command("score", "report", exp, "--cuts", exp / "mouth/cuts_test.jsonl.gz") == 0
    assert (
        "one two" in (exp / "report/index.html").read_text() or "two three" in (exp / "report/index.html").read_text()
    )
