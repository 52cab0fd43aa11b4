"""Claims of a paper, put to the test: what `bin/claims SYSTEM` trains, compares and says.

    conf/claims/SYSTEM.yaml ──▶ corpus and first iteration (run.sh) ──▶ encoders ──▶ recognizers ──▶ decoded sets
                                                                └──▶ PNMI of codebooks ──┴──▶ differences ──▶ verdicts

Every step is a command that does nothing where its output is current: claims share what they have in common, and a
run that was stopped goes on. An expectation is an inequality between sums of figures of the same utterances:

    dropout-a@v/clean < plain-a@v/clean                                      error rates of two recognizers
    a@a/babble:0 - av@av/babble:0 > a@a/babble:10 - av@av/babble:10          a gap that grows
    dropout#audio+video:video > plain#audio+video:video                      PNMI: features under a codebook
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import typer
from rich import box
from rich.table import Table

from mmspeech import config as configs
from mmspeech import files, plan
from mmspeech.command import call
from mmspeech.console import console, say
from mmspeech.errors import UserError
from mmspeech.plan_sources import source_lines
from mmspeech.scoring import bootstrap, codebooks, compare, plots

ROOT = Path(__file__).parents[1]
CONF = ROOT / "recipes/lrs3/conf"


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A pre-training of a plan's last iteration, on the plan's data and units."""

    conf: str  # in place of the plan's own
    plan: str = ""  # corpus, sources and iterations before; empty: the plan of all
    at: int | None = None  # the weights after so many of the updates, in place of the last


@dataclass(frozen=True, kw_only=True)
class Recognizer:
    """A fine-tuning."""

    encoder: str
    conf: str
    beam: int = 1  # of CTC over words; an attention decoder wants more


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
    """One figure: of a recognizer under a condition, or of an encoder's codebook and features."""

    sign: float
    name: str
    kind: Literal["@", "#"]
    first: str  # streams as typed for decode; or features as in audio+video
    second: str  # noise; or the codebook


TERM = re.compile(
    r"(?:^|(?P<sign>[+-]) )(?P<name>[\w-]+)(?P<kind>[@#])(?P<first>[\w+]+)[/:](?P<second>[\w:+-]+)(?: |$)"
)


def parse(expectation: str) -> tuple[list[Term], list[Term]]:
    """The smaller and the larger side. Raises UserError for what is no inequality of figures."""
    sides = re.split(r" ([<>]) ", expectation)
    if len(sides) != 3:
        raise UserError(f"expect: `{expectation}`; expected two sides and < or > between them")
    left, right = (terms(side) for side in (sides[0], sides[2]))
    return (left, right) if sides[1] == "<" else (right, left)


def terms(side: str) -> list[Term]:
    """The figures that one side adds up."""
    found, end = [], 0
    for match in TERM.finditer(side):
        if match.start() != end:
            break
        sign = -1.0 if match["sign"] == "-" else 1.0
        found.append(Term(sign, match["name"], match["kind"], match["first"], match["second"]))  # type: ignore[arg-type]
        end = match.end()
    if not found or end != len(side):
        raise UserError(f"expect: `{side}`; expected figures as in a-model@av/babble:0 - b-model@v/clean")
    if len({term.kind for term in found}) > 1:
        raise UserError(f"expect: `{side}`; error rates and PNMI do not add up")
    return found


@dataclass
class Outcome:
    """One expectation under one seed."""

    claim: str
    seed: int
    expectation: str
    smaller: float  # the side that should be
    larger: float
    low: float  # of larger - smaller
    high: float
    verdict: Literal["shown", "not shown", "opposite"]

    @property
    def difference(self) -> str:
        """`+3.1 [+2.0, +4.2]`."""
        return f"{self.larger - self.smaller:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


