"""Claims of a paper, put to the test: what `bin/claims SYSTEM` trains, compares and says.

    conf/claims/SYSTEM.yaml ──▶ corpus and first iteration (run.sh) ──▶ encoders ──▶ recognizers ──▶ decoded sets
                                                                └──▶ PNMI of codebooks ──┴──▶ differences ──▶ verdicts

Every step is a command that does nothing where its output is current: claims share what they have in common, and a
run that was stopped goes on. What an expectation looks like stands in claim_terms.py, what is run in claim_runs.py.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich import box
from rich.table import Table

from mmspeech import config as configs
from mmspeech import files
from mmspeech.claim_runs import ROOT, Runs
from mmspeech.claim_terms import MARGIN, Claim, Claims, margin, parse, terms
from mmspeech.command import call
from mmspeech.console import console, say
from mmspeech.errors import UserError
from mmspeech.scoring import bootstrap, codebooks, compare, modalities, plots

CONF = ROOT / "recipes/lrs3/conf"
AT_LEAST = f"`<=`: shown if the interval lies above -{MARGIN:g} points, opposite if it lies below 0."


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


def judge(low: float, high: float, margin: float = 0.0) -> Literal["shown", "not shown", "opposite"]:
    """What the interval of a difference that should be positive, or not far below 0, says.

    One that lies below 0 is opposite, however close: who is worse for certain is not at least as good.
    """
    return "opposite" if high < 0 else "shown" if low > -margin else "not shown"


def together(outcomes: Sequence[Outcome]) -> str:
    """The verdict on a claim: shown if all its expectations are, opposite if one of them is."""
    verdicts = {outcome.verdict for outcome in outcomes}
    return "opposite" if "opposite" in verdicts else "not shown" if "not shown" in verdicts else "shown"


def examine(name: str, claim: Claim, runs: Runs) -> Iterator[Outcome]:
    """Run what a claim needs, expectation by expectation."""
    for seed in claim.seeds:
        for expectation in claim.expect:
            smaller, larger = parse(expectation)
            if smaller[0].kind == "@":
                folders = [runs.decoded(term, seed) for term in (*smaller, *larger)]
                weights = [*(-term.sign for term in smaller), *(term.sign for term in larger)]
                estimate = compare.contrast(folders, weights, claim.metric)
                low_side = -compare.contrast(
                    folders, [*weights[: len(smaller)], *[0.0] * len(larger)], claim.metric
                ).value
            elif smaller[0].kind == "#":
                (a, cell_a), (b, cell_b) = (
                    (runs.codebooks(one, seed), (one.second, one.first)) for one in (*smaller, *larger)
                )
                estimate, low_side = codebooks.difference(a, cell_a, b, cell_b), codebooks.value(a, cell_a)
            else:
                a, b = (runs.modalities(one, seed) for one in (*smaller, *larger))
                estimate = modalities.difference(a, b)
                low_side = modalities.load(a / "modalities.json").accuracy
            yield Outcome(
                claim=name, seed=seed, expectation=expectation, smaller=low_side, larger=low_side + estimate.value,
                low=estimate.low, high=estimate.high, verdict=judge(estimate.low, estimate.high, margin(expectation)),
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
    table = Table(box=box.SIMPLE, caption=AT_LEAST if any(margin(one.expectation) for one in outcomes) else None)
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
        lines += ["", AT_LEAST] if any(margin(one.expectation) for one in own) else []
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
    below. Some claims, which ask for many trainings more, are put to the test only if --only names them. Trainings are
    shared between claims; what is there is not made again; what was stopped goes on. EXP gets claims.json,
    claims.md, a picture for claims that have one, and times.jsonl.
    """
    file = conf or CONF / "claims" / f"{system}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in (CONF / "claims").glob("*.yaml")))
        raise UserError(f"{file}: no such file; recipes/lrs3/conf/claims has {known}: give one of them")
    claims = configs.load(file, Claims)
    wanted = only.split(",") if only else [name for name, one in claims.claims.items() if not one.by_name]
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
