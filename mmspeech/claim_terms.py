"""The file of a paper's claims: what is trained, and the inequalities between figures that would show each claim.

An expectation is an inequality between sums of figures of the same utterances:

    dropout-a@v/clean < plain-a@v/clean                                      error rates of two recognizers
    a@a/babble:0 - av@av/babble:0 > a@a/babble:10 - av@av/babble:10          a gap that grows
    dropout#audio+video:video > plain#audio+video:video                      PNMI: features under a codebook
    text~av,a,v < plain~av,a,v                                               how well inputs are told from features
    joint-v@v/clean <= constant-v@v/clean                                    at least as good: see MARGIN
"""

import re
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from mmspeech.errors import UserError
from mmspeech.plan import Labelled


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A pre-training of a plan's last iteration, on the plan's data and units."""

    conf: str  # in place of the plan's own
    plan: str = ""  # corpus, sources and iterations before; empty: the plan of all
    sources: list[str] = field(default_factory=list)  # these of the plan's alone; empty: all
    streams: list[str] = field(default_factory=list)  # taken of every source; empty: what the plan takes
    at: int | None = None  # the weights after so many of the updates, in place of the last


@dataclass(frozen=True, kw_only=True)
class Recognizer:
    """A fine-tuning."""

    encoder: str
    conf: str
    beam: int = 1  # of CTC over words; an attention decoder wants more
    labelled: Labelled = "trainval"  # vox: the clips of pretrain, with what `teacher` makes of them
    teacher: str = ""  # the recognizer that hears and sees them (self-training)

    def __post_init__(self) -> None:
        if bool(self.teacher) != ("vox" in self.labelled.split("+")):
            raise UserError(f"labelled: {self.labelled}, teacher: `{self.teacher}`; a teacher is for vox: give both")


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Error rates over what was varied."""

    x: str  # what
    at: list[float]
    lines: dict[str, list[str]]  # name -> one term for each of `at`

    def __post_init__(self) -> None:
        for name, terms in self.lines.items():
            if len(terms) != len(self.at):
                raise UserError(f"lines: {name} has {len(terms)} points for {len(self.at)} values of `at`")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a paper says, and the inequalities that would show it here."""

    says: str
    where: str  # in the paper
    expect: list[str]
    seeds: list[int] = field(default_factory=lambda: [1])
    metric: Literal["wer", "bleu"] = "wer"
    by_name: bool = False  # put to the test only if --only names it
    plot: Plot | None = None
    note: str = ""  # what one must know to read the figures


@dataclass(frozen=True, kw_only=True)
class Claims:
    """conf/claims/SYSTEM.yaml; plans and configurations that it names lie in conf/SYSTEM."""

    plan: str  # corpus, first iteration, and what its last iteration clusters
    encoders: dict[str, Encoder]
    recognizers: dict[str, Recognizer]
    claims: dict[str, Claim]


class Term(NamedTuple):
    """One figure: of a recognizer under a condition, of an encoder's codebook and features, of its features alone."""

    sign: float
    name: str
    kind: Literal["@", "#", "~"]
    first: str  # streams as typed for decode; features as in audio+video; or inputs as typed for score modalities
    second: str  # noise; the codebook; or nothing


# Of `a <= b`, in points: that two are equal cannot be shown, that one is hardly worse can. Ours, no paper states one; a
# smaller one would ask for more test utterances than the embedded corpus has.
MARGIN = 2.0


TERM = re.compile(
    r"(?:^|(?P<sign>[+-]) )(?P<name>[\w-]+)"
    r"(?:(?P<kind>[@#])(?P<first>[\w+]+)[/:](?P<second>[\w:+-]+)|~(?P<inputs>[\w+]+(?:,[\w+]+)+))(?: |$)"
)


def parse(expectation: str) -> tuple[list[Term], list[Term]]:
    """The smaller and the larger side. Raises UserError for what is no inequality of figures."""
    sides = re.split(r" ([<>]=?) ", expectation)
    if len(sides) != 3:
        raise UserError(f"expect: `{expectation}`; expected two sides and <, >, <= or >= between them")
    left, right = (terms(side) for side in (sides[0], sides[2]))
    if left[0].kind != right[0].kind:
        raise UserError(f"expect: `{expectation}`; the sides are figures of two kinds")
    return (left, right) if sides[1].startswith("<") else (right, left)


def margin(expectation: str) -> float:
    """By how much the smaller side may yet be the larger one."""
    return MARGIN if re.search(r" [<>]= ", expectation) else 0.0


def terms(side: str) -> list[Term]:
    """The figures that one side adds up."""
    found, end = [], 0
    for match in TERM.finditer(side):
        if match.start() != end:
            break
        sign = -1.0 if match["sign"] == "-" else 1.0
        if match["inputs"]:
            found.append(Term(sign, match["name"], "~", match["inputs"], ""))
        else:
            found.append(Term(sign, match["name"], match["kind"], match["first"], match["second"]))  # type: ignore[arg-type]
        end = match.end()
    if not found or end != len(side):
        raise UserError(f"expect: `{side}`; expected figures as in a-model@av/babble:0 - b-model@v/clean")
    if len(found) > 1 and any(term.kind != "@" for term in found):
        raise UserError(f"expect: `{side}`; only error rates add up; other figures are compared one against one")
    return found
