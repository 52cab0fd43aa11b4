"""What a user may get wrong between corpus and table: exit code 2, one line that names the place, nothing lost."""

import contextlib
import json
import resource
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cuts import FINETUNE, PRETRAIN, command, write_cuts, write_run
from lhotse import CutSet, NumpyFilesWriter

from mmspeech.cli import decode
from mmspeech.data import loader
from mmspeech.data.cutfiles import writing_cuts
from mmspeech.data.open_shards import forget_open_shards
from mmspeech.data.reading import read_item
from mmspeech.training import checkpoint

PLAN = Path(__file__).parents[1] / "recipes/lrs3/conf/uhubert/synth.yaml"


@dataclass(frozen=True)
class World:
    """Small inputs of every kind; `{cuts}` in a command line stands for one."""

    folder: Path
    cuts: Path  # four cuts with sound, lips, units, texts
    sound: Path  # the same without lips
    empty: Path
    untold: Path  # without texts
    pretrain: Path
    finetune: Path
    encoder: Path
    model: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("mistakes")
    durations = [0.6, 0.7, 0.8, 1.0]
    cuts = write_cuts(folder / "cuts", durations, lips=range(4))
    sound = write_cuts(folder / "cuts", durations, name="cuts_sound.jsonl.gz")
    untold = write_cuts(folder / "cuts", durations, name="untold.jsonl.gz", texts=[""] * 4)
    empty = write_cuts(folder / "cuts", [], name="empty.jsonl.gz")
    data = {"data.cuts": [cuts], "data.valid_cuts": [cuts]}
    pretrain = write_run(folder / "pretrain.yaml", PRETRAIN, data)
    finetune = write_run(folder / "finetune.yaml", FINETUNE, data)
    assert command("pretrain", pretrain, folder / "pretrain") == 0
    encoder = folder / "pretrain" / "encoder"
    assert command("finetune", finetune, folder / "finetune", "--encoder", encoder) == 0
    model = folder / "finetune" / "model"
    return World(folder, cuts, sound, empty, untold, pretrain, finetune, encoder, model)


@pytest.fixture
def fails(world, tmp_path, capsys) -> Callable[..., str]:
    """Run a command line that must fail; returns its one line of error. `{out}` is a new folder."""

    def run(line: str, **places: object) -> str:
        names = vars(world) | {"out": tmp_path / "out", "nowhere": tmp_path / "nowhere"} | places
        code = command(*(word.format(**names) for word in line.split("  ")))
        said = capsys.readouterr().err
        errors = [one for one in said.splitlines() if one.startswith("error: ")]
        assert code == 2 and len(errors) == 1 and said.endswith(errors[0] + "\n") and "Traceback" not in said, said
        return errors[0]

    return run


READERS_OF_CUTS = [
    "extract  mouth  {bad}  {out}  --jobs  1",
    "extract  features  {bad}  {out}  --feature  mfcc",
    "extract  features  {bad}  {out}  --encoder  {encoder}  --layer  1",
    "cluster  fit  {bad}  {out}",
    "cluster  label  {bad}  {encoder}  {out}  --name  km",
    "cluster  purity  {bad}  --name  km",
    "pretrain  {pretrain}  {out}  --set  data.cuts=[{bad}]",
    "pretrain  {pretrain}  {out}  --set  data.valid_cuts=[{bad}]",
    "finetune  {finetune}  {out}  --encoder  {encoder}  --set  data.cuts=[{bad}]",
    "finetune  {finetune}  {out}  --encoder  {encoder}  --set  data.valid_cuts=[{bad}]",
    "decode  {model}  {bad}  {out}",
    "score  floor  {bad}  {cuts}  {out}",
    "score  floor  {cuts}  {bad}  {out}",
]


@pytest.mark.parametrize("line", [*READERS_OF_CUTS, "prepare  noisy  {bad}  {folder}  {out}  --noise  babble:0"])
def test_missing_cuts_are_named(fails, tmp_path, line):
    bad = tmp_path / "cuts_missing.jsonl.gz"
    assert fails(line, bad=bad).startswith(f"error: {bad}: no such file")


@pytest.mark.parametrize("line", [line for line in READERS_OF_CUTS if "cluster  label" not in line])
def test_a_file_without_a_cut_is_named(fails, world, line):
    said = fails(line, bad=world.empty)
    assert str(world.empty) in said and any(text in said for text in ("no cuts in there", "no cut gave", "no cut has"))


