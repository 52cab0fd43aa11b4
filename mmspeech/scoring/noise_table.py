"""Error rates in noise as VATLM's Table IV prints them: a row for each system and input, every kind of noise across.

    system   input | babble: -10  -5  0  5  10  avg | speech: ... | music: ... | clean

noise.md   as printed        noise.tsv   one line per figure, averages included; intervals stand in table.tsv

An average is the plain mean over the SNRs of a kind, printed where all of them are there. What hears no noise (lips
alone) has no row.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import rich.table
from rich import box
from rich.text import Text

from mmspeech import files
from mmspeech.errors import UserError
from mmspeech.scoring.table import ANY, Score, column_order, split_noise, with_distinct_labels

KINDS = ("babble", "speech", "music")  # the order of the columns; others follow
AVERAGE = "avg"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The scores of one set in noise."""

    set: str
    metric: str
    snrs: dict[str, list[float]]  # kind -> SNRs in dB, rising
    rows: dict[tuple[str, str], dict[str, Score]]  # (system, input) -> noise as in babble:0, or clean -> score

    @property
    def title(self) -> str:
        return f"{'WER in %' if self.metric == 'wer' else self.metric.upper()} on {self.set} in noise, by SNR in dB"

    @property
    def columns(self) -> list[tuple[str, str]]:
        """(kind, SNR or avg) of every column; the last is (clean, "")."""
        found = [(kind, name) for kind, snrs in self.snrs.items() for name in [*(f"{one:g}" for one in snrs), AVERAGE]]
        return [*found, ("clean", "")]

    def value(self, row: tuple[str, str], column: tuple[str, str]) -> float | None:
        """The figure of a cell; None where it was not measured."""
        kind, name = column
        if name == AVERAGE:
            values = [self.value(row, (kind, f"{snr:g}")) for snr in self.snrs[kind]]
            known = [value for value in values if value is not None]
            return sum(known) / len(known) if len(known) == len(values) else None
        score = self.rows[row].get(f"{kind}:{name}" if name else kind)
        return score.value if score else None

    def cells(self, row: tuple[str, str]) -> list[str]:
        values = [self.value(row, column) for column in self.columns]
        return ["–" if value is None else f"{value:.1f}" for value in values]


def grids(scores: Iterable[Score]) -> list[Grid]:
    """One for each set and metric of which something was decoded in noise."""
    scores = [score for score in with_distinct_labels(scores) if score.hears_noise and score.modality != ANY]
    made = []
    for name, metric in dict.fromkeys((score.set, score.metric) for score in scores):
        here = [score for score in scores if (score.set, score.metric) == (name, metric)]
        noisy = {split_noise(score.noise) for score in here if math.isfinite(split_noise(score.noise)[1])}
        kinds = sorted({kind for kind, _ in noisy}, key=lambda kind: ((*KINDS, kind).index(kind), kind))
        labels = [score.label for score in here]  # systems stay in the order they were given
        rows: dict[tuple[str, str], dict[str, Score]] = {}
        for score in sorted(here, key=lambda one: (labels.index(one.label), column_order((one.modality, "clean")))):
            rows.setdefault((score.label, score.modality.upper()), {})[_canonical(score.noise)] = score
        rows = {row: found for row, found in rows.items() if set(found) - {"clean"}}
        if rows:
            snrs = {kind: sorted(snr for one, snr in noisy if one == kind) for kind in kinds}
            made.append(Grid(set=name, metric=metric, snrs=snrs, rows=rows))
    return made


def write(scores: Sequence[Score], out: Path) -> list[Grid]:
    """Write noise.md and noise.tsv into the folder `out`; returns the grids. Raises UserError if there is none."""
    made = grids(scores)
    if not made:
        raise UserError("score noise: nothing was decoded in noise; run `mmspeech decode --noise-grid`, then score it")
    with files.replacing(out / "noise.md") as path:
        path.write_text("\n".join(map(markdown, made)), encoding="utf-8")
    with files.replacing(out / "noise.tsv") as path:
        path.write_text("".join(f"{line}\n" for line in tsv(made)), encoding="utf-8")
    return made


def printed(grid: Grid) -> rich.table.Table:
    """The table for a terminal."""
    shown = rich.table.Table(title=grid.title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    shown.add_column("", overflow="fold")
    shown.add_column("")
    before = ""
    for kind, name in grid.columns:
        shown.add_column(Text(f"{kind if kind != before else ''}\n{name}"), justify="right", no_wrap=True)
        before = kind
    for row in grid.rows:
        shown.add_row(Text(row[0]), row[1], *grid.cells(row))
    return shown


def by_kind(grid: Grid) -> list[Grid]:
    """The grid as one for each kind of noise, for narrow terminals."""
    return [replace(grid, snrs={kind: snrs}) for kind, snrs in grid.snrs.items()]


def markdown(grid: Grid) -> str:
    """The table in Markdown."""
    heads = [f"{kind} {name}".strip() for kind, name in grid.columns]
    lines = [f"| {grid.title} | input | {' | '.join(heads)} |", "|---|---|" + "---:|" * len(heads)]
    for label, modality in grid.rows:
        name = label.replace("|", "\\|")
        lines.append(f"| {name} | {modality} | {' | '.join(grid.cells((label, modality)))} |")
    return "\n".join(lines) + "\n"


def tsv(made: Iterable[Grid]) -> Iterator[str]:
    """A line for each figure."""
    yield "\t".join(["set", "system", "input", "noise", "snr_db", "metric", "value"])
    for grid in made:
        for label, modality in grid.rows:
            for kind, name in grid.columns:
                value = grid.value((label, modality), (kind, name))
                if value is not None:
                    start = [grid.set, label.replace("\t", " "), modality]
                    yield "\t".join([*start, kind, name, grid.metric, f"{value:.3f}"])


def _canonical(noise: str) -> str:
    """`babble:0.0` as `babble:0`."""
    kind, snr_db = split_noise(noise)
    return f"{kind}:{snr_db:g}" if math.isfinite(snr_db) else noise
