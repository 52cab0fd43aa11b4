"""The report of experiments as one self-contained page: tables, plots, curves, and clips with what was heard.

    report/index.html   no scripts, no other files: it can be mailed

Everything on it comes from files: score.json, codebooks.json, metrics.jsonl, ref.jsonl, hyp.jsonl, and the mouth
frames of a few cuts.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import cv2
import numpy as np

from mmspeech import __version__, files
from mmspeech.scoring import against, codebooks, modalities, noise_table, page, plots, table, wer
from mmspeech.seeds import numpy_rng

FRAMES = 7  # of each clip's picture strip


@dataclass(kw_only=True)
class Clip:
    """A test clip: what was said, what each (system, column) made of it, and some mouth frames."""

    id: str
    reference: str
    hypotheses: dict[tuple[str, str], str] = field(default_factory=dict)  # (label, heading) -> text
    strip: np.ndarray | None = None  # (H, FRAMES * W) uint8


def write(
    folders: Sequence[Path],
    scores: Sequence[table.Score],
    clips: Sequence[Clip],
    out: Path,
    compared: Sequence[against.Beside] = (),
) -> Path:
    """Write the page into the folder `out`; returns its path.

    Args:
        compared: rows of papers' tables with our systems beside them.
    """
    scores = table.in_every_noise(table.with_distinct_labels(scores))
    title = ", ".join(dict.fromkeys(folder.resolve().name for folder in folders))
    curves = training_curves(folders)
    grids = [one for one in noise_table.grids(scores) if any(len(snrs) > 1 for snrs in one.snrs.values())]
    made = table.shown(table.tables(scores))
    sections = [
        ("Scores", "".join(map(table_html, made)) + page.READING + "".join(map(note_html, table.notes(made)))),
        ("Beside the paper", "".join(map(against_html, compared))),
        (
            "Word error rate over noise",
            figure_html(plots.rate_over_snr(scores)) + "".join(map(grid_html, grids)),
        ),
        ("Clips of the test set", "".join(clip_html(clip) for clip in clips)),
        ("Codebooks and features", codebooks_html(folders)),
        ("Modalities in one space", modalities_html(folders)),
        ("Training", "".join(f"<h3>{html.escape(name)}</h3>{figure_html(svg)}" for name, svg in curves.items())),
    ]
    body = "".join(f"<section><h2>{name}</h2>{content}</section>" for name, content in sections if content)
    origin = f"mmspeech {__version__}, {datetime.now():%Y-%m-%d %H:%M}"
    text = page.FRAME.format(title=html.escape(title), style=page.STYLE, made=origin, body=body)
    with files.replacing(out / "index.html") as path:
        path.write_text(text, encoding="utf-8")
    return out / "index.html"


def training_curves(folders: Sequence[Path]) -> dict[str, str]:
    """Name of each run below the folders that logged metrics -> its curves as SVG."""
    curves = {}
    for folder in folders:
        for path in sorted(folder.rglob("metrics.jsonl"), key=lambda found: found.stat().st_mtime):  # as they were run
            name = str(path.parent.relative_to(folder))
            name = folder.resolve().name if name == "." else name
            if svg := plots.training_curves(plots.read_metrics(path), name):
                curves[name if name not in curves else str(path.parent)] = svg
    return curves


def pick_clips(scores: Sequence[table.Score], number: int, *, seed: int = 0) -> list[Clip]:
    """A seeded choice of the clips that every system and modality decoded, with their texts.

    Of recognizers and translators together only the first kind: their references are other texts.
    """
    scores = [score for score in table.with_distinct_labels(scores) if (score.folder / "hyp.jsonl").exists()]
    sets = dict.fromkeys((score.set, score.metric) for score in scores)
    shown = next((one for one in sets if one[0] == "test"), next(iter(sets), None))
    scores = [score for score in scores if (score.set, score.metric) == shown]
    if len({score.noise for score in scores}) > table.MANY + 1:  # forty readings of a clip are not read
        scores = [score for score in scores if score.noise in table.STANDARD] or scores
    scores.sort(key=lambda score: table.column_order(score.column))
    heard = {score: wer.read_texts(score.folder / "hyp.jsonl") for score in scores}
    said = wer.read_texts(scores[0].folder / "ref.jsonl") if scores else {}
    ids = sorted(set(said).intersection(*heard.values()))
    if not ids or number == 0:
        return []
    chosen = sorted(numpy_rng(seed, "clips").choice(len(ids), min(number, len(ids)), replace=False))
    clips = []
    for name in (ids[i] for i in chosen):
        hypotheses = {(score.label, table.heading(score.column)): heard[score][name] for score in scores}
        clips.append(Clip(id=name, reference=said[name], hypotheses=hypotheses))
    return clips


def strip_of(frames: np.ndarray) -> np.ndarray:
    """A few mouth frames, evenly spread over the clip, side by side: (T, H, W) uint8 -> (H, FRAMES * W)."""
    at = np.linspace(0, len(frames) - 1, FRAMES + 2)[1:-1].round().astype(int)  # mouths are closed at both ends
    return np.concatenate(list(frames[at]), axis=1)


def table_html(one: table.Table) -> str:
    """A table of rates; each cell also shows its rate as a bar."""
    heads = []
    for column in one.columns:
        modality, _, noise = table.heading(column).partition(" ")
        mark = table.hash_mark(one.noise_hash(column))
        mark = f"<code>{html.escape(mark)}</code>" if mark else ""
        heads.append(f'<th scope="col">{html.escape(modality)}<small>{html.escape(noise)}{mark}</small></th>')
    heads += [f'<th scope="col">{html.escape(heading)}</th>' for heading in one.summaries]
    rows = []
    for label in one.rows:
        cells = [cell_html(one.scores.get((label, column))) for column in one.columns]
        cells += [f"<td><b>{last.get(label, '–')}</b></td>" for last in one.summaries.values()]
        is_floor = all(one.scores[key].modality == table.ANY for key in one.scores if key[0] == label)
        kind = ' class="floor"' if is_floor else ""
        rows.append(f'<tr{kind}><th scope="row">{html.escape(label)}</th>{"".join(cells)}</tr>')
    return (
        f'<div class="wide"><table><caption>{html.escape(one.title)}</caption>'
        f'<thead><tr><th scope="col">system</th>{"".join(heads)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def grid_html(one: noise_table.Grid) -> str:
    """A table of rates in all noises."""
    heads = "".join(
        f'<th scope="col">{html.escape(kind)}<small>{html.escape(name)}</small></th>' for kind, name in one.columns
    )
    rows = "".join(
        f'<tr><th scope="row">{html.escape(label)}</th><td>{html.escape(modality)}</td>'
        f"{''.join(f'<td>{cell}</td>' for cell in one.cells((label, modality)))}</tr>"
        for label, modality in one.rows
    )
    return (
        f'<div class="wide"><table><caption>{html.escape(one.title)}</caption>'
        f'<thead><tr><th scope="col">system</th><th scope="col">input</th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def against_html(one: against.Beside) -> str:
    """A row of a paper's table, and ours."""
    heads = "".join(f'<th scope="col">{html.escape(heading)}</th>' for heading in against.headings(one))
    rows = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th>{"".join(f"<td>{html.escape(cell)}</td>" for cell in cells)}</tr>'
        for name, *cells in against.lines(one)
    )
    return (
        f'<div class="wide"><table><caption>{html.escape(against.title(one))}</caption>'
        f'<thead><tr><th scope="col"></th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
        + "".join(map(note_html, against.notes(one)))
    )


