"""The report's plots, as SVG text that takes its colours of ink and paper from the page around it."""

import io
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from mmspeech.errors import UserError
from mmspeech.scoring.table import ANY, Score, column_order, split_noise

# Colours that stand for the page's own (CSS variables), so that one picture suits light and dark.
INK, FAINT = "#010203", "#040506"
COLOURS = ("#3b6fd4", "#d9742b", "#2e9e6b", "#b0489c", "#8a7a2f", "#5f6b7a")  # readable on white and on black
MARKERS = "o^sD"
LEGEND = 24  # groups that a legend names
POINTS = 300  # per curve: a pre-training run logs many thousands, and the file should stay small


def read_metrics(path: Path) -> dict[str, np.ndarray]:
    """metrics.jsonl as curves: name -> (P, 2) of update and value; text and values that are not finite are left out.

    The names of lines of kind "valid" begin with `valid/`. A run that was stopped and resumed may have logged an
    update twice: the later line counts.
    """
    curves: dict[str, dict[int, float]] = {}
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            logged = json.loads(line)
            update = int(logged["update"])
        except (ValueError, KeyError, TypeError):
            if number == len(lines):  # a run that was killed, or is still writing, may leave half a line
                continue
            raise UserError(f'{path}:{number}: expected {{"update": ..., "loss": ...}}; remove the line') from None
        prefix = "valid/" if logged.get("kind") == "valid" else ""
        for name, value in logged.items():
            if name != "update" and isinstance(value, int | float) and math.isfinite(value):
                curves.setdefault(prefix + name, {})[update] = float(value)
    return {name: np.array(sorted(points.items())) for name, points in curves.items()}


def training_curves(curves: Mapping[str, np.ndarray], title: str) -> str:
    """Losses in training and validation over updates, other validation figures, and the learning rate, side by side."""
    parts = [name for name in curves if name.startswith("loss/")]
    panels = {
        "loss": [name for name in ("loss", "valid/loss") if name in curves] + (parts if len(parts) > 1 else []),
        "validation": [name for name in curves if name.startswith("valid/") and not name.startswith("valid/loss")],
        "learning rate": [name for name in ("lr",) if name in curves],
    }
    shown = {panel: names for panel, names in panels.items() if names}
    if not shown:
        return ""
    figure = Figure(figsize=(3.4 * len(shown), 2.5), layout="constrained")
    for axes, (panel, names) in zip(np.atleast_1d(figure.subplots(1, len(shown))), shown.items(), strict=True):
        for name, colour in zip(names, COLOURS, strict=False):
            x, y = thinned(curves[name]).T
            label = name.removeprefix("loss/").removeprefix("valid/") if panel == "validation" else name
            marker = "o" if len(x) < 20 else None
            axes.plot(x, y, color=colour, linewidth=1.4, label=label, marker=marker, markersize=2.5)
        only = f": {names[0].removeprefix('valid/')}" if panel == "validation" and len(names) == 1 else ""
        axes.set_title(panel + only, loc="left", fontsize=9, color=INK)
        axes.set_xlabel("update", fontsize=8)
        if len(names) > 1:
            axes.legend(fontsize=7, frameon=False, labelcolor=INK)
        _plain(axes)
    return to_svg(figure, f"Training curves of {title}")


