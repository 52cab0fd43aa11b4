"""Our figures beside a paper's: ours, theirs and the difference, where they were measured on the same thing.

A row file (`plan.Row`) has what is printed. What ours were measured on is followed back through the records of the
stages: decoded cuts -> their corpus; the recognizer's labelled cuts -> hours; its encoder's cuts -> hours. Where corpus
or hours are others, or are not known, the condition is named and nothing is subtracted.
"""

import functools
import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import rich.table
from rich import box
from rich.text import Text

from mmspeech import files
from mmspeech.data.cutfiles import files_in
from mmspeech.errors import UserError
from mmspeech.plan import Row, describe_hours
from mmspeech.scoring import table
from mmspeech.scoring.table import Score

HOURS_APART = 0.1  # share by which hours of one corpus may differ: splits, and clips that could not be read
UNKNOWN = "corpus not known"
BEYOND = "*"  # marks a difference beyond the row's tolerance
Column = tuple[str, str]  # streams, noise


@dataclass(frozen=True)
class Material:
    """What cuts were used: their corpora and how much of them."""

    corpora: tuple[str, ...]
    hours: float


@dataclass(frozen=True)
class System:
    """One of ours beside a row."""

    label: str
    scores: dict[Column, Score]
    condition: str
    comparable: bool

    def average(self, columns: Sequence[Column]) -> float | None:
        """The mean over the columns, if all are there: the table's own average."""
        values = [self.scores[column].value for column in columns if column in self.scores]
        return sum(values) / len(values) if values and len(values) == len(columns) else None


@dataclass(frozen=True)
class Beside:
    """One row of a paper's table and our systems."""

    row: Row
    systems: list[System]

    @property
    def columns(self) -> list[Column]:
        """Those that the row has a figure for, in the order of every table."""
        there = [(streams, noise) for streams, figures in self.row.paper.items() for noise in figures]
        return sorted(there, key=table.column_order)

    def theirs(self, column: Column) -> float:
        return self.row.paper[column[0]][column[1]]


def beside(row: Row, scores: Sequence[Score]) -> Beside:
    """The row beside every system that has one of its figures.

    Raises UserError if the row has no figures, or no system one of them.
    """
    if not row.paper:
        raise UserError(f"{row.title}: the row file has no figures under `paper`; give one that has")
    columns = [(streams, noise) for streams, figures in row.paper.items() for noise in figures]
    found: dict[str, dict[Column, Score]] = {}
    elsewhere: list[str] = []  # sets of another name
    for score in table.in_every_noise(table.with_distinct_labels(scores)):
        if score.metric == row.metric and score.column in columns:
            if score.set == "test":
                found.setdefault(score.label, {})[score.column] = score
            else:
                elsewhere.append(score.set)
    if not found and elsewhere:
        names = ", ".join(dict.fromkeys(elsewhere))
        raise UserError(
            f"{row.title}: is of a set named `test`, ours are named {names}, after their files of cuts; decode "
            "cuts_test.jsonl.gz and score it"
        )
    if not found:
        wanted = ", ".join(map(table.heading, columns))
        raise UserError(f"{row.title}: no system has its {row.metric} of test ({wanted}); decode and score them")
    return Beside(row, [_system(row, label, own) for label, own in found.items()])


def _system(row: Row, label: str, scores: dict[Column, Score]) -> System:
    tested, labelled, unlabelled = measured_on(next(iter(scores.values())).folder)
    corpus = "+".join(tested.corpora) if tested else ""
    labels = "+".join(labelled.corpora) if labelled else corpus
    hours, without = (None if one is None else one.hours for one in (labelled, unlabelled))
    same = (
        corpus.casefold() == row.corpus.casefold()
        and labels.casefold() == row.labelled_corpus.casefold()
        and _about(hours, row.hours)
        # Not known of weights that somebody else trained; that is said, but the figures compare.
        and (without is None or _about(without, row.unlabelled_hours))
    )
    return System(label, scores, describe_hours(corpus or UNKNOWN, labels, hours, without), same)


def _about(ours: float | None, theirs: float | None) -> bool:
    return ours is not None and theirs is not None and abs(ours - theirs) <= HOURS_APART * theirs


def measured_on(folder: Path) -> tuple[Material | None, Material | None, Material | None]:
    """What a decode folder's figures rest on: cuts decoded, with labels, without; None: not known.

    A recognizer without pre-training has 0 hours without labels.
    """
    inputs = [Path(path) for path in _read(folder / "stage.json").get("inputs", {})]
    tested = material(tuple(path for path in inputs if path.name.endswith(".jsonl.gz")))
    model = next((path for path in inputs if (path / "data.json").exists()), None)
    if model is None:
        return tested, None, None
    tuning, labelled = _read(model / "stage.json"), _trained_on(model)
    if tuning.get("settings", {}).get("pretrained") is False:
        return tested, labelled, Material((), 0.0)
    encoder = next((Path(path) for path in tuning.get("inputs", {}) if (Path(path) / "data.json").exists()), None)
    return tested, labelled, _trained_on(encoder) if encoder else None


def _trained_on(folder: Path) -> Material | None:
    """What a run that wrote a folder, with data.json in it, was trained on."""
    data = _read(folder / "data.json")
    try:
        cuts = tuple(files_in(list(map(Path, _cuts_of(data)))))
    except UserError:  # a folder that is empty by now
        return None
    return material(cuts, data.get("max_items"))