def codebooks_html(folders: Sequence[Path]) -> str:
    """PNMI of all models that were measured, as a picture, and the t-SNE of each."""
    paths = list(dict.fromkeys(path for folder in folders for path in table.visible(folder, "codebooks.json")))
    if not paths:
        return ""
    found = [codebooks.load(path) for path in paths]
    if len({one.label for one in found}) < len(found):
        found = [replace(one, label=str(path.parent)) for path, one in zip(paths, found, strict=True)]
    pictures = ""
    for path, one in zip(paths, found, strict=True):
        if (picture := path.with_name("tsne.png")).is_file():
            what = f"t-SNE of the features of {one.label}"
            pictures += f'<figure><img class="plot" src="{data_url(picture)}" alt="{html.escape(what)}"></figure>'
    heat = figure_html(plots.to_svg(codebooks.heat_map(found), "PNMI of features under codebooks"))
    return heat + "".join(map(note_html, codebooks.notes(found))) + pictures


def modalities_html(folders: Sequence[Path]) -> str:
    """How far the features of the inputs overlap, for all models that were measured: a line and the t-SNE of each."""
    shown = ""
    for path in dict.fromkeys(path for folder in folders for path in table.visible(folder, "modalities.json")):
        one = modalities.load(path)
        shown += f"<p>{html.escape(f'{one.label}: {modalities.described(one)}')}</p>{note_html(modalities.basis(one))}"
        if (picture := path.with_name("tsne.png")).is_file():
            what = html.escape(f"t-SNE of the features of {one.label}, by input")
            shown += f'<figure><img class="plot" src="{data_url(picture)}" alt="{what}"></figure>'
    return shown


