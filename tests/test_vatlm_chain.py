"""VATLM's whole chain by recipes/lrs3/run.sh, nothing stood in for: from a corpus that is made to a table."""

import csv
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from cuts import write_run
from preloaded import preloaded
from safetensors.torch import load_file

from mmspeech import config as configs
from mmspeech import files
from mmspeech.data.cutfiles import files_in, open_cuts
from mmspeech.data.open_shards import load_stored
from mmspeech.data.units import made_from, read_units
from mmspeech.models.av_encoder import load_encoder

ROOT = Path(__file__).parents[1]
CONF = ROOT / "recipes/lrs3/conf/vatlm"
TYPES = ("audio+video", "audio", "audio+text", "text")
CLUSTERS = (7, 9)  # of the two iterations: another number each, lest one be taken for the other
UNITS_FROM = {"pretrain+trainval": ["audio", "video"], "tedlium": ["audio"], "gigaspeech": ["audio"], "text": []}
PHONES = 46  # rows of the text front-end
# As small as the preparers and the lists of validation clips and talks allow: of eight talks one more is held out.
SYNTH = (
    "--pretrain-clips 3 --trainval-clips 4 --test-clips 2 --speakers 7 --noise-files 10 --sentences 30 --talks 8 "
    "--recordings 1"
)
MODEL = {
    "model.streams.video": {"frontend": "lips", "crop": 20, "stem": 4, "widths": [4, 4, 8, 8], "blocks": 1},
    "data.streams.video": {"reader": "mouth", "size": 24, "crop": 20},
    **{"model.num_layers": 2, "model.dim": 16, "model.ffn_dim": 32, "model.heads": 2, "model.position_kernel": 7},
    "data.max_batch_s": 8,
}
PHONE2UNIT = {"model.dim": 16, "model.ffn_dim": 32, "model.duration_dim": 16, "training.decay_updates": 3}
TUNE = {"objective.encoder.freeze_updates": 1, "training.hold_updates": 1, "training.decay_updates": 1}


class Chain(NamedTuple):
    """What the recipe made."""

    exp: Path
    words: list[object]  # of its call
    env: dict[str, str]

    def run(self) -> str:
        """Call the recipe; returns what it said."""
        line = ["bash", ROOT / "recipes/lrs3/run.sh", *map(str, self.words)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=300, env=self.env)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def made_of(self, stage: str) -> dict[str, str]:
        """What a stage read, by its place in `exp`, and the digests."""
        inputs = json.loads((self.exp / stage / "stage.json").read_text())["inputs"]
        return {str(Path(path).relative_to(self.exp)): digest for path, digest in inputs.items()}


def write_plan(folder: Path) -> Path:
    """The quick start's plan and the files that it names, each based on its original: little of everything."""

    def small(name: str, updates: int, changes: dict[str, object]) -> str:
        training = {"updates": updates, "warmup_updates": 1, "log_every": 1}
        training |= {"validate_every": updates, "checkpoint_every": updates}
        tree = {"base": str(CONF / name), "training": training, "data": {"workers": 0}}
        return write_run(folder / Path(name).name, tree, changes).name

    plan = {
        "base": str(CONF / "synth.yaml"),
        "synth": SYNTH,
        "pretrain": [small("../uhubert/pretrain/synth-1.yaml", 2, MODEL), small("pretrain/synth.yaml", 4, MODEL)],
        "units": ["mfcc", "1"],
        "clusters": list(CLUSTERS),
        "cluster": "--starts 1",
        "phone2unit": small("pretrain/synth-phone2unit.yaml", 4, PHONE2UNIT),
        "finetune": [small("finetune/synth-av.yaml", 3, TUNE)],
        "noise": "clean",
    }
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(plan))
    return path


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Iterator[Chain]:
    """The recipe, from stage 0 to the last one."""
    pytest.importorskip("espeakng_loader", reason="making clips needs pip install mmspeech[synth]")
    folder = tmp_path_factory.mktemp("chain")
    plan = write_plan(folder / "conf")
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = ["--system", "vatlm", "--exp", folder / "exp", "--conf", plan, "--jobs", 1, "--babbles", 3]
    with preloaded(folder / "bin"):
        chain = Chain(folder / "exp", words, env)
        chain.run()
        yield chain


def lines(exp: Path) -> list[dict]:
    return [json.loads(line) for line in (exp / "metrics.jsonl").read_text().splitlines()]


def test_every_type_of_data_has_its_part_of_the_loss(chain):
    """L = L_av + L_a + L_ap + L_p (Eq. 3): each finite in every update, and above 0 in some."""
    found = [line for line in lines(chain.exp / "iter2") if line["kind"] == "train"]
    assert [line["update"] for line in found] == [1, 2, 3, 4]
    for name in TYPES:
        parts = [line[f"loss/{name}"] for line in found]
        assert all(map(math.isfinite, parts)) and max(parts) > 0, (name, parts)
    for line in found:
        assert math.isfinite(line["grad_norm"]) and line["grad_norm"] > 0
        assert line["loss"] == pytest.approx(sum(line[f"loss/{name}"] for name in TYPES), rel=1e-4)


