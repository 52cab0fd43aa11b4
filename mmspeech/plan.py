"""What a recipe's run.sh does between preparation and report: which iterations, which fine-tunings, which tests.

python -m mmspeech.plan recipes/lrs3/conf/uhubert/synth.yaml pretrain      prints the value, one line per entry
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from mmspeech import config as configs
from mmspeech.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The file that run.sh's --conf names; paths in it are relative to it."""

    synth: str = ""  # options of `mmspeech prepare synth`: how big and how hard the embedded corpus is
    pretrain: list[str]  # one YAML per iteration
    units: list[str]  # per iteration, what is clustered: mfcc, or the number of a layer of the iteration before
    clusters: list[int]  # per iteration, size of the codebook
    cluster: str = "--share 0.1"  # options of `mmspeech cluster fit`; AV-HuBERT learns from a tenth of the utterances
    finetune: list[str]  # one YAML per recognizer
    modality: str = "av,a,v"  # streams that every recognizer is tested with
    noise: str = "clean,babble:0"  # and noises
    search: list[str] = field(default_factory=list)  # settings of the search: beam=5

    def __post_init__(self) -> None:
        if not len(self.pretrain) == len(self.units) == len(self.clusters):
            raise UserError("pretrain:, units: and clusters: need one entry per iteration each; add what is missing")
        if self.units and self.units[0] != "mfcc":
            raise UserError(f"units: the first iteration has no layer {self.units[0]}; start with mfcc")


def main() -> None:
    """Print one field of a plan, one line per entry of a list."""
    try:
        file = Path(sys.argv[1])
        value = getattr(configs.load(file, Plan), sys.argv[2])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    lines = value if isinstance(value, list) else [value]
    if sys.argv[2] in ("pretrain", "finetune"):
        lines = [file.parent / line for line in lines]
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
