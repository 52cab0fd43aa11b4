"""What a recipe's run.sh does between preparation and report: which iterations, which fine-tunings, which tests.

python -m mmspeech.plan recipes/lrs3/conf/uhubert/synth.yaml pretrain      prints the value, one line per entry
python -m mmspeech.plan recipes/lrs3/conf/uhubert/lrs3.yaml noisy          the files that train with noise
python -m mmspeech.plan recipes/lrs3/conf/uhubert/lrs3.yaml noisy-finetune   those of them that fine-tune
python -m mmspeech.plan recipes/lrs3/conf/uhubert/synth-sweep.yaml sweeps    noises that sweeps are selected under
python -m mmspeech.plan recipes/lrs3/conf/vatlm/rows/FILE teacher-streams   what a teacher of self-training gets
python -m mmspeech.plan recipes/lrs3/conf/uhubert/lrs3.yaml sources 5      what iteration 5 is trained on
python -m mmspeech.plan recipes/lrs3/conf/uhubert/lrs3.yaml extra          corpora beside --corpus that it needs
python -m mmspeech.plan recipes/lrs3/conf/uhubert/rows/table2-drop-a.yaml folders      of a row: a name per iteration

A plan that stands for one row of a paper's table (conf/*/rows/) also has the figures that are printed there.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmspeech import config as configs
from mmspeech.errors import UserError
from mmspeech.plan_sources import COMPLETE, WRITTEN, PlanSource, check_sources, extra_lines, source_lines

# What a recognizer is tuned on: parts of --corpus (of LRS3 30 h and 403 h), the sound of TED-LIUM 3, and VoxCeleb2 with
# what another recognizer makes of it (self-training).
Labelled = Literal["trainval", "pretrain+trainval", "trainval+tedlium", "trainval+vox", "pretrain+trainval+vox"]
SWEEP_NOISE = "clean,babble:0"  # what a sweep is selected under, unless it says so


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The file that run.sh's --conf names; paths in it are relative to it."""

    synth: str = ""  # options of `mmspeech prepare synth`: how big and how hard the embedded corpus is
    # One YAML per iteration, what is clustered for it (mfcc, or the number of a layer of the iteration before), and the
    # size of its codebook. None of all where run.sh starts from a model (--init); no units and no clusters where a
    # system predicts none (AV-data2vec).
    pretrain: list[str] = field(default_factory=list)
    units: list[str] = field(default_factory=list)
    clusters: list[int] = field(default_factory=list)
    cluster: str = "--share 0.1"  # options of `mmspeech cluster fit`; AV-HuBERT learns from a tenth of the utterances
    anchor: str = "audio"  # modality whose own features give the first units (u-HuBERT Sec. 3.2)
    sources: list[PlanSource] = field(default_factory=lambda: [PlanSource(cuts="pretrain+trainval")])
    # From iteration 2 on, the input that units are made from: all of it (the paper's choice), or e.g. audio, where a
    # source has it.
    pseudo_labels: str = COMPLETE
    # From iteration 2 on, the inputs whose features the codebook is learnt from, together: [audio+video] (the paper),
    # [audio, video, audio+video] ... Empty: the features that are labelled.
    codebook: list[str] = field(default_factory=list)
    phone2unit: str = ""  # YAML of the model that makes the units of text alone from its phones (VATLM Sec. III-C)
    aligner: str = ""  # YAML of the recognizer that finds phones in sound with transcripts, where no folder has them
    finetune: list[str]  # one YAML per recognizer
    labelled: list[Labelled] = field(default_factory=list)  # per recognizer; without entries, each on trainval
    # One more YAML of a recognizer, which is tuned on `labelled` without `vox` and then transcribes `vox`.
    teacher: str = ""
    # Options of `mmspeech extract pseudo-labels`: which of its transcripts are learnt from. VATLM (Sec. V-B) only
    # drops what is short; `--min-confidence -0.3` drops what the teacher was not sure of.
    trusted: str = "--min-s 2.0"
    modality: str = "av,a,v"  # streams that every recognizer is tested with
    modalities: list[str] = field(default_factory=list)  # instead of `modality`, one entry per recognizer
    noise: str = "clean,babble:0"  # and noises
    noisy_validation: bool = False  # fine-tunings that train with noise validate in these noises, not on clean sound
    search: list[str] = field(default_factory=list)  # settings of the search: beam=5
    beams: list[int] = field(default_factory=list)  # widths: each recognizer is tested with its best on validation cuts

    def __post_init__(self) -> None:
        if self.clusters_units and not len(self.pretrain) == len(self.units) == len(self.clusters):
            raise UserError("pretrain:, units: and clusters: need one entry per iteration each; add what is missing")
        if self.units and self.units[0] != "mfcc":
            raise UserError(f"units: the first iteration has no layer {self.units[0]}; start with mfcc")
        check_sources(self.sources, len(self.pretrain) if self.clusters_units else 0, self.anchor, self.phone2unit)
        if not self.labelled:
            object.__setattr__(self, "labelled", ["trainval"] * len(self.finetune))
        if len(self.labelled) != len(self.finetune):
            raise UserError("labelled: needs one entry per file of finetune:, or none; add what is missing")
        if not self.modalities:
            object.__setattr__(self, "modalities", [self.modality] * len(self.finetune))
        if len(self.modalities) != len(self.finetune):
            raise UserError("modalities: needs one entry per file of finetune:, or none; add what is missing")
        if self.beams and any(setting.startswith("beam=") for setting in self.search):
            raise UserError("beams: and `beam=` in search: are both set; leave one out")
        if self.noisy_validation and ":" not in self.noise:
            raise UserError(
                f"noisy_validation: is in the noises of noise:, which has {self.noise}; name some, as babble:0"
            )
        if bool(self.teacher) != any("vox" in labelled.split("+") for labelled in self.labelled):
            raise UserError(
                "teacher: is the recognizer that transcribes the `vox` of labelled:, which has no transcripts; give "
                "both, or none"
            )

    @property
    def clusters_units(self) -> bool:
        """Whether something is clustered for the pre-training to predict."""
        return bool(self.units or self.clusters)


