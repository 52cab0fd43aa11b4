"""Sweeps of fine-tuning: every combination is tuned, the best on validation data is linked, the rest says why not."""

import json
from pathlib import Path

import pytest
from cuts import FINETUNE, PRETRAIN, command, write_cuts, write_run
from training_toys import on_ranks

from mmspeech.cli import finetune, sweep
from mmspeech.plan import sweeps

GRID = {"training.lr": [0.01, 0.02], "objective.encoder.freeze_updates": [0, 5]}
NAMES = [f"lr={lr}-freeze_updates={frozen}" for lr in (0.01, 0.02) for frozen in (0, 5)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> tuple[Path, dict[str, object]]:
    """A tiny encoder, and the data of a fine-tuning on it."""
    folder = tmp_path_factory.mktemp("sweep")
    cuts = write_cuts(folder / "data", [0.6, 0.7, 0.8, 1.0], lips=range(4), name="cuts_valid.jsonl.gz")
    data = {"data.cuts": [cuts], "data.valid_cuts": [cuts]}
    assert command("pretrain", write_run(folder / "pretrain.yaml", PRETRAIN, data), folder / "pretrain") == 0
    return folder / "pretrain/encoder", data


def write(folder: Path, data: dict[str, object], **swept: object) -> Path:
    return write_run(folder / "sweep.yaml", FINETUNE, data | {"objective.ctc_weight": 0.0, "sweep": swept})


def test_names_and_settings_of_all_combinations():
    """The product of all values; a table's settings belong together, shares are one value."""
    grid = {"training": [{"updates": 3, "hold_updates": 1}, {"updates": 5}], "objective.p": [{"a+b": 0.5, "b": 0.5}]}
    assert dict(sweep.combinations(grid)) == {
        'updates=3-hold_updates=1-p={"a+b":0.5,"b":0.5}': [
            "training.updates=3", "training.hold_updates=1", 'objective.p={"a+b": 0.5, "b": 0.5}',
        ],
        'updates=5-p={"a+b":0.5,"b":0.5}': ["training.updates=5", 'objective.p={"a+b": 0.5, "b": 0.5}'],
    }  # fmt: skip
    assert [name for name, _ in sweep.combinations(GRID)] == NAMES


def test_the_best_on_validation_data_is_kept(encoder, tmp_path, capsys):
    """The lowest mean over streams is linked; each combination has its own settings; again, nothing is done."""
    conf = write(tmp_path, encoder[1], grid=GRID, modality="av,a,v", noise="clean", search=["beam=2"])
    line = ["finetune", conf, tmp_path / "exp", "--encoder", encoder[0]]
    assert command(*line) == 0
    tried = json.loads((tmp_path / "exp/sweep.json").read_text())
    assert [one["name"] for one in tried] == NAMES
    for one in tried:
        assert set(one["rates"]) == {"av-clean", "a-clean", "v-clean"}
        assert one["mean"] == pytest.approx(sum(one["rates"].values()) / 3)
        begun = json.loads((tmp_path / "exp" / one["name"] / "run.json").read_text())["settings"]
        lr, frozen = begun["training"]["lr"], begun["objective"]["encoder"]["freeze_updates"]
        assert one["name"] == f"lr={lr}-freeze_updates={frozen}"
    best = min(tried, key=lambda one: one["mean"])["name"]
    assert (tmp_path / "exp/model").resolve() == (tmp_path / "exp" / best / "model").resolve()
    capsys.readouterr()
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "exp").rglob("*.safetensors"))
    assert command(*line) == 0
    assert capsys.readouterr().err.count("model: current, nothing to do") == 4
    assert before == sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "exp").rglob("*.safetensors"))
    decode = ["decode", tmp_path / "exp/model", encoder[1]["data.cuts"][0], tmp_path / "out", "--workers", 0]
    assert command(*decode) == 0