def rate_over_snr(scores: Sequence[Score]) -> str:
    """Error rates over the SNR, one panel per kind of noise, with intervals; "" unless some system has several SNRs."""
    scores = [score for score in scores if score.metric == "wer" and score.modality != ANY]
    kinds = sorted({split_noise(score.noise)[0] for score in scores if math.isfinite(split_noise(score.noise)[1])})
    panels = {kind: lines for kind in kinds if (lines := _lines(scores, kind))}
    if not panels:
        return ""
    columns = min(len(panels), 2)  # more beside each other would be too small to read
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.2 * rows), layout="constrained")
    places_of_panels = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axes in places_of_panels[len(panels) :]:
        axes.set_axis_off()
    for axes, (kind, lines) in zip(places_of_panels, panels.items(), strict=False):
        levels = sorted({split_noise(score.noise)[1] for line in lines.values() for score in line})  # clean: inf, last
        places = {level: place for place, level in enumerate(levels)}
        for (name, line), colour in zip(lines.items(), COLOURS * len(lines), strict=False):
            x = [places[split_noise(score.noise)[1]] for score in line]
            y = np.array([score.value for score in line])
            # A percentile interval need not hold the score itself, but bars cannot be negative.
            bars = [
                np.maximum(y - [score.low for score in line], 0),
                np.maximum([score.high for score in line] - y, 0),
            ]
            axes.errorbar(
                x, y, bars, color=colour, linewidth=1.4, elinewidth=0.8, capsize=2, marker="o", markersize=3, label=name
            )
        axes.set_xticks(list(places.values()), [f"{level:g}" if math.isfinite(level) else "clean" for level in places])
        axes.set_title(f"{kind}: WER in %", loc="left", fontsize=9, color=INK)
        axes.set_xlabel("SNR in dB", fontsize=8)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=7, frameon=False, labelcolor=INK)
        _plain(axes)
    return to_svg(figure, "Word error rate over signal-to-noise ratio")