@pytest.mark.parametrize(
    "line",
    [
        "pretrain  {nowhere}  {out}",
        "pretrain  {pretrain}  {out}  --set  init={nowhere}",
        "finetune  {finetune}  {out}  --encoder  {nowhere}",
        "extract  features  {cuts}  {out}  --encoder  {nowhere}  --layer  1",
        "extract  mouth  {cuts}  {out}  --landmarks  {nowhere}",
        "cluster  label  {cuts}  {nowhere}  {out}  --name  km",
        "decode  {nowhere}  {cuts}  {out}",
        "score  wer  {nowhere}",
        "score  bleu  {nowhere}",
        "score  table  {nowhere}",
        "score  report  {nowhere}",
    ],
)
def test_missing_file_or_folder_is_named_and_nothing_is_made(fails, tmp_path, line):
    assert str(tmp_path / "nowhere") in fails(line)
    assert not (tmp_path / "out").exists() and not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("line", "texts"),
    [
        (
            "pretrain  {pretrain}  {out}  --set  training.updatez=5",
            ["pretrain.yaml: `training.updatez`", "did you mean `updates`?"],
        ),
        ("pretrain  {pretrain}  {out}  --set  mdoel={{}}", ["`mdoel`", "did you mean `model`?"]),
        (
            "finetune  {finetune}  {out}  --encoder  {encoder}  --set  objective.decoder.layers=5",
            ["finetune.yaml: `objective.decoder.layers`", "did you mean `num_layers`?"],
        ),
        ("decode  {model}  {cuts}  {out}  --set  beems=3", ["`beems`", "did you mean `beam`?"]),
        ("decode  {model}  {cuts}  {out}  --modality  x", ["--modality x", "audio, video"]),
        ("decode  {model}  {cuts}  {out}  --noise  babel:0", ["--noise babel:0", "babble, music"]),
        ("decode  {model}  {cuts}  {out}  --noise  babble:0", ["babble_0dB.jsonl", "mmspeech prepare noisy"]),
        ("pretrain  {finetune}  {out}", ["finetune.yaml: `system` is None", "uhubert"]),
        ("pretrain  {plan}  {out}", ["synth.yaml: is a plan, for run.sh --conf", "uhubert/pretrain/synth-1.yaml"]),
        ("schedule  {plan}  {out}.png", ["synth.yaml: is a plan, for run.sh --conf", "uhubert/pretrain/synth-1.yaml"]),
        ("finetune  {plan}  {out}", ["synth.yaml: is a plan, for run.sh --conf", "uhubert/finetune/synth-av.yaml"]),
        (
            "finetune  {finetune}  {out}  --encoder  {encoder}  --set  data.cuts=[]",
            ["data.cuts: names no cuts", "data.cuts=[exp/mouth/cuts_trainval.jsonl.gz]"],
        ),
        (
            "pretrain  {pretrain}  {out}  --set  data.cuts=mine/cuts.jsonl.gz",
            ["`data.cuts` is 'mine/cuts", 'expected a list: --set "data.cuts=[mine/cuts.jsonl.gz]"'],
        ),
        ("decode  {pretrain}  {cuts}  {out}", ["pretrain.yaml: a file", "mmspeech import", "DIR` first"]),
        ("decode  {encoder}  {cuts}  {out}", ["encoder: is an encoder", "mmspeech finetune CONF EXP --encoder"]),
        ("transcribe  x.wav  --model  {encoder}", ["encoder: is an encoder", "mmspeech finetune CONF EXP --encoder"]),
        ("finetune  {finetune}  {out}  --encoder  {cuts}", ["cuts.jsonl.gz: a file", "mmspeech import"]),
        ("import  {encoder}/encoder.safetensors  {out}", ["weights from a model's folder", "give {encoder}"]),
        ("finetune  {pretrain}  {out}  --encoder  {encoder}", ["pretrain.yaml: `task` is None", "seq2seq, ctc"]),
        ("finetune  {finetune}  {out}", ["finetune.yaml: `encoder`", "--encoder"]),
        (
            "pretrain  {pretrain}  {out}  --set  data.max_s=0.3",
            ["cuts.jsonl.gz: no cut has 0.2 to 0.3 s", "data.max_s"],
        ),
        ("pretrain  {pretrain}  {out}  --set  data.streams.emg={{reader: array, field: emg}}", ["`data.streams.emg`"]),
        (
            "pretrain  {pretrain}  {out}  --set  data.streams.audio.bins=80",
            ["data.streams.audio.bins", "there is none"],
        ),
        ("pretrain  {pretrain}  {out}  --set  data.streams.video.corp=20", ["streams.video.corp", "size, crop"]),
        ("pretrain  {pretrain}  {out}  --set  data.streams.video.reader=array", ["no setting of `array`"]),
        (
            "pretrain  {pretrain}  {out}  --set  data.streams.video.crop=22",
            ["expected (N, T, 20, 20)", "22, 22)"],
        ),
        ("pretrain  {pretrain}  {out}  --set  model.streams.audio={{frontend: linear}}", ["audio.size: missing"]),
        ("pretrain  {pretrain}  {out}  --set  objective.modality_dropout={{audio+lips: 1.0}}", ["stream `lips`"]),
        ("pretrain  {pretrain}  {out}  --set  data.max_batch_s=0", ["max_batch_s: 0", "above 0"]),
        ("pretrain  {pretrain}  {out}  --set  data.workers=-1", ["workers: -1"]),
        ("pretrain  {pretrain}  {out}  --set  init={folder}", ["encoder.safetensors: no such file"]),
        ("finetune  {finetune}  {out}  --encoder  {encoder}  --set  data.trim_s=0.5", ["data.trim_s", "transcripts"]),
        (
            "finetune  {finetune}  {out}  --encoder  {encoder}  --set  data.streams.audio.reader=logmel",
            ["`data.streams`", "streams: [audio]"],
        ),
        ("pretrain  {pretrain}  {out}  --set  objective.num_units=4", ["objective.num_units: 4", "a unit 6"]),
        ("pretrain  {pretrain}  {out}  --set  training.lr=-1", ["lr: -1", "above 0"]),
        ("pretrain  {pretrain}  {out}  --set  training.betas=[0.9]", ["`training.betas`", "expected 2 values"]),
        ("pretrain  {pretrain}  {out}  --set  data.trim_s=0", ["trim_s: 0", "0.04 s"]),
        ("pretrain  {pretrain}  {out}  --set  data.streams.video.crop=abc", ["data.streams.video", "'abc'", "int"]),
        ("pretrain  {pretrain}  {out}  --set  system=[uhubert]", ["`system` is ['uhubert']"]),
        ("finetune  {finetune}  {out}  --encoder  {encoder}  --set  task=[ctc]", ["`task` is ['ctc']"]),
        ("decode  {model}  {cuts}  {out}  --device  gpu", ["--device gpu", "cpu, cuda"]),
        ("pretrain  {folder}  {out}", ["no such configuration file"]),
        ("decode  {model}  {cuts}  {pretrain}", ["pretrain.yaml"]),
    ],
)
def test_wrong_setting_names_its_key_and_what_was_meant(fails, world, line, texts):
    said = fails(line, plan=PLAN)
    assert all(text.replace("{encoder}", str(world.encoder)) in said for text in texts), said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("decode", "Missing argument 'model'; see mmspeech decode --help"),
        ("decode  {model}  {cuts}  {out}  --bem  5", "No such option: --bem"),
        ("score  werr", "No such command 'werr'"),
        ("decode  {model}  {cuts}  {out}  --workers  two", "Invalid value for '--workers'"),
    ],
)
def test_a_command_line_that_does_not_parse_is_one_line_too(fails, line, said):
    assert said in fails(line)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("finetune", '"data.cuts=[exp/mouth/cuts_trainval.jsonl.gz]"'),
        ("pretrain", '"data.cuts=[exp/iter1/units/cuts_pretrain.jsonl.gz]"'),
        ("decode", "several with commas. [av]"),
        ("cluster  fit", "mmspeech cluster fit"),
    ],
)
def test_help_can_be_copied(capsys, line, shown):
    """Brackets are no colours, in groups of commands neither."""
    assert command(*line.split("  "), "--help") == 0
    assert shown in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("corpus", "inside"),
    [
        ("lrs3", ["pretrain", "trainval", "test"]),
        ("musan", ["noise/free"]),
        ("librispeech", ["dev-clean"]),
        ("voxceleb2", ["dev/aac"]),
        ("tedlium3", ["data/sph"]),
    ],
)
def test_a_corpus_one_folder_off_is_named(fails, tmp_path, corpus, inside):
    """The folder above the right one, and one of its own."""
    for folder in inside:
        (tmp_path / "above/right" / folder).mkdir(parents=True)
    (tmp_path / "above/right/noise").mkdir(exist_ok=True)
    if corpus == "musan":
        (tmp_path / "above/right/noise/free/a.wav").write_bytes(b"")
    for given in ("above", "above/right/noise/"):
        said = fails("prepare  {corpus}  {given}  {out}", corpus=corpus, given=tmp_path / given)
        assert f"{tmp_path / 'above/right'} holds it: give that" in said


