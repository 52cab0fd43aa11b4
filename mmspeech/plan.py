"""What a recipe's run.sh does between preparation and report: which iterations, which fine-tunings, which tests.

python -m mmspeech.plan recipes/lrs3/conf/uhubert/synth.yaml pretrain      prints the value, one line per entry
python -m mmspeech.plan recipes/lrs3/conf/uhubert/lrs3.yaml noisy          the files that train with noise
python -m mmspeech.plan recipes/lrs3/conf/uhubert/lrs3.yaml sources 5      what iteration 5 is trained on
python -m mmspeech.plan recipes/lrs3/conf/uhubert/lrs3.yaml extra          corpora beside --corpus that it needs
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmspeech import config as configs
from mmspeech.errors import UserError
from mmspeech.plan_sources import COMPLETE, PlanSource, check_sources, extra_lines, source_lines


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The file that run.sh's --conf names; paths in it are relative to it."""

    synth: str = ""  # options of `mmspeech prepare synth`: how big and how hard the embedded corpus is
    pretrain: list[str]  # one YAML per iteration
    units: list[str]  # per iteration, what is clustered: mfcc, or the number of a layer of the iteration before
    clusters: list[int]  # per iteration, size of the codebook
    cluster: str = "--share 0.1"  # options of `mmspeech cluster fit`; AV-HuBERT learns from a tenth of the utterances
    anchor: str = "audio"  # modality whose own features give the first units (u-HuBERT Sec. 3.2)
    sources: list[PlanSource] = field(default_factory=lambda: [PlanSource(cuts="pretrain+trainval")])
    pseudo_labels: str = (
        COMPLETE  # from iteration 2 on, input that units are made from: all of it (the paper's choice),
    )
    # or e.g. audio, where a source has it
    codebook: list[str] = field(
        default_factory=list
    )  # from iteration 2 on, inputs whose features the codebook is learnt
    # from, together: [audio+video] (the paper), [audio, video, audio+video] ... Empty: the features that are labelled
    finetune: list[str]  # one YAML per recognizer
    labelled: list[Literal["trainval", "pretrain+trainval"]] = field(default_factory=list)  # per recognizer, what it
    # is tuned on: of LRS3 30 h or 433 h; without entries, each on trainval
    modality: str = "av,a,v"  # streams that every recognizer is tested with
    noise: str = "clean,babble:0"  # and noises
    search: list[str] = field(default_factory=list)  # settings of the search: beam=5

    def __post_init__(self) -> None:
        if not len(self.pretrain) == len(self.units) == len(self.clusters):
            raise UserError("pretrain:, units: and clusters: need one entry per iteration each; add what is missing")
        if self.units and self.units[0] != "mfcc":
            raise UserError(f"units: the first iteration has no layer {self.units[0]}; start with mfcc")
        check_sources(self.sources, len(self.pretrain), self.anchor)
        if not self.labelled:
            object.__setattr__(self, "labelled", ["trainval"] * len(self.finetune))
        if len(self.labelled) != len(self.finetune):
            raise UserError("labelled: needs one entry per file of finetune:, or none; add what is missing")


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


def main() -> None:
    """Print one field of a plan, one line per entry of a list."""
    try:
        file, key, *number = Path(sys.argv[1]), *sys.argv[2:]
        plan = configs.load(file, Plan)
        if key == "noisy":
            value = noisy(file.parent / name for name in [*plan.pretrain, *plan.finetune])
        elif key == "sources" and number:
            value = source_lines(plan.sources, int(number[0]), plan.pseudo_labels, plan.codebook)
        elif key == "extra":
            value = extra_lines(plan.sources)
        else:
            value = getattr(plan, key)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    lines = value if isinstance(value, list) else [value]
    if key in ("pretrain", "finetune"):
        lines = [file.parent / line for line in lines]
    print("\n".join(map(str, lines)))


if __name__ == "__main__":
    main()