def test_a_combination_that_diverges_is_set_aside(encoder, tmp_path, capsys):
    """Its figures are none, and it is not the best; if all diverge, that is said."""
    tuned = {"training.max_nonfinite": 1, "training.clip_norm": None, "training.updates": 6}
    conf = write(tmp_path, encoder[1] | tuned, grid={"training.lr": [1e30, 0.01]}, modality="a", noise="clean")
    assert command("finetune", conf, tmp_path / "exp", "--encoder", encoder[0]) == 0
    said = capsys.readouterr().err
    assert "lr=1e+30: set aside, update" in said and "not finite" in said
    tried = json.loads((tmp_path / "exp/sweep.json").read_text())
    assert (
        tried[0]["rates"] == {}
        and tried[0]["mean"] is None
        and (tmp_path / "exp/model").resolve().parent.name == "lr=0.01"
    )
    assert command("finetune", conf, tmp_path / "exp", "--encoder", encoder[0]) == 0
    assert "lr=1e+30: set aside before, update" in capsys.readouterr().err
    conf = write(tmp_path, encoder[1] | tuned, grid={"training.lr": [1e30]}, modality="a", noise="clean")
    assert command("finetune", conf, tmp_path / "none", "--encoder", encoder[0]) == 2
    assert "none of 1 combinations gave a model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("swept", "more", "message"),
    [
        (
            {"grid": {"training.lrr": [1, 2]}},
            [],
            "`training.lrr` is not a setting of TrainingConfig",
        ),
        ({"grid": {}}, [], "sweep.yaml: sweep.grid: has nothing to vary"),
        ({"grid": GRID}, ["--set", "training.lr=1"], "--set training.lr=1: is swept in"),
        (
            {"grid": {"training": [{"updates": 3}]}},
            ["--set", "training.updates=2"],
            "--set training.updates=2: is swept in",
        ),
        ({"grid": GRID, "noise": "clean,babble:0"}, [], "babble_0dB.jsonl; freeze it for the validation cuts"),
        ({"grid": GRID, "noise": "clean, babble:0"}, [], "--noise  babble:0: expected CATEGORY:DECIBELS"),
        ({"grid": GRID, "noise": "clean,babble:0"}, ["--noise-sets", "."], "and . has no babble_0dB"),
        ({"grid": GRID, "search": ["beem=3"]}, [], "`beem` is not a setting of BeamConfig; did you mean `beam`?"),
        ({"grid": GRID, "modality": "av,x"}, [], "sweep.modality x: the model knows audio, video"),
        ({"grid": {"training.lr": 0.1}}, [], "`sweep.grid.training.lr` is 0.1; expected"),
        ({"grid": GRID}, ["--set", "data.valid_cuts=[]"], "data.valid_cuts: 0 files; a sweep is selected on one"),
        ({"gird": GRID}, [], "`sweep.gird` is not a setting of Sweep; did you mean `grid`?"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(encoder, tmp_path, capsys, swept, more, message):
    conf = write(tmp_path, encoder[1], **{"noise": "clean"} | swept)
    assert command("finetune", conf, tmp_path / "exp", "--encoder", encoder[0], *more) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_model_that_is_no_link_is_not_replaced(encoder, tmp_path, capsys):
    """Told at once: a plain run's model lies there."""
    conf = write(tmp_path, encoder[1], grid=GRID, noise="clean")
    (tmp_path / "exp/model").mkdir(parents=True)
    assert command("finetune", conf, tmp_path / "exp", "--encoder", encoder[0]) == 2
    assert "is of a run without `sweep`" in capsys.readouterr().err and not list(tmp_path.rglob("*.ckpt"))


def test_other_conditions_make_another_choice(encoder, tmp_path):
    """The mean is over what the file asks for now, not over all that was ever decoded."""
    for modality in ("a", "v"):
        conf = write(tmp_path, encoder[1], grid={"training.lr": [0.01]}, modality=modality, noise="clean")
        assert command("finetune", conf, tmp_path / "exp", "--encoder", encoder[0]) == 0
        (tried,) = json.loads((tmp_path / "exp/sweep.json").read_text())
        assert list(tried["rates"]) == [f"{modality}-clean"]


def two_ranks(conf: str, exp: str, encoder: str) -> None:
    finetune.run(Path(conf), Path(exp), Path(encoder))


def test_a_sweep_on_two_ranks_goes_to_its_end_and_does_nothing_the_second_time(encoder, tmp_path):
    """Models are decoded when they are written; the first rank alone links and reports."""
    conf = write(tmp_path, encoder[1], grid={"training.lr": [0.01, 0.02]}, modality="a", noise="clean")
    for said in ("the best of 2", "model: current, nothing to do"):
        for rank, done in enumerate(on_ranks(2, "test_sweep:two_ranks", conf, tmp_path / "exp", encoder[0])):
            assert done.returncode == 0, done.stderr
            assert (said in done.stderr) or rank > 0
    assert len(json.loads((tmp_path / "exp/sweep.json").read_text())) == 2 and (tmp_path / "exp/model").is_symlink()


def test_the_recipe_hears_which_files_are_sweeps(tmp_path):
    """Also where `sweep:` stands in a base."""
    conf = Path(__file__).parents[1] / "recipes/lrs3/conf/uhubert/finetune"
    (tmp_path / "mine.yaml").write_text(f"base: {conf / 'synth-av-sweep.yaml'}\nseed: 2\n")
    found = sweeps([conf / "synth-av.yaml", tmp_path / "mine.yaml"])
    assert found == [f"{tmp_path / 'mine.yaml'}\tclean,babble:0"]