def test_a_folder_one_level_off_is_named(fails, world, tmp_path):
    """The experiment for its model, all decoded sets for one of them."""
    said = fails("decode  {exp}  {cuts}  {out}", exp=world.folder / "finetune")
    assert f"give {world.folder / 'finetune/model'}" in said
    assert command("decode", world.model, world.cuts, tmp_path / "all", "--modality", "a", "--workers", 0) == 0
    assert f"give its folders, as {tmp_path / 'all/cuts-a-clean'}" in fails("score  wer  {all}", all=tmp_path / "all")


def test_encoder_of_another_size_is_named_with_both_shapes(fails, world, tmp_path):
    """As a start of pre-training, and where weights and config.yaml of one folder do not belong together."""
    said = fails("pretrain  {pretrain}  {out}  --set  init={encoder}  --set  model.dim=32")
    assert "encoder.safetensors: `frontends.audio.project.weight` is (16, 104), but the config makes (32, 104)" in said
    shutil.copytree(world.encoder, tmp_path / "mixed")
    config = tmp_path / "mixed" / "config.yaml"
    config.write_text(config.read_text().replace("dim: 16", "dim: 32", 1))
    for line in (
        "finetune  {finetune}  {out}  --encoder  {mixed}",
        "extract  features  {cuts}  {out}/frames  --encoder  {mixed}  --layer  1",
    ):
        assert "is (16, 104), but the config makes (32, 104)" in fails(line, mixed=tmp_path / "mixed")