def heat_map(
    panels: Mapping[str, tuple[Sequence[str], Sequence[str], np.ndarray]], rows: str, columns: str, title: str
) -> Figure:
    """Tables of figures as coloured cells, one panel each: name -> (names of rows, of columns, values (rows, columns)).

    All panels share one scale of colours, so that they compare.
    """
    every = np.concatenate([values.ravel() for _, _, values in panels.values()])
    low, high = float(np.nanmin(every)), max(float(np.nanmax(every)), float(np.nanmin(every)) + 1e-6)
    figure = Figure(figsize=(1.2 + 2.8 * len(panels), 2.9), layout="constrained")
    for axes, (name, (down, across, values)) in zip(
        np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True
    ):
        axes.imshow(values, cmap="viridis", vmin=low, vmax=high, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            bright = (value - low) / (high - low) > 0.6
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", color="black" if bright else "white")
        axes.set_xticks(range(len(across)), across)
        axes.set_yticks(range(len(down)), down)
        axes.set_title(f"{name}: {title}", loc="left", fontsize=9, color=INK)
        axes.set_xlabel(columns, fontsize=8, color=INK)
        axes.set_ylabel(rows, fontsize=8, color=INK)
        axes.tick_params(labelsize=8, colors=INK, length=0)
        axes.spines[:].set_visible(False)
    return figure


def scatter(x: Sequence[float], y: Sequence[float], colourings: Mapping[str, Sequence[str]], title: str) -> Figure:
    """Points in two dimensions, once for each colouring: what it is called -> each point's group.

    Of more than LEGEND groups, the legend names the largest.
    """
    figure = Figure(figsize=(5.2 * len(colourings), 4.4), layout="constrained")
    for axes, (what, groups) in zip(
        np.atleast_1d(figure.subplots(1, len(colourings))), colourings.items(), strict=True
    ):
        names = [name for name, _ in Counter(groups).most_common()]
        cycle = COLOURS if len(names) <= len(COLOURS) else matplotlib.colormaps["tab20"](range(20))
        for place, name in enumerate(names):
            inside = np.array([group == name for group in groups])
            label = name if place < LEGEND else None
            marker = MARKERS[place // len(cycle) % len(MARKERS)]  # colours come again
            axes.scatter(
                np.asarray(x)[inside], np.asarray(y)[inside], s=7, alpha=0.7, color=cycle[place % len(cycle)],
                linewidths=0, label=label, marker=marker,
            )  # fmt: skip
        axes.legend(fontsize=7, frameon=False, markerscale=2, labelcolor=INK, loc="upper left", bbox_to_anchor=(1, 1))
        axes.set_title(f"{title}, coloured by {what}", loc="left", fontsize=9, color=INK)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_facecolor("none")
        axes.spines[:].set_color(FAINT)
    return figure


def lines_over(lines: Mapping[str, Sequence[tuple[float, ...]]], x: str, y: str, title: str) -> Figure:
    """Figures with intervals over what was varied: name -> (x, value, low, high) of each point."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for name, points in lines.items():
        at, value, low, high = np.array(points).T
        axes.errorbar(at, value, yerr=[value - low, high - value], label=name, marker="o", markersize=3, capsize=2)
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.title.set(fontsize=8, wrap=True)
    axes.legend(fontsize=7, frameon=False)
    _plain(axes)
    return figure


def panels_over(panels: Mapping[str, Mapping[str, Sequence[float]]], at: Sequence[float], x: str) -> Figure:
    """Curves over the same places, a panel for each title: title -> name -> values.

    Curves whose names begin alike, up to a comma, have one colour in all panels.
    """
    names = dict.fromkeys(_before_comma(name) for lines in panels.values() for name in lines)
    colours = dict(zip(names, COLOURS * len(names), strict=False))
    columns = min(len(panels), 3)
    figure = Figure(figsize=(4.2 * columns, 2.9 * -(-len(panels) // columns)), layout="constrained")
    places = np.ravel(figure.subplots(-(-len(panels) // columns), columns, squeeze=False))
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, lines) in zip(places, panels.items(), strict=False):
        for name, values in lines.items():
            axes.plot(at, values, color=colours[_before_comma(name)], linewidth=1.6, label=name)
        axes.set_title(title, loc="left", fontsize=9, color=INK)
        axes.set_xlabel(x, fontsize=8)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 200k, 1M: numbers in full would touch
        if len(lines) > 1:
            axes.legend(fontsize=7, frameon=False, labelcolor=INK)
        _plain(axes)
    return figure


def _before_comma(name: str) -> str:
    return name.partition(",")[0]


def to_png(figure: Figure, path: Path) -> None:
    """Write the figure as a picture on white, where INK is all but black, and FAINT would be too."""
    for axes in figure.axes:
        for line in [*axes.get_xgridlines(), *axes.get_ygridlines()]:
            line.set_color("#dddddd")
    figure.savefig(path, format="png", dpi=150, facecolor="white", metadata={"Software": None})


def thinned(curve: np.ndarray) -> np.ndarray:
    """At most POINTS means of neighbouring points: (P, 2) -> (<= POINTS, 2)."""
    if len(curve) <= POINTS:
        return curve
    return np.array([part.mean(axis=0) for part in np.array_split(curve, POINTS)])


def to_svg(figure: Figure, title: str) -> str:
    """The figure as an <svg> element for a page, with text as text."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "var(--ink)").replace(FAINT, "var(--line)")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font: \1 var(--sans)", svg)
    # Sized by the page: the picture keeps its proportions and shrinks with the window.
    width = figure.get_figwidth() * 96  # CSS pixels
    svg = re.sub(r'(<svg [^>]*?)height="[\d.]+pt" ', r"\1", svg, count=1)
    svg = re.sub(r'width="[\d.]+pt"', f'style="width: 100%; max-width: {width:.0f}px" role="img"', svg, count=1)
    return svg.replace(">", f"><title>{title.replace('<', '').replace('&', 'and')}</title>", 1)


def _lines(scores: Sequence[Score], kind: str) -> dict[str, list[Score]]:
    """System and modality -> its scores by rising SNR, the clean one last; only those with at least two SNRs."""
    labels = [score.label for score in scores]  # systems stay in the order they were given
    lines: dict[str, list[Score]] = {}
    for score in sorted(scores, key=lambda score: (labels.index(score.label), column_order(score.column))):
        if split_noise(score.noise)[0] in (kind, "clean"):
            lines.setdefault(f"{score.label}, {score.modality.upper()}", []).append(score)
    several = {name: line for name, line in lines.items() if sum(score.noise != "clean" for score in line) > 1}
    return {name: sorted(line, key=lambda score: split_noise(score.noise)[1]) for name, line in several.items()}


def _plain(axes: Axes) -> None:
    axes.set_facecolor("none")
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=7, colors=INK, length=0)
    axes.xaxis.label.set_color(INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