@dataclass(frozen=True, kw_only=True)
class Row(Plan):
    """One row of a paper's table: what to run for it, and what is printed there; a figure that is not is left out."""

    table: str  # as it is called there: Table 2
    row: str  # what tells it from its neighbours, in the table's own words
    encoder: str = ""  # where nothing is pre-trained: the pre-training YAML whose sizes and streams the encoder has
    metric: Literal["wer", "bleu"] = "wer"
    paper: dict[str, dict[str, float]] = field(default_factory=dict)  # streams -> noise -> figure, as printed
    average: float | None = None  # the table's own mean, as printed
    pnmi: dict[str, dict[str, float]] = field(default_factory=dict)  # codebook -> features -> PNMI in percent
    tolerance: float = 1.0  # points by which two runs of the same thing may differ; ours, no paper states one
    corpus: str = "LRS3"  # whose test set it is
    labelled_corpus: str = "LRS3"
    hours: float | None = None  # with labels, given or made
    unlabelled_hours: float = 0.0  # of speech in pre-training

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.finetune) > 1:
            raise UserError(f"finetune: {len(self.finetune)} files; a row is one recognizer: name one")
        if self.finetune and bool(self.pretrain) == bool(self.encoder):
            raise UserError("encoder: is for rows without pre-training, which need it; give `pretrain` or `encoder`")
        if self.tolerance < 0:
            raise UserError(f"tolerance: {self.tolerance}; expected points, 0 or more")

    @property
    def title(self) -> str:
        return f"{self.table}: {self.row}"

    @property
    def condition(self) -> str:
        """`LRS3, 433 h of labels, 1759 h without`."""
        return describe_hours(self.corpus, self.labelled_corpus, self.hours, self.unlabelled_hours)


def describe_hours(corpus: str, labelled: str, hours: float | None, unlabelled_hours: float | None) -> str:
    """What was tested on, and how much was trained on; None: not known."""
    labels = "labels not known" if hours is None else f"{round(hours) if hours >= 100 else f'{hours:.3g}'} h of labels"
    labels += f" of {labelled}" if labelled.casefold() != corpus.casefold() else ""
    if unlabelled_hours is None:
        return f"{corpus}, {labels}, pre-training not known"
    return f"{corpus}, {labels}, " + (f"{unlabelled_hours:.5g} h without" if unlabelled_hours else "no pre-training")


def load(file: Path) -> Plan:
    """The plan in a file, a Row if it names a table. Raises UserError."""
    tree = configs.read(file)
    plan = configs.build(tree, Row if "table" in tree else Plan, file)
    first = file.parent / plan.pretrain[0] if plan.pretrain and not plan.clusters_units else None
    if first and first.exists() and configs.read(first).get("system") == "uhubert":
        raise UserError(f"{file}: `units` and `clusters` are missing; u-HuBERT predicts units: add them")
    return plan