def test_weights_that_were_cut_off_are_named(fails, world, tmp_path):
    """Half a file of weights: of an encoder, as a start, of a recognizer."""
    for folder in (world.encoder, world.model):
        half = tmp_path / folder.name
        shutil.copytree(folder, half)
        weights = next(half.glob("*.safetensors"))
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    for line in (
        "finetune  {finetune}  {out}  --encoder  {half}/encoder",
        "pretrain  {pretrain}  {out}  --set  init={half}/encoder",
        "extract  features  {cuts}  {out}/frames  --encoder  {half}/encoder  --layer  1",
        "decode  {half}/model  {cuts}  {out}",
    ):
        assert ".safetensors: not a complete file of weights" in fails(line, half=tmp_path)


def test_no_stage_removes_what_it_did_not_write(fails, world, tmp_path, capsys):
    """A folder typed one level too high, or the folder that is read: refused, and all that lay there still does."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{}")
    (tmp_path / "run/weights").write_text("weeks of work")
    assert command("extract", "features", world.cuts, tmp_path / "read", "--feature", "mfcc") == 0
    for line in (
        "cluster  fit  {read}/cuts.jsonl.gz  {run}  --clusters  2",
        "score  floor  {cuts}  {cuts}  {run}",
        "extract  features  {cuts}  {run}  --feature  mfcc",
        "extract  mouth  {cuts}  {run}",
        "cluster  fit  {read}/cuts.jsonl.gz  {read}  --clusters  2",
        "extract  mouth  {read}/cuts.jsonl.gz  {read}",
    ):
        said = fails(line, read=tmp_path / "read", run=tmp_path / "run")
        assert "holds files of another origin" in said or "which is read" in said, said
    assert (tmp_path / "run/weights").read_text() == "weeks of work"
    capsys.readouterr()
    assert command("extract", "features", world.cuts, tmp_path / "read", "--feature", "mfcc") == 0
    assert "current" in capsys.readouterr().err


def test_an_output_of_other_settings_is_another_output(fails, world, tmp_path):
    """A codebook of another size, hypotheses of another beam: not replaced by the way."""
    assert command("extract", "features", world.cuts, tmp_path / "read", "--feature", "mfcc") == 0
    for line, key in (
        ("cluster  fit  {read}/cuts.jsonl.gz  {out}/book  --starts  1  --clusters  {n}", "clusters"),
        ("decode  {model}  {cuts}  {out}/decode  --workers  0  --modality  a  --set  beam={n}", "search"),
    ):
        places = {"read": tmp_path / "read", "out": tmp_path / "out"}
        assert command(*line.format(**vars(world) | places, n=2).split("  ")) == 0
        assert f"was made with another `{key}`" in fails(line, n=3, **places)


def test_what_must_not_be_replaced_is_said_before_the_work(fails, world, tmp_path, monkeypatch):
    """Not after hours of it: nothing is decoded, no update is taken."""
    for name in ("decode/cuts-a-clean", "tuned/model", "run/encoder"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "notes.txt").write_text("weeks of work")
    for module in ("mmspeech.cli.decode.decode", "mmspeech.training.trainer.run"):
        monkeypatch.setattr(module, lambda *_, **__: pytest.fail("it began"))
    for line in (
        "decode  {model}  {cuts}  {out}/decode  --workers  0  --modality  a",
        "finetune  {finetune}  {out}/tuned  --encoder  {encoder}",
        "pretrain  {pretrain}  {out}/run",
    ):
        assert "holds files of another origin" in fails(line, out=tmp_path)
    assert len(list(tmp_path.rglob("notes.txt"))) == 3


def test_a_longer_run_is_not_passed_off_as_a_shorter(fails, world, tmp_path):
    assert command("pretrain", world.pretrain, tmp_path / "out") == 0
    said = fails("pretrain  {pretrain}  {out}  --set  training.updates=1  --set  training.warmup_updates=0")
    assert "updates are done, more than training.updates: 1" in said


@pytest.mark.parametrize("setting", ["model.dim=32", "training.lr=0.02", "data.max_s=20", "objective.temperature=0.2"])
def test_run_is_not_gone_on_with_as_another(fails, world, tmp_path, setting):
    """Checkpoints of other settings would pass for the result of these: the key is named, the checkpoints stay."""
    shutil.copytree(world.folder / "pretrain", tmp_path / "exp")
    said = fails("pretrain  {pretrain}  {exp}  --set  {setting}", exp=tmp_path / "exp", setting=setting)
    assert f"exp: its checkpoints are of a run of another `{setting.split('=')[0]}`" in said and "to begin anew" in said
    assert checkpoint.kept(tmp_path / "exp" / "checkpoints") == [2]
    longer = ("--set", "training.updates=3", "--set", "data.workers=1")
    assert command("pretrain", world.pretrain, tmp_path / "exp", *longer) == 0
    assert checkpoint.kept(tmp_path / "exp" / "checkpoints")[-1] == 3


def test_recognizer_of_another_encoder_is_not_taken_for_this_ones(fails, world, tmp_path):
    """The same fine-tuning on an encoder trained for longer: another run, although all shapes fit."""
    longer = ("--set", "training.updates=3")
    assert command("pretrain", world.pretrain, tmp_path / "longer", *longer) == 0
    shutil.copytree(world.folder / "finetune", tmp_path / "exp")
    line = "finetune  {finetune}  {exp}  --encoder  {other}"
    said = fails(line, exp=tmp_path / "exp", other=tmp_path / "longer" / "encoder")
    assert "of other cuts or another encoder" in said
    shutil.copytree(world.encoder, tmp_path / "moved")
    shutil.rmtree(tmp_path / "exp" / "model")
    assert command("finetune", world.finetune, tmp_path / "exp", "--encoder", tmp_path / "moved") == 0


def test_checkpoint_of_another_model_names_what_does_not_fit(fails, world, tmp_path):
    """Copied from elsewhere, without the note of what it was made from."""
    for setting, text in (("model.dim=32", "has shape (16, 104)"), ("model.num_layers=3", "has no")):
        exp = tmp_path / setting
        shutil.copytree(world.folder / "pretrain" / "checkpoints", exp / "checkpoints")
        said = fails("pretrain  {pretrain}  {exp}  --set  {setting}", exp=exp, setting=setting)
        said = said.replace("`encoder.frontends.audio.project.weight` ", "")
        assert f"checkpoints/step-0000002.ckpt: {text}" in said


@contextlib.contextmanager
def small_disk(limit: int):
    """No file may grow beyond `limit` bytes: what a full disk does, for root too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_at_a_checkpoint_loses_nothing(mmspeech, world, tmp_path):
    """The real command in a process with a limit: one line names the file; with room again the run goes on."""
    exp = tmp_path / "exp"
    shutil.copytree(world.folder / "pretrain", exp)
    room = (exp / "checkpoints/step-0000002.ckpt").stat().st_size // 2
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))  # noqa: E731
    words = ["pretrain", world.pretrain, exp, "--set", "training.updates=3"]
    done = mmspeech(*words, preexec_fn=limit)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert (
        last
        == f"error: {exp}/checkpoints/step-0000003.ckpt: could not be written (File too large); make room and run again"
    )
    assert [path.name for path in (exp / "checkpoints").iterdir()] == ["step-0000002.ckpt"]
    assert command(*words) == 0
    assert checkpoint.kept(exp / "checkpoints") == [3]


