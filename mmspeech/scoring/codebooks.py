"""Which codebook suits which input: PNMI of every kind of features under every codebook (u-HuBERT, Table 1).

    FOLDER/codebooks.json          the figures in percent, with intervals, and how they came about
           codebooks.safetensors   `pnmi` (codebooks, features, R): the same in R resamples of the utterances
           codebooks.md  .tsv  .png     table and heat map
           tsne.json     tsne.png       a few hundred frames of each kind in two dimensions (Figure 3)

Cells of one table, or of two models on the same utterances, are compared resample by resample (`difference`).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import rich.table
from rich import box
from rich.text import Text
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mmspeech import files
from mmspeech.errors import UserError
from mmspeech.plan import Row
from mmspeech.scoring import bootstrap, plots
from mmspeech.scoring.bootstrap import Estimate

UNION = "union"  # the codebook of all kinds of features together


@dataclass(frozen=True, kw_only=True)
class Codebooks:
    """PNMI in percent: rows are codebooks, columns the features that they quantise."""

    label: str  # of the model
    codebooks: list[str]  # what they were learnt from: union, or streams as in audio+video
    features: list[str]  # streams that the encoder got
    pnmi: list[list[float]]  # (codebooks, features)
    low: list[list[float]]  # empty: no intervals are known
    high: list[list[float]]
    clusters: int
    layer: int
    frames: int  # with a phone
    phones: int
    utterances: int
    utterances_hash: str  # of their ids: intervals of differences need the same ones
    seed: int
    encoder: str = ""
    corpus: str = ""  # of the utterances, as far as the cuts say
    interval: str = ""
    note: str = ""  # in place of what the figures rest on, where they are not ours


@dataclass(frozen=True, kw_only=True)
class Points:
    """Frames in two dimensions; all lists have one entry per point."""

    x: list[float]
    y: list[float]
    features: list[str]
    phones: list[str]


def short(name: str) -> str:
    """`audio+video` -> AV; a label for people."""
    return name if name == UNION else "".join(stream[0].upper() for stream in name.split("+"))


def shorts(names: Sequence[str]) -> list[str]:
    """Letters for each, or the names as they are where letters would not tell them apart."""
    letters = [short(name) for name in names]
    return letters if len(set(letters)) == len(letters) else list(names)


def save(found: Codebooks, resampled: np.ndarray, folder: Path, row: Row | None = None) -> None:
    """Write codebooks.{json,safetensors,md,tsv,png}; `resampled` is (codebooks, features, R).

    Args:
        row: of a paper's table, to stand beside.
    """
    several = against(found, row) if row else [found]
    files.write_json(folder / "codebooks.json", asdict(found))
    with files.replacing(folder / "codebooks.safetensors") as path:
        save_file({"pnmi": np.ascontiguousarray(resampled, np.float32)}, path)
    with files.replacing(folder / "codebooks.md") as path:
        path.write_text(markdown(several), encoding="utf-8")
    with files.replacing(folder / "codebooks.tsv") as path:
        path.write_text(tsv(several), encoding="utf-8")
    with files.replacing(folder / "codebooks.png") as path:
        plots.to_png(heat_map(several[:2]), path)


def load(path: Path) -> Codebooks:
    """One codebooks.json. Raises UserError if it is none."""
    try:
        return Codebooks(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not figures of `mmspeech score codebooks` ({error}); write them again") from None


def against(ours: Codebooks, row: Row) -> list[Codebooks]:
    """Ours, the paper's, and the difference, if ours were measured on the paper's corpus.

    Raises UserError if the row has no such figures.
    """
    keys = {name: short(name).lower() for name in (*ours.codebooks, *ours.features)}
    rows = [name for name in ours.codebooks if keys[name] in row.pnmi]
    columns = [name for name in ours.features if all(keys[name] in row.pnmi[keys[book]] for book in rows)]
    if not rows or not columns:
        raise UserError(f"{row.title}: no PNMI of {', '.join(ours.codebooks)}; give a row file that has `pnmi`")
    figures = [[row.pnmi[keys[book]][keys[name]] for name in columns] for book in rows]
    paper = replace(
        ours, label="paper", codebooks=rows, features=columns, pnmi=figures, low=[], high=[], encoder="", interval="",
        note=f"{row.title}, on {row.corpus}; clusters, layer and phones are those of the paper.",
    )  # fmt: skip
    if ours.corpus.casefold() != row.corpus.casefold():
        told = f"{paper.note} Ours were measured on {ours.corpus or 'an unknown corpus'}: not compared."
        return [ours, replace(paper, note=told)]
    own = {(book, name): cell(ours, book, ours.features.index(name))[0] for book in rows for name in columns}  # type: ignore[index]
    apart = [
        [own[book, name] - value for name, value in zip(columns, line, strict=True)]
        for book, line in zip(rows, figures, strict=True)
    ]
    return [ours, paper, replace(paper, label="difference", pnmi=apart, note="ours minus the paper's, in points.")]


def difference(a: Path, cell_a: tuple[str, str], b: Path, cell_b: tuple[str, str]) -> Estimate:
    """b's cell minus a's, in points, with its interval: two cells (codebook, features) of one folder or of two.

    Raises UserError for a cell that is not there, or folders of other utterances or seeds.
    """
    found = [load(folder / "codebooks.json") for folder in (a, b)]
    if len({(one.utterances_hash, one.seed) for one in found}) > 1:
        raise UserError(f"{a} and {b}: measured on other utterances or with another seed; run both on the same cuts")
    values, drawn = [], []
    for folder, one, (codebook, features) in zip((a, b), found, (cell_a, cell_b), strict=True):
        if codebook not in one.codebooks or features not in one.features:
            known = f"{', '.join(one.codebooks)} and {', '.join(one.features)}"
            raise UserError(f"{folder}: no codebook {codebook} with features {features}; there are {known}")
        row, column = one.codebooks.index(codebook), one.features.index(features)
        values.append(one.pnmi[row][column])
        try:
            drawn.append(load_file(folder / "codebooks.safetensors")["pnmi"][row, column])
        except (OSError, KeyError, SafetensorError) as error:
            raise UserError(f"{folder / 'codebooks.safetensors'}: {error}; run `mmspeech score codebooks`") from None
    if len(drawn[0]) != len(drawn[1]):
        raise UserError(f"{a} and {b}: {len(drawn[0])} and {len(drawn[1])} resamples; run both with the same number")
    return bootstrap.estimate(values[1] - values[0], drawn[1] - drawn[0])


def value(folder: Path, where: tuple[str, str]) -> float:
    """The PNMI in percent of a cell (codebook, features)."""
    found = load(folder / "codebooks.json")
    return found.pnmi[found.codebooks.index(where[0])][found.features.index(where[1])]


def heading(one: Codebooks, several: bool) -> list[str]:
    """Over each kind of features: `Y^AV`, with the model's name where there are several."""
    return [f"{one.label}: {name}" if several else name for name in shorts(one.features)]


