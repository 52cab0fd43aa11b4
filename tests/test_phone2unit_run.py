"""`mmspeech pretrain` with `system: phone2unit`: trains, validates, goes on, and leaves a model that makes units."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cuts import command, write_run
from lhotse import MonoCut, NumpyFilesWriter
from safetensors.torch import load_file

from mmspeech.data.cutfiles import open_cuts, writing_cuts
from mmspeech.models.phone2unit import load_phone2unit

ROOT = Path(__file__).parents[1]
RUN = {
    "system": "phone2unit",
    "seed": 3,
    "model": {
        "num_units": 7, "dim": 16, "encoder_layers": 1, "decoder_layers": 1, "ffn_dim": 32, "duration_dim": 16,
    },
    "data": {
        "streams": {"text": {"reader": "phones"}}, "units": "km", "batch_s": 4.0, "max_batch_s": 2.0, "buckets": 2,
        "workers": 0,
    },
    "training": {
        "updates": 4, "lr": 0.01, "schedule": "constant", "log_every": 1, "validate_every": 2, "checkpoint_every": 1,
    },
}  # fmt: skip


def write_pairs(path: Path, count: int, seed: int = 0) -> Path:
    """Cuts with aligned phones and units that follow from them."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing_cuts(path) as writer, NumpyFilesWriter(path.parent / f"{path.name}.arrays") as arrays:
        for i in range(count):
            ids = np.repeat(rng.integers(4, 16, 20), rng.integers(3, 14, 20)).astype(np.uint8)
            ids = ids[: len(ids) // 4 * 4].reshape(-1, 4)
            cut = MonoCut(f"pair{seed}-{i:03d}", start=0, duration=len(ids) / 25, channel=0)
            values = {"phones": ids, "units_km": ids[:, 2].astype(np.int32) % 7}
            for field, value in values.items():
                stored = arrays.store_array(f"{cut.id}-{field}", value, frame_shift=0.04, temporal_dim=0, start=0)
                cut = cut.with_custom(field, stored)
            writer.write(cut)
    return path


@pytest.fixture(scope="module")
def conf(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("p2u")
    train, valid = write_pairs(folder / "train.jsonl.gz", 8), write_pairs(folder / "valid.jsonl.gz", 3, seed=1)
    return write_run(folder / "run.yaml", RUN, {"data.cuts": [train], "data.valid_cuts": [valid]})


@pytest.fixture(scope="module")
def whole(conf) -> Path:
    assert command("pretrain", conf, conf.parent / "whole") == 0
    return conf.parent / "whole"


def told(exp: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (exp / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind and (line.pop("frames_per_s", None) or True)]


def test_a_run_leaves_a_model_and_its_scores_on_held_out_pairs(conf, whole, capsys):
    """EXP/model, not EXP/encoder; unit accuracy under true durations, mean error of durations; current afterwards."""
    assert {"config.yaml", "model.safetensors", "data.json"} <= {path.name for path in (whole / "model").iterdir()}
    assert not (whole / "encoder").exists()
    model = load_phone2unit(whole / "model")
    assert model.config.num_units == 7 and model.inputs == RUN["data"]["streams"]
    for kind, count in (("train", 4), ("valid", 2)):
        lines = told(whole, kind)
        assert len(lines) == count
        for line in lines:
            assert 0 <= line["accuracy/units"] <= 1 and 0 < line["duration_error/frames"] < 20
            assert line["loss"] == pytest.approx(line["loss/units"] + line["loss/durations"], rel=1e-5)
    capsys.readouterr()
    assert command("pretrain", conf, whole) == 0
    assert "current, nothing to do" in capsys.readouterr().err


def test_a_longer_run_goes_on_from_the_checkpoint_and_another_one_is_refused(conf, whole, capsys):
    """Two updates and two more are four, bit for bit; a change of the model is no continuation."""
    parts = conf.parent / "parts"
    assert command("pretrain", conf, parts, "--set", "training.updates=2") == 0
    assert command("pretrain", conf, parts) == 0
    assert "resumed after update 2" in (parts / "log.txt").read_text()
    ours, theirs = (load_file(exp / "model" / "model.safetensors") for exp in (parts, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    capsys.readouterr()
    assert command("pretrain", conf, parts, "--set", "model.ffn_dim=64", "--set", "training.updates=8") == 2
    assert "its checkpoints are of a run of another `model.ffn_dim`" in capsys.readouterr().err


def test_the_trained_model_makes_units_of_text(whole, tmp_path):
    (tmp_path / "lexicon.txt").write_text("cat K AE T\n")
    (tmp_path / "text.txt").write_text("cat cat\n")
    given = ["--phone2unit", whole / "model", "--lexicon", tmp_path / "lexicon.txt", "--name", "km"]
    assert command("extract", "units", "--from", "text", tmp_path / "text.txt", tmp_path / "out", *given) == 0
    assert (tmp_path / "out" / "cuts_text-00000.jsonl.gz").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.streams={text: {reader: phones}, audio: {reader: logmel}}", "phone2unit reads one stream, of phones"),
        ("data.units=null", "`data.units` names no units to predict"),
        ("model.num_units=3", "model.num_units: 3, but the cuts have a unit"),
        ("init=exp/other", "`init` is not a setting of Phone2UnitRun"),
        ("data.streams={text: {reader: phones, size: 10}}", "expected phones (T, 4) with ids below 10"),
    ],
)
def test_mistakes_are_one_line(conf, tmp_path, capsys, change, message):
    assert command("pretrain", conf, tmp_path / "exp", "--set", change) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


def test_phones_without_times_are_refused(conf, tmp_path, capsys):
    """Cut or padded to the sound, they do not stand where they are said (VATLM Sec. III-C: forced alignment)."""
    path = tmp_path / "cuts.jsonl.gz"
    with writing_cuts(path) as writer:
        for cut in open_cuts(conf.parent / "train.jsonl.gz"):
            writer.write(cut.with_custom("phones_from", "cut-or-pad"))
    assert command("pretrain", conf, tmp_path / "exp", "--set", f"data.cuts=[{path}]") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert f"{path}: its phones are cut or padded" in line and "--aligner" in line
    assert not (tmp_path / "exp/model").exists()


def test_a_dry_run_of_the_papers_model_says_its_size(tmp_path, capsys):
    """About 24 M parameters: two convolutions of nine taps dominate; no corpus, nothing written."""
    conf = ROOT / "recipes/lrs3/conf/vatlm/pretrain/phone2unit.yaml"
    assert command("pretrain", conf, tmp_path / "exp", "--dry-run", "--set", "training.precision=fp32") == 0
    said = capsys.readouterr().err
    assert "one update on an invented clip" in said and "model, in M: embedding 0.01, encoder " in said
    assert not (tmp_path / "exp").exists()
    assert 24 < float(said.split(" M parameters")[0].split()[-1]) < 26