def test_full_disk_at_the_end_of_a_run_is_told_too(fails, world, tmp_path):
    """Trained to the end, but no room for the result: encoder, recognizer; nothing half-written stays."""
    for name, line, result in (
        ("pretrain", "pretrain  {pretrain}  {exp}", "encoder"),
        ("finetune", "finetune  {finetune}  {exp}  --encoder  {encoder}", "model"),
    ):
        exp = tmp_path / name
        shutil.copytree(world.folder / name, exp)
        shutil.rmtree(exp / result)
        with small_disk(20_000):
            assert f"{result}.safetensors: could not be written (File too large)" in fails(line, exp=exp)
        assert not list(exp.rglob(f"*{result}*"))
        words = line.format(**vars(world), exp=exp).split("  ")
        assert command(*words) == 0 and (exp / result / f"{result}.safetensors").exists()


def test_full_disk_is_told_whatever_is_written(fails):
    """The first file of a run, the record of a stage, frames, hypotheses."""
    with small_disk(200):
        assert "run.json: could not be written" in fails("pretrain  {pretrain}  {out}")
    with small_disk(500):
        said = fails("extract  features  {cuts}  {out}/features  --feature  mfcc")
        assert "cuts-00000.bin: could not be written" in said
    with small_disk(120):
        assert "could not be written" in fails("decode  {model}  {cuts}  {out}/decode  --workers  0")