def note_html(line: str) -> str:
    return f'<p class="note">{html.escape(line)}</p>'


def cell_html(score: table.Score | None) -> str:
    if score is None:
        return "<td>–</td>"
    bar = f'<i style="width: calc({min(score.value, 100):.1f} * var(--percent))"></i>'
    return f"<td><b>{score.value:.1f}</b><small>{score.low:.1f}–{score.high:.1f}</small>{bar}</td>"


def clip_html(clip: Clip) -> str:
    """Picture strip, reference, and hypotheses with their errors marked."""
    picture = ""
    if clip.strip is not None:
        picture = f'<img src="{png(clip.strip)}" alt="mouth frames of {html.escape(clip.id)}">'
    systems = []
    labels = dict.fromkeys(label for label, _ in clip.hypotheses)
    for label in labels:
        lines = [f"<tr><th>said</th><td>{html.escape(clip.reference)}</td></tr>"]
        for (of, where), hypothesis in clip.hypotheses.items():
            if of == label:
                marked = marked_html(clip.reference, hypothesis)
                lines.append(f"<tr><th>{html.escape(where)}</th><td>{marked}</td></tr>")
        systems.append(f"<table><caption>{html.escape(label)}</caption>{''.join(lines)}</table>")
    caption = f"<figcaption>{html.escape(clip.id)}</figcaption>"
    return f'<figure class="clip">{picture}{caption}<div>{"".join(systems)}</div></figure>'


def marked_html(reference: str, hypothesis: str) -> str:
    """The hypothesis; wrong and added words are marked, missing ones stand there struck out."""
    words = []
    for pair in wer.align(wer.words_of(reference), wer.words_of(hypothesis)):
        said, heard = html.escape(pair.reference), html.escape(pair.hypothesis)
        words.append(
            {
                "C": heard,
                "S": f'<mark title="said: {said}">{heard}</mark>',
                "I": f'<mark title="not said">{heard}</mark>',
                "D": f"<del>{said}</del>",
            }[pair.operation]
        )
    return " ".join(words) or "<em>nothing</em>"


def figure_html(svg: str) -> str:
    return f'<figure class="wide">{svg}</figure>' if svg else ""


def png(picture: np.ndarray) -> str:
    """A grey picture (H, W) uint8 as a data URL."""
    return _as_url(cv2.imencode(".png", picture)[1].tobytes())


def data_url(file: Path) -> str:
    """A PNG file as a data URL."""
    return _as_url(file.read_bytes())


def _as_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def fill_strips(clips: Sequence[Clip], frames: Mapping[str, np.ndarray]) -> None:
    """Give the clips their picture strips: id -> (T, H, W) uint8 mouth frames."""
    for clip in clips:
        if clip.id in frames and len(frames[clip.id]):
            clip.strip = strip_of(frames[clip.id])