def rows_of(several: Sequence[Codebooks]) -> list[str]:
    """Codebooks in the order of the first model, then those that only others have."""
    return list(dict.fromkeys(name for one in several for name in one.codebooks))


def cell(one: Codebooks, codebook: str, column: int) -> tuple[float, ...] | None:
    """PNMI and its interval, if there is one; None where the model has no such codebook."""
    if codebook not in one.codebooks:
        return None
    row = one.codebooks.index(codebook)
    return tuple(figures[row][column] for figures in (one.pnmi, one.low, one.high) if figures)


def printed(several: Sequence[Codebooks]) -> rich.table.Table:
    """The table for a terminal, models side by side."""
    shown = rich.table.Table(title="PNMI in %", box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    shown.add_column("codebook of")
    for one in several:
        for name in heading(one, len(several) > 1):
            shown.add_column(Text(name.replace(": ", "\n", 1)), justify="right")
    for codebook, name in zip(rows_of(several), shorts(rows_of(several)), strict=True):
        cells = [cell(one, codebook, column) for one in several for column in range(len(one.features))]
        shown.add_row(name, *(Text(_shown(c).replace(" ", "\n", 1)) for c in cells))
    shown.caption, shown.caption_justify = Text("\n".join(notes(several))), "left"
    return shown


def markdown(several: Sequence[Codebooks]) -> str:
    """The table in Markdown."""
    heads = [name for one in several for name in heading(one, len(several) > 1)]
    lines = [f"| PNMI in %: codebook of | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for codebook, name in zip(rows_of(several), shorts(rows_of(several)), strict=True):
        cells = [cell(one, codebook, column) for one in several for column in range(len(one.features))]
        lines.append(f"| {name} | {' | '.join(map(_shown, cells))} |")
    return "\n".join(lines) + "\n" + "".join(f"\n{line}\n" for line in notes(several))


def _shown(figures: tuple[float, ...] | None) -> str:
    if figures is None:
        return "–"
    return f"{figures[0]:.2f}" + (f" [{figures[1]:.1f}, {figures[2]:.1f}]" if len(figures) > 1 else "")


def notes(several: Sequence[Codebooks]) -> list[str]:
    """What the figures rest on."""
    return [f"{one.label}: {one.note or _basis(one)}" for one in several]


def _basis(one: Codebooks) -> str:
    return (
        f"layer {one.layer}, {one.clusters} clusters, {one.frames} frames with {one.phones} phones of {one.utterances} "
        f"utterances; in brackets {one.interval}."
    )


def tsv(several: Sequence[Codebooks]) -> str:
    """One line per cell."""
    lines = ["\t".join(["model", "codebook", "features", "pnmi", "low", "high", "clusters", "layer", "frames"])]
    for one in several:
        for codebook in one.codebooks:
            for column, features in enumerate(one.features):
                figures = [f"{value:.3f}" for value in cell(one, codebook, column) or ()]
                figures += [""] * (3 - len(figures))
                about = [str(value) for value in (one.clusters, one.layer, one.frames)]
                lines.append("\t".join([one.label.replace("\t", " "), codebook, features, *figures, *about]))
    return "\n".join(lines) + "\n"


def heat_map(several: Sequence[Codebooks]) -> plots.Figure:
    """The table as a picture, one panel per model, all in one scale."""
    panels = {one.label: (shorts(one.codebooks), shorts(one.features), np.array(one.pnmi)) for one in several}
    return plots.heat_map(panels, "codebook of", "features", "PNMI in %")


def save_points(points: Points, label: str, folder: Path) -> None:
    """Write tsne.json and tsne.png, coloured by input and, where frames have different ones, by phone."""
    files.write_json(folder / "tsne.json", asdict(points))
    colours = {"input": points.features} | ({"phone": points.phones} if len(set(points.phones)) > 1 else {})
    with files.replacing(folder / "tsne.png") as path:
        plots.to_png(plots.scatter(points.x, points.y, colours, label), path)