def check_no_plan(tree: Mapping[str, Any], file: Path, key: Literal["pretrain", "finetune"]) -> None:
    """Raise UserError if the settings of what should be a run are those of a plan."""
    named = next((one for name in (key, "pretrain", "finetune") for one in _listed(tree.get(name))), None)
    if named is not None and "system" not in tree and "task" not in tree:
        one = file.parent / str(named)
        raise UserError(f"{file}: is a plan, for run.sh --conf; give one of the files that it names, as {one}")


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def load_row(file: Path) -> Row:
    """The row in a file. Raises UserError if it is none."""
    return configs.load(file, Row)


def folders(plan: Plan, place: Path) -> list[str]:
    """A name for each iteration of pre-training that says what was done up to there: `iter2-1f3a99c0`.

    Plans that share their first iterations, settings and all, share the folders.

    Args:
        place: the folder that the plan's paths are relative to.
    """
    done: list[object] = [plan.cluster, plan.anchor]
    found = []
    units, clusters = plan.units or [""] * len(plan.pretrain), plan.clusters or [0] * len(plan.pretrain)
    for number, entry in enumerate(zip(plan.pretrain, units, clusters, strict=True), start=1):
        sources = source_lines(plan.sources, number, plan.pseudo_labels, plan.codebook)
        done.append([configs.read(place / entry[0]), *entry[1:], sources])
        if any(source.cuts in WRITTEN and source.first_iteration <= number for source in plan.sources):
            done.append(configs.read(place / plan.phone2unit))
        found.append(f"iter{number}-{hashlib.sha256(json.dumps(done, sort_keys=True).encode()).hexdigest()[:8]}")
    return found


def noisy(files: Iterable[Path]) -> list[Path]:
    """Those that mix noise into what they train on and do not say where it lies: they need --musan.

    Raises UserError for a file that is missing or is not YAML.
    """
    found = []
    for file in files:
        data = configs.read(file).get("data")
        noise = data.get("noise") if isinstance(data, dict) else None  # other mistakes are told where it is read
        # As NoiseConfig has it, whose import would take longer than all else here: named, it falls on a quarter.
        if isinstance(noise, dict) and noise.get("probability", 0.25) and not noise.get("cuts"):
            found.append(file)
    return found


def texts(files: Iterable[Path]) -> list[str]:
    """What the fine-tunings learn to write, each once: transcript, or translation.LANGUAGE."""
    return list(dict.fromkeys(str(configs.read(file).get("text", "transcript")) for file in files)) or ["transcript"]


def sweeps(files: Iterable[Path]) -> list[str]:
    """`FILE<tab>clean,babble:0`: fine-tunings that are sweeps (cli/sweep.py), and the noises they are selected in."""
    found = []
    for file in files:
        swept = configs.read(file).get("sweep")
        if isinstance(swept, dict):  # other mistakes are told where it is read
            found.append(f"{file}\t{swept.get('noise', SWEEP_NOISE)}")
    return found


def main() -> None:
    """Print one field of a plan, one line per entry of a list."""
    try:
        file, key, *number = Path(sys.argv[1]), *sys.argv[2:]
        plan = load(file)
        for name in [*plan.pretrain, *plan.finetune, plan.phone2unit, plan.aligner, plan.teacher]:  # some are read late
            if name and not (file.parent / name).exists():
                raise UserError(
                    f"{file}: names {name}, which is not in {file.parent}; names are relative to the plan's folder, "
                    "those of its `base:`, too"
                )
        value: Any
        if key in ("noisy", "noisy-finetune"):
            names = [*(plan.pretrain if key == "noisy" else []), *plan.finetune]
            value = noisy(file.parent / name for name in names)
        elif key == "teacher-streams":
            read = configs.read(file.parent / plan.teacher) if plan.teacher else {}
            value = "+".join(read.get("streams") or ["audio", "video"])
        elif key == "folders":
            value = folders(plan, file.parent)
        elif key == "texts":
            value = texts(file.parent / name for name in plan.finetune)
        elif key == "sweeps":
            value = sweeps(file.parent / name for name in plan.finetune)
        elif key == "sources" and number:
            value = source_lines(plan.sources, int(number[0]), plan.pseudo_labels, plan.codebook)
        elif key == "extra":
            value = extra_lines(plan.sources) if plan.pretrain else []
        else:
            if not hasattr(plan, key):
                raise UserError(f"{file}: has no `{key}`; expected a row of a table, as in conf/uhubert/rows")
            value = getattr(plan, key)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    lines = value if isinstance(value, list) else [value]
    if key in ("pretrain", "finetune", "encoder", "phone2unit", "aligner", "teacher"):
        lines = [file.parent / line for line in lines if line]
    for line in lines:
        print(line)


if __name__ == "__main__":
    main()