def test_all_four_sources_have_units_of_one_codebook(chain):
    """Speech by its nearest centres, text by a model that learnt from units of those; VATLM reads just these files."""
    second = chain.exp / "iter2"
    for name, streams in UNITS_FROM.items():
        cuts = list(open_cuts(files_in([second / "units" / name])))
        assert cuts, name
        units = [read_units(cut, "km") for cut in cuts]
        assert min(map(min, units)) >= 0 and max(map(max, units)) < CLUSTERS[1], name
        assert all(made_from(cut, "km") == streams for cut in cuts), name

    codebook = files.digest(second / "codebook")
    assert json.loads((second / "codebook/stage.json").read_text())["settings"]["clusters"] == CLUSTERS[1]
    speech = [f"iter2/units/{name}" for name in (*list(UNITS_FROM)[:3], "valid", "tedlium-valid")]
    assert {chain.made_of(place)["iter2/codebook"] for place in speech} == {codebook}
    assert codebook != files.digest(chain.exp / "iter1/codebook")
    paired = "iter2/units/tedlium/cuts_trainval.jsonl.gz"
    assert chain.made_of("iter2/phone2unit/model")[paired] == files.digest(chain.exp / paired)
    model = "iter2/phone2unit/model/model.safetensors"
    assert chain.made_of("iter2/units/text")[model] == files.digest(chain.exp / model)

    trained = [path for path in chain.made_of("iter2/encoder") if not path.startswith("noise/")]
    assert {str(Path(path).parent.relative_to("iter2/units")) for path in trained} == {
        "pretrain+trainval", "tedlium", "gigaspeech", ".", "valid", "tedlium-valid",
    }  # fmt: skip
    assert "iter2/units/text" in trained


def test_text_has_four_phones_for_each_unit_and_no_sound(chain):
    """Phones at 100 Hz, units at 25 Hz (Sec. III-C); every line of the corpus's text is said."""
    cuts = list(open_cuts(files_in([chain.exp / "iter2/units/text"])))
    assert [cut.supervisions[0].text for cut in cuts] == (
        (chain.exp / "corpus/text/sentences.txt").read_text().splitlines()
    )
    for cut in cuts:
        phones, units = load_stored(cut, "phones"), read_units(cut, "km")
        assert phones.shape == (len(units), 4) and len(units) == round(cut.duration * 25) > 0
        assert phones.max() < PHONES and not cut.has_recording


def test_the_recognizer_has_no_text_frontend(chain):
    """Sec. IV-C: removed before tuning; all else comes from the pre-trained model's shape."""
    before, after = (
        load_file(chain.exp / place)
        for place in ("iter2/encoder/encoder.safetensors", "synth-av/model/model.safetensors")
    )
    assert any(name.startswith("frontends.text.") for name in before)
    tuned = {name.removeprefix("encoder.") for name in after if name.startswith("encoder.")}
    assert tuned == {name for name in before if not name.startswith("frontends.text.")}
    assert load_encoder(chain.exp / "synth-av/model").removed == ["text"]
    assert configs.read(chain.exp / "synth-av/model/config.yaml")["model"]["streams"]["text"] == {"frontend": "none"}


def test_the_table_has_rates_for_sound_and_lips_together_and_alone(chain):
    with open(chain.exp / "report/table.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    own = {row["modality"]: row for row in rows if row["system"] == "synth-av"}
    assert own.keys() == {"av", "a", "v"}
    for row in own.values():
        assert (row["noise"], row["metric"], row["sentences"]) == ("clean", "wer", "2") and float(row["value"]) >= 0
    assert any(row["system"] == "floor (no input)" for row in rows)
    figure = json.loads(
        (chain.exp / "iter2/modalities/modalities.json").read_text()
    )  # of four kinds of input: Figure 3
    assert figure["modalities"] == ["audio+video", "audio", "video", "text"] and figure["frames"] > 0


def test_the_whole_recipe_called_again_takes_no_update(chain):
    """All stages are current: only the report is written anew."""

    def kept() -> dict[Path, int]:
        paths = (path for path in chain.exp.rglob("*") if path.is_file() and path.parent != chain.exp / "report")
        return {path: path.stat().st_mtime_ns for path in paths}

    before = kept()
    said = chain.run()
    assert kept() == before
    for name in ("iter1/encoder", "iter2/phone2unit/model", "iter2/encoder", "synth-av/model"):
        assert f"{chain.exp / name}: current, nothing to do" in said
    assert ": written" not in said and "update 1/" not in said


def test_a_call_of_the_preloaded_command_ends_as_the_command_does(chain, tmp_path):
    """Its exit code and its one line, in the caller's folder: else the recipe would go on where it must stop."""
    words = [chain.env["PATH"].partition(os.pathsep)[0] + "/mmspeech", "pretrain", "nowhere.yaml", "exp"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: nowhere.yaml: no such configuration file")
    done = subprocess.run([words[0], "--version"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("mmspeech ")