@functools.lru_cache(maxsize=64)
def material(cuts: tuple[Path, ...], max_items: int | None = None) -> Material | None:
    """Corpora and hours of files of cuts (of the first `max_items`); None if one is gone, or none is named."""
    corpora: dict[str, None] = {}
    seconds, items = 0.0, 0
    try:
        for path in cuts:
            with gzip.open(path, "rt", encoding="utf-8") as file:
                for number, line in enumerate(file):
                    if max_items is not None and items == max_items:
                        break
                    if '"recording"' not in line:  # text alone has no hours of speech
                        if number == 0:  # one of thousands of files of it
                            break
                        continue
                    cut = json.loads(line)
                    corpora[str((cut.get("custom") or {}).get("corpus") or UNKNOWN)] = None
                    seconds += float(cut["duration"])
                    items += 1
    except (OSError, EOFError, ValueError, KeyError):
        return None
    return Material(tuple(sorted(corpora)), seconds / 3600) if items else None


def _cuts_of(data: dict) -> Iterator[str]:
    """The files of cuts that a run's data settings name, whether in one list or in one for each source."""
    yield from data.get("cuts") or ()
    for source in data.get("sources") or ():
        yield from source.get("cuts") or ()


def _read(path: Path) -> dict:
    """A JSON file that a stage left; {} if there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def lines(one: Beside) -> list[list[str]]:
    """The table as text, row by row: the paper's figures, ours with intervals, and the differences that can be had."""
    columns, row = one.columns, one.row
    digits = max([1, *(len(f"{one.theirs(column)!r}".partition(".")[2]) for column in columns)])  # as printed
    averaged = row.average is not None
    out = [["paper", *(f"{one.theirs(column):.{digits}f}" for column in columns)]]
    out[0] += [f"{row.average:.{digits}f}"] if averaged else []
    for system in one.systems:
        cells = [system.scores.get(column) for column in columns]
        mean = system.average(columns)
        shown = [f"{cell.value:.1f} [{cell.low:.1f}, {cell.high:.1f}]" if cell else "–" for cell in cells]
        out.append([system.label, *shown, *([f"{mean:.1f}" if mean is not None else "–"] if averaged else [])])
        if system.comparable:
            pairs: list[tuple[float | None, float | None]] = [
                (cell.value if cell else None, one.theirs(column)) for cell, column in zip(cells, columns, strict=True)
            ]
            pairs += [(mean, row.average)] if averaged else []
            out.append(["difference", *(_difference(ours, theirs, row.tolerance) for ours, theirs in pairs)])
    return out


def _difference(ours: float | None, theirs: float | None, tolerance: float) -> str:
    if ours is None or theirs is None:
        return "–"
    return f"{ours - theirs:+.1f}{BEYOND if abs(ours - theirs) > tolerance else ''}"


def headings(one: Beside) -> list[str]:
    """Over the columns of `lines`, but the first."""
    return [table.heading(column) for column in one.columns] + ["mean"] * (one.row.average is not None)


def notes(one: Beside) -> list[str]:
    """What stands under the table: both conditions, what `*` means, and whose figures do not compare."""
    told = [f"Paper: {one.row.condition}. {BEYOND}: more than {one.row.tolerance:g} apart."]
    for system in one.systems:
        verdict = "" if system.comparable else "; not compared with the paper's"
        told.append(f"{system.label}: {system.condition}{verdict}.")
    return told


def title(one: Beside) -> str:
    return f"{one.row.title} ({'WER in %' if one.row.metric == 'wer' else 'BLEU'})"


def printed(one: Beside) -> rich.table.Table:
    """For a terminal."""
    shown = rich.table.Table(title=title(one), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    shown.add_column("", overflow="fold")
    for heading in headings(one):
        shown.add_column(Text(heading.replace(" ", "\n", 1)), justify="right")
    for name, *cells in lines(one):
        shown.add_row(Text(name), *map(Text, cells))
    shown.caption, shown.caption_justify = Text("\n".join(notes(one))), "left"
    return shown


def markdown(several: Sequence[Beside]) -> str:
    """The tables in Markdown."""
    parts = []
    for one in several:
        rows = [[title(one), *headings(one)], *lines(one)]
        text = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |" for cells in rows]
        text.insert(1, "|---|" + "---:|" * (len(rows[0]) - 1))
        parts.append("\n".join(text) + "\n" + "".join(f"\n{line}\n" for line in notes(one)))
    return "\n".join(parts)


def tsv(several: Sequence[Beside]) -> str:
    """One line for each figure of a paper and system of ours; the difference is empty where they do not compare."""
    names = ["table", "row", "system", "modality", "noise", "metric", "ours", "low", "high", "paper", "difference"]
    out = ["\t".join([*names, "tolerance", "condition", "paper_condition"])]
    for one in several:
        for system in one.systems:
            for column, score in sorted(system.scores.items(), key=lambda item: table.column_order(item[0])):
                theirs = one.theirs(column)
                figures = [f"{value:.3f}" for value in (score.value, score.low, score.high)]
                apart = f"{score.value - theirs:.3f}" if system.comparable else ""
                start = [one.row.table, one.row.row, system.label.replace("\t", " "), *column, score.metric]
                end = [f"{theirs:g}", apart, f"{one.row.tolerance:g}", system.condition, one.row.condition]
                out.append("\t".join([*start, *figures, *end]))
    return "\n".join(out) + "\n"


def write(several: Sequence[Beside], out: Path) -> None:
    """Write against.md and against.tsv into the folder `out`."""
    with files.replacing(out / "against.md") as path:
        path.write_text(markdown(several), encoding="utf-8")
    with files.replacing(out / "against.tsv") as path:
        path.write_text(tsv(several), encoding="utf-8")