def spoil_units(world: World, path: Path, which: Collection[int]) -> Path:
    """The cuts, some of them with three units where they have fifteen frames or more."""
    with writing_cuts(path) as writer, NumpyFilesWriter(path.with_suffix(".arrays")) as arrays:
        for i, cut in enumerate(CutSet.from_jsonl_lazy(world.cuts)):
            if i in which:
                cut.units_km = arrays.store_array(cut.id, np.zeros(3, np.int32), 0.04, 0, 0)
            writer.write(cut)
    return path


@pytest.mark.parametrize("which", [[0], [3]])
def test_cut_with_units_of_another_length_is_left_out_and_the_run_goes_on(world, tmp_path, capsys, which):
    """Even if it is the longest of all, or alone in its batch, so that there is nothing else to train on."""
    cuts = spoil_units(world, tmp_path / "cuts.jsonl.gz", which)
    words = [
        "pretrain",
        world.pretrain,
        tmp_path / "exp",
        "--set",
        f"data.cuts=[{cuts}]",
        "--set",
        "data.valid_cuts=[]",
    ]
    words += ["--set", "data.max_batch_s=1.0", "--set", "data.batch_s=1.0", "--set", "training.updates=8"]
    assert command(*words) == 0
    said = capsys.readouterr().err
    assert f"set aside: clip00{which[0]}: has 3 units `km`, but its" in said
    assert {line.split()[2] for line in said.splitlines() if "set aside" in line} == {f"clip00{which[0]}:"}


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("pretrain  {pretrain}  {out}  --set  data.cuts=[{bad}]", "{bad}: no cut could be used"),
        ("pretrain  {pretrain}  {out}  --set  data.valid_cuts=[{bad}]", "validation: none of its items could be used"),
        ("pretrain  {pretrain}  {out}  --set  data.units=other", "{cuts}: no cut could be used"),
        ("cluster  purity  {bad}  --name  km", "{bad}: "),
        ("cluster  label  {cuts}  {codebook}  {out}  --name  km", "{cuts}: no cut could be labelled"),
        ("finetune  {finetune}  {out}  --encoder  {encoder}  --set  data.cuts=[{untold}]", "{untold}: no cut has a tr"),
        (
            "decode  {model}  {sound}  {out}  --modality  v,av",
            "{sound}: no cut has video; decode audio alone with --mod",
        ),
    ],
)
def test_nothing_left_is_an_error(fails, world, tmp_path, line, text):
    """Every cut set aside: exit code 2, and no result that looks like one."""
    places = {"bad": spoil_units(world, tmp_path / "bad.jsonl.gz", range(4)), "codebook": tmp_path / "codebook"}
    if "codebook" in line:
        assert command("extract", "features", world.cuts, tmp_path / "mfcc", "--feature", "mfcc") == 0
        assert command("cluster", "fit", tmp_path / "mfcc" / world.cuts.name, places["codebook"], "--clusters", 3) == 0
    assert text.format(**vars(world), **places) in fails(line, **places)
    assert not list((tmp_path / "out").rglob("stage.json"))