class Runs:
    """The trainings behind the figures, each made when first asked for."""

    def __init__(self, claims: Claims, folder: Path, exp: Path, nproc: int) -> None:
        self.claims, self.folder, self.exp, self.nproc = claims, folder, exp, nproc
        self.done: set[str] = set()  # commands of this call

    def shared(self, name: str) -> Path:
        """The folder of a plan, run to the end of its pre-training: its corpus, its units, its encoder of seed 1.

        Plans of one corpus share the corpus of the first, so that their figures are of the same clips.
        """
        exp = self.exp / Path(name).stem
        first = next(other for other in self._plans() if self._plan(other).synth == self._plan(name).synth)
        if first != name:
            for part in ("corpus", "data", "noise", "mouth"):
                (exp / part).parent.mkdir(parents=True, exist_ok=True)
                if not (exp / part).exists():
                    (exp / part).symlink_to(self.shared(first) / part)
        words = ["--corpus", "synth", "--conf", self.folder / name, "--exp", exp, "--nproc", self.nproc]
        self._run(["bash", ROOT / "recipes/lrs3/run.sh", *words, "--stop-stage", 5], exp)
        return exp

    def encoder(self, name: str, seed: int) -> Path:
        """The folder of an encoder."""
        if name not in self.claims.encoders:
            raise UserError(f"encoder `{name}`: not in the file; there are {', '.join(self.claims.encoders)}")
        wanted = self.claims.encoders[name]
        shared, settings = self.shared(self._plan_of(wanted)), self._plan(self._plan_of(wanted))
        exp = shared / f"iter{len(settings.pretrain)}"
        own = (self.folder / self._plan_of(wanted)).parent / settings.pretrain[-1]
        if seed != 1 or (self.folder / wanted.conf).resolve() != own.resolve():
            exp = self.exp / f"{Path(wanted.conf).stem}-{shared.name}-{seed}"
            self._train("pretrain", wanted.conf, exp, [*self._data(shared, settings), f"seed={seed}"])
        if wanted.at is None:
            return exp / "encoder"
        out = exp / f"encoder-{wanted.at}"
        self._mmspeech("export", exp / f"checkpoints/step-{wanted.at:07d}.ckpt", out)
        return out

    def _data(self, shared: Path, settings: plan.Plan) -> list[str]:
        """What the last iteration of a plan is trained on, as run.sh gives it."""
        last = len(settings.pretrain)
        units, mouth = shared / f"iter{last}/units", shared / "mouth"
        sources = []
        for line in source_lines(settings.sources, last, settings.pseudo_labels, settings.codebook):
            name, _, _, rest = line.split("\t")
            place = units / name if settings.clusters_units else mouth
            cuts = ", ".join(_text(place / f"cuts_{part}.jsonl.gz") for part in name.split("+"))
            sources.append(f"{{cuts: [{cuts}]{rest}}}")
        valid = units / "valid" if settings.clusters_units else mouth
        sets = [
            f"data.sources=[{', '.join(sources)}]",
            f"data.valid_cuts=[{_text(valid / 'cuts_valid.jsonl.gz')}]",
            f"data.noise.cuts={_text(shared / 'noise')}",
        ]
        if settings.clusters_units:
            sets += ["data.units=km", f"objective.num_units={settings.clusters[-1]}"]
        return sets

    def _plans(self) -> list[str]:
        return list(
            dict.fromkeys([self.claims.plan, *(one.plan or self.claims.plan for one in self.claims.encoders.values())])
        )

    def _plan(self, name: str) -> plan.Plan:
        return plan.load(self.folder / name)

    def _plan_of(self, encoder: Encoder) -> str:
        return encoder.plan or self.claims.plan

    def recognizer(self, name: str, seed: int) -> Path:
        """The experiment of a recognizer."""
        if name not in self.claims.recognizers:
            raise UserError(f"recognizer `{name}`: not in the file; there are {', '.join(self.claims.recognizers)}")
        wanted, exp = self.claims.recognizers[name], self.exp / f"{name}-{seed}"
        mouth = self._shared_of(wanted) / "mouth"
        sets = [f"seed={seed}", f"data.noise.cuts={_text(mouth.parent / 'noise')}"]
        sets += [f"data.cuts=[{_text(mouth / 'cuts_trainval.jsonl.gz')}]"]
        sets += [f"data.valid_cuts=[{_text(mouth / 'cuts_valid.jsonl.gz')}]"]
        self._train("finetune", wanted.conf, exp, sets, "--encoder", self.encoder(wanted.encoder, seed))
        return exp

    def decoded(self, term: Term, seed: int) -> Path:
        """The decode folder of a figure."""
        exp = self.recognizer(term.name, seed)
        shared = self._shared_of(self.claims.recognizers[term.name])
        noises = []
        if term.second != "clean":
            kind = term.second.replace(":", "_")
            noises = ["--noise-sets", shared / f"noisy-{kind}"]
            self._mmspeech("prepare", "noisy", shared / "data/cuts_test.jsonl.gz", shared / "noise", noises[1],
                           "--noise", term.second)  # fmt: skip
        self._mmspeech("decode", exp / "model", shared / "mouth/cuts_test.jsonl.gz", exp / "decode", "--modality",
                       term.first, "--noise", term.second, *noises, "--label", term.name, "--set",
                       f"beam={self.claims.recognizers[term.name].beam}")  # fmt: skip
        return exp / f"decode/test-{term.first}-{term.second.replace(':', '_') + 'dB' if noises else 'clean'}"

    def codebooks(self, term: Term, seed: int) -> Path:
        """The folder of an encoder's codebooks and their PNMI on validation clips."""
        encoder = self.encoder(term.name, seed)
        name = self._plan_of(self.claims.encoders[term.name])
        cuts, settings = self.shared(name) / "mouth/cuts_test.jsonl.gz", self._plan(name)
        out = encoder.with_name(f"codebooks-of-{encoder.name}")
        self._mmspeech("score", "codebooks", encoder, cuts, out, "--layer", settings.units[-1], "--clusters",
                       settings.clusters[-1])  # fmt: skip
        return out

    def _shared_of(self, recognizer: Recognizer) -> Path:
        return self.shared(self._plan_of(self.claims.encoders[recognizer.encoder]))

    def _train(self, command: str, conf: str, exp: Path, sets: Sequence[str], *more: object) -> None:
        words = [command, self.folder / conf, exp, *more]
        for one in sets:
            words += ["--set", one]
        launch = (
            ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", self.nproc] if self.nproc > 1 else []
        )
        self._run([sys.executable, *launch, "-m", "mmspeech", *words], exp)

    def _mmspeech(self, *words: object) -> None:
        self._run([sys.executable, "-m", "mmspeech", *words], None)

    def _run(self, words: Sequence[object], exp: Path | None) -> None:
        """Run a command; how long a training took stands in times.jsonl. Raises UserError if it fails."""
        key = "\n".join(map(str, words))
        if key in self.done:
            return
        began = time.monotonic()
        code = subprocess.run(list(map(str, words)), cwd=ROOT).returncode
        if code:
            raise UserError(
                f"{' '.join(map(str, words[:6]))} ...: ended with exit code {code}; the reason stands above"
            )
        seconds = time.monotonic() - began
        if exp is not None and seconds > 20:  # else it was current
            with open(self.exp / "times.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"run": exp.name, "seconds": round(seconds)}) + "\n")
        self.done.add(key)


def _text(path: Path) -> str:
    """A path as YAML text."""
    return "'" + str(path).replace("'", "''") + "'"


def judge(low: float, high: float) -> Literal["shown", "not shown", "opposite"]:
    """What the interval of a difference that should be positive says."""
    return "shown" if low > 0 else "opposite" if high < 0 else "not shown"


def together(outcomes: Sequence[Outcome]) -> str:
    """The verdict on a claim: shown if all its expectations are, opposite if one of them is."""
    verdicts = {outcome.verdict for outcome in outcomes}
    return "opposite" if "opposite" in verdicts else "not shown" if "not shown" in verdicts else "shown"


def examine(name: str, claim: Claim, runs: Runs) -> Iterator[Outcome]:
    """Run what a claim needs, expectation by expectation."""
    for seed in claim.seeds:
        for expectation in claim.expect:
            smaller, larger = parse(expectation)
            if smaller[0].kind == "#":
                found = [(term, runs.codebooks(term, seed)) for term in (*smaller, *larger)]
                cells = [(folder, (term.second, term.first)) for term, folder in found]
                if len(smaller) != 1 or len(larger) != 1:
                    raise UserError(f"expect: `{expectation}`; PNMI is compared one against one")
                estimate = codebooks.difference(cells[0][0], cells[0][1], cells[1][0], cells[1][1])
                low_side = codebooks.value(*cells[0])
            else:
                folders = [runs.decoded(term, seed) for term in (*smaller, *larger)]
                weights = [*(-term.sign for term in smaller), *(term.sign for term in larger)]
                estimate = compare.contrast(folders, weights, claim.metric)
                low_side = -compare.contrast(
                    folders, [*weights[: len(smaller)], *[0.0] * len(larger)], claim.metric
                ).value
            yield Outcome(
                claim=name, seed=seed, expectation=expectation, smaller=low_side, larger=low_side + estimate.value,
                low=estimate.low, high=estimate.high, verdict=judge(estimate.low, estimate.high),
            )  # fmt: skip


def draw(claim: Claim, runs: Runs, path: Path) -> dict[str, list[tuple[float, float, float, float]]]:
    """A picture of the claim's `plot`; returns name -> (x, rate, low, high) of each point, of the first seed."""
    assert claim.plot is not None
    lines: dict[str, list[tuple[float, float, float, float]]] = {}
    for name, side in claim.plot.lines.items():
        for x, term in zip(claim.plot.at, side, strict=True):
            found = compare.contrast([runs.decoded(terms(term)[0], claim.seeds[0])], [1.0], claim.metric)
            lines.setdefault(name, []).append((x, found.value, found.low, found.high))
    with files.replacing(path) as temporary:
        plots.to_png(plots.lines_over(lines, claim.plot.x, claim.metric.upper(), claim.says), temporary)
    return lines


def table_of(outcomes: Sequence[Outcome]) -> Table:
    """For the terminal."""
    table = Table(box=box.SIMPLE)
    for name, side in (
        ("claim", "left"),
        ("seed", "right"),
        ("expected", "left"),
        ("smaller", "right"),
        ("larger", "right"),
    ):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    table.add_column("difference, 95 %", justify="right")
    table.add_column("verdict")
    for one in outcomes:
        figures = (f"{one.smaller:.1f}", f"{one.larger:.1f}", one.difference)
        table.add_row(one.claim, str(one.seed), one.expectation, *figures, one.verdict)
    return table


def markdown(claims: Claims, outcomes: Sequence[Outcome]) -> str:
    """For RESULTS.md."""
    lines = []
    for name, claim in claims.claims.items():
        own = [one for one in outcomes if one.claim == name]
        if not own:
            continue
        lines += [f"**{name}. {claim.says}** ({claim.where}): **{together(own)}**", ""]
        lines += [claim.note, ""] if claim.note else []
        lines += [
            "| seed | expected | smaller | larger | difference, 95 % | verdict |",
            "|---:|---|---:|---:|---:|---|",
        ]
        for one in own:
            figures = [f"{one.smaller:.1f}", f"{one.larger:.1f}", one.difference]
            lines.append(f"| {one.seed} | `{one.expectation}` | {' | '.join(figures)} | {one.verdict} |")
        lines.append("")
    return "\n".join(lines)


def run(
    system: Annotated[str, typer.Argument(help="Whose claims: a file of recipes/lrs3/conf/claims, e.g. uhubert.")],
    only: Annotated[str, typer.Option(help="These claims alone, e.g. b or a,c.")] = "",
    exp: Annotated[Path | None, typer.Option(help="Folder for everything; default: exp/claims/SYSTEM.")] = None,
    nproc: Annotated[int, typer.Option(min=1, help="Training processes, one per GPU.")] = 1,
    conf: Annotated[Path | None, typer.Option(help="Another file of claims.")] = None,
) -> None:
    """Train and compare what stands behind a paper's claims, on the embedded corpus; say of each whether it shows.

    A difference is shown if its 95 % interval (paired bootstrap over utterances) lies above 0, opposite if it lies
    below. Trainings are shared between claims; what is there is not made again; what was stopped goes on. EXP gets
    claims.json, claims.md, a picture for claims that have one, and times.jsonl.
    """
    file = conf or CONF / "claims" / f"{system}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in (CONF / "claims").glob("*.yaml")))
        raise UserError(f"{file}: no such file; recipes/lrs3/conf/claims has {known}: give one of them")
    claims = configs.load(file, Claims)
    wanted = only.split(",") if only else list(claims.claims)
    for name in wanted:
        if name not in claims.claims:
            raise UserError(f"--only {name}: there are {', '.join(claims.claims)}")
        for expectation in claims.claims[name].expect:
            parse(expectation)  # before hours of training
    exp = exp or Path("exp/claims") / system
    exp.mkdir(parents=True, exist_ok=True)
    runs = Runs(claims, CONF / system, exp.resolve(), nproc)
    record = exp / "claims.json"
    outcomes = [Outcome(**one) for one in json.loads(record.read_text())] if record.exists() else []
    for name in wanted:
        claim = claims.claims[name]
        say(f"claim {name}: {claim.says} ({claim.where})")
        outcomes = [one for one in outcomes if one.claim != name] + list(examine(name, claim, runs))
        outcomes.sort(key=lambda one: list(claims.claims).index(one.claim))
        files.write_json(record, [asdict(one) for one in outcomes])
        if claim.plot:
            draw(claim, runs, exp / f"claim-{name}.png")
        with files.replacing(exp / "claims.md") as temporary:
            temporary.write_text(markdown(claims, outcomes), encoding="utf-8")
    console.print(table_of([one for one in outcomes if one.claim in wanted]))
    for name in wanted:
        say(f"claim {name}: {together([one for one in outcomes if one.claim == name])}")
    say(f"intervals: {100 * bootstrap.LEVEL:g} %, {bootstrap.RESAMPLES} paired resamples; {exp / 'claims.md'}")


def main() -> None:
    """The command."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(run)
    call(app, "bin/claims")


if __name__ == "__main__":
    main()