def test_streams_that_no_cut_has_are_skipped_with_a_line(world, tmp_path, capsys):
    """Sound without lips: `a` is decoded; `av` would be called what it is not."""
    assert command("decode", world.model, world.sound, tmp_path / "out", "--modality", "av,a,v") == 0
    said = capsys.readouterr().err
    for name in ("av", "v"):
        assert f"sound-{name}-clean: skipped, no cut in {world.sound} has video" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["sound-a-clean"]


def test_lips_under_noise_are_decoded_clean_with_a_line(world, fails, tmp_path, capsys):
    """Noise falls on sound: `--modality v --noise babble:0` is not nothing, and is not called noisy."""
    words = ["decode", world.model, world.cuts, tmp_path / "out", "--modality", "v", "--workers", 0, "--noise"]
    assert command(*words, "babble:0,music:-5") == 0
    assert "cuts-v-clean: decoded in place of babble:0,music:-5, because v hears no noise" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cuts-v-clean"]
    facts = json.loads((tmp_path / "out/cuts-v-clean/decode.json").read_text())
    assert (facts["noise"], facts["noise_hash"], facts["hears_noise"], facts["set_aside"]) == ("clean", None, False, 0)
    assert command(*words, "clean,babble:0") == 0
    said = capsys.readouterr().err
    assert "current, nothing to do" in said and "in place of" not in said
    assert "--noise babel:0" in fails("decode  {model}  {cuts}  {out}  --modality  v  --noise  babel:0")


def test_decoding_under_noise_says_its_hash(world, tmp_path, capsys):
    """In the closing line as in the table, and in decode.json."""
    audio = write_cuts(tmp_path / "noise", [3.0, 3.0], name="cuts_noise.jsonl.gz", units=None)
    sha256 = "8ff9740d" * 8

    class Silence:
        def __init__(self, path: Path) -> None:
            self.sha256 = sha256

        def __call__(self, wave: np.ndarray, cut: object, number: int = 0) -> np.ndarray:
            return wave

    (tmp_path / "babble_0dB.jsonl").write_text(audio.name)
    words = ["--modality", "a", "--noise", "babble:0", "--noise-sets", tmp_path, "--workers", 0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "FrozenNoise", Silence)
        assert command("decode", world.model, world.cuts, tmp_path / "out", *words) == 0
    assert "cuts-a-babble_0dB: 4 utterances, noise #8ff9740d, " in capsys.readouterr().err
    facts = json.loads((tmp_path / "out/cuts-a-babble_0dB/decode.json").read_text())
    assert (facts["noise_hash"], facts["hears_noise"]) == (sha256, True)


def test_cuts_that_cannot_be_decoded_are_counted_or_stop_the_command(world, fails, tmp_path, capsys):
    """rejected.jsonl, decode.json and a line say how many; --strict writes nothing, and nor does it let pass."""
    cuts = write_cuts(tmp_path, [0.6, 0.7, 0.8], name="cuts_test.jsonl.gz")
    gone = tmp_path / "cuts_test.jsonl.gz-1.wav"
    gone.unlink()

    line = "decode  {model}  {cuts}  {out}  --modality  a  --workers  0"
    said = fails(line + "  --strict", cuts=cuts)
    assert f"test-a-clean: 1 cut(s) could not be read, as clip001: {gone}: no such file" in said
    assert "--strict stops here" in said
    assert not (tmp_path / "out").exists()
    assert command(*line.format(model=world.model, cuts=cuts, out=tmp_path / "out").split("  ")) == 0
    folder = tmp_path / "out/test-a-clean"
    assert f"1 cut(s) set aside and in no error rate; reasons in {folder}/rejected.jsonl" in capsys.readouterr().err
    assert [json.loads(one)["item"] for one in (folder / "rejected.jsonl").read_text().splitlines()] == ["clip001"]
    assert json.loads((folder / "decode.json").read_text())["set_aside"] == 1
    assert len((folder / "hyp.jsonl").read_text().splitlines()) == 2
    assert "rejected.jsonl (--strict allows none)" in fails(line + "  --strict", cuts=cuts)
    assert command("score", "wer", folder) == 0
    assert "1 cut(s) set aside" in capsys.readouterr().err


def test_lips_that_are_gone_are_set_aside_as_lost_sound_is(world, fails, tmp_path, monkeypatch):
    """The cut is named; --strict stops at the first, before the batches behind it; if all are gone, so is the run."""
    shards = {}
    for name, durations in (("one", [0.6]), ("two", [1.0, 0.7, 0.8])):
        cuts = write_cuts(tmp_path / name, durations, name="cuts_test.jsonl.gz", lips=range(3))
        shards[name] = Path(next(iter(CutSet.from_jsonl_lazy(cuts))).mouth.array.storage_path)
    both = tmp_path / "cuts_test.jsonl.gz"
    with writing_cuts(both) as writer:
        for name in shards:
            for cut in CutSet.from_jsonl_lazy(tmp_path / name / "cuts_test.jsonl.gz"):
                writer.write(cut.with_id(f"{name}-{cut.id}"))
    shards["one"].unlink()
    line = "decode  {model}  {cuts}  {out}  --modality  v  --workers  0  --batch-seconds  1"
    assert command(*line.format(model=world.model, cuts=both, out=tmp_path / "out").split("  ")) == 0
    (told,) = map(json.loads, (tmp_path / "out/test-v-clean/rejected.jsonl").read_text().splitlines())
    assert told["item"] == "one-clip000"
    assert told["reason"].startswith(f"one-clip000: {shards['one']}: no such file; run `mmspeech extract mouth`")

    read = []
    monkeypatch.setattr(loader, "read_item", lambda cut, *rest: read.append(cut.id) or read_item(cut, *rest))
    said = fails(line + "  --strict", cuts=both, out=tmp_path / "strict")
    assert "as one-clip000: " in said and "--strict stops here" in said and len(read) < 4
    shards["two"].unlink()
    forget_open_shards()
    assert "no cut could be decoded as test-v-clean" in fails(line, cuts=both, out=tmp_path / "none")


def test_hypotheses_of_another_model_are_not_replaced(world, fails, tmp_path, monkeypatch):
    """What OUT holds is named before any work; a folder trained anew replaces its own, a copy is current."""
    model = tmp_path / "mine/model"
    shutil.copytree(world.model, model)
    line = "decode  {m}  {cuts}  {out}  --modality  {modality}  --workers  0"
    places = vars(world) | {"out": tmp_path / "out", "modality": "a"}
    assert command(*line.format(m=model, **places).split("  ")) == 0
    assert command(*line.format(m=world.model, **places).split("  ")) == 0  # a copy: the same weights
    record = json.loads((model / "stage.json").read_text())
    (model / "stage.json").write_text(json.dumps(record | {"settings": {"training": "longer"}}))
    assert command(*line.format(m=model, **places).split("  ")) == 0
    with monkeypatch.context() as patch:
        patch.setattr(decode, "decode", lambda *_: pytest.fail("it began"))
        for modality in ("a", "v"):
            said = fails(line, m=world.model, out=tmp_path / "out", modality=modality)
            assert f"holds hypotheses of mine ({model}), not of {world.model}; give another OUT" in said


def test_cuts_without_a_transcript_are_counted(world, tmp_path, capsys):
    cuts = write_cuts(tmp_path, [0.6, 0.7, 0.8], name="cuts_test.jsonl.gz", texts=["one", "", "two"])
    assert command("decode", world.model, cuts, tmp_path / "out", "--modality", "a", "--workers", 0) == 0
    said = capsys.readouterr().err
    assert "1 of 3 cuts have no transcript; they are not scored" in said and "test-a-clean, batches: 1" in said


def test_the_installed_command_says_one_line_of_a_mistake_in_a_run(mmspeech, world, tmp_path):
    done = mmspeech("pretrain", world.pretrain, tmp_path / "out", "--set", "training.updatez=5")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {world.pretrain}: `training.updatez`")
