"""One table from an experiment's score.json files: systems down, streams and noise across.

table.md   as printed: a rate with its interval per cell; the hash of the noise over each noisy column
table.tsv  one line per score, for spreadsheets and plots
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import rich.table
from rich import box
from rich.text import Text

from mmspeech import files
from mmspeech.errors import UserError

ANY = "any"  # the floor's modality and noise: it stands in every column
MODALITIES = ("av", "a", "v")  # the order of columns; others follow
SAME = "= clean"  # in place of a noise's hash: nothing in the input hears it
LIPS = ("v", "video")  # modalities that hear no noise, where decode.json does not say whether they do
STANDARD = ("clean", "babble:0")  # the noises of the papers' tables
AVERAGED = (("av", "clean"), ("av", "babble:0"), ("a", "clean"), ("a", "babble:0"), ("v", "clean"))  # Table 2's Avg-WER
AVERAGE, REAL_TIME, MEAN = "Avg", "real-time factor", "mean in noise"
MANY = 4  # noises: more are laid out by SNR, one row for each kind
BY_SNR = "snr"  # in place of a column's modality, there
READING = "95 % interval over utterances. #: which noise was added."


@dataclass(frozen=True, kw_only=True)
class Score:
    """What one score.json says, as far as a table needs it."""

    label: str
    set: str
    modality: str
    noise: str
    noise_hash: str | None
    metric: str
    value: float
    low: float
    high: float
    sentences: int
    words: int
    folder: Path
    hears_noise: bool = True
    set_aside: int = 0  # cuts of the set that could not be read and do not count
    swept_beam: int = 0  # width of the search, where several were tried in one run
    seconds: float = 0.0  # that decoding took
    audio_seconds: float = 0.0  # of speech

    @property
    def column(self) -> tuple[str, str]:
        return self.modality, self.noise


@dataclass(frozen=True)
class Table:
    """The scores of one set and metric; a row is a system, a column a (modality, noise)."""

    set: str
    metric: str
    rows: list[str]
    columns: list[tuple[str, str]]
    scores: dict[tuple[str, tuple[str, str]], Score]
    summaries: dict[str, dict[str, str]] = field(default_factory=dict)  # heading of a last column -> label -> cell

    @property
    def title(self) -> str:
        return f"{'WER in %' if self.metric == 'wer' else self.metric.upper()} on {self.set}"

    def noise_hash(self, column: tuple[str, str]) -> str | None:
        """The hash that all scores of a noisy column share; None if clean, "" if unknown, "mixed" if they differ.

        `SAME` where the column is the clean one again.
        """
        if column[1] in ("clean", ANY) or column[0] == BY_SNR:
            return None
        systems = [score for (_, at), score in self.scores.items() if at == column and score.modality != ANY]
        hashes = {score.noise_hash or "" for score in systems}
        return hashes.pop() if len(hashes) == 1 else "mixed"


def collect(folders: Sequence[Path]) -> list[Score]:
    """Every score.json at or below the folders, in the order given, each once. Raises UserError if there is none."""
    found: dict[Path, Score] = {}
    for folder in folders:
        if not folder.exists():
            raise UserError(f"{folder}: no such folder; give the folder of an experiment")
        for path in visible(folder, "score.json"):
            if path.resolve() not in found:
                found[path.resolve()] = read_score(path)
    if not found:
        raise UserError(
            f"{', '.join(map(str, folders))}: no score.json below; decode, then run `mmspeech score report` on them"
        )
    return list(found.values())


def visible(folder: Path, name: str) -> list[Path]:
    """The files of this name at or below a folder, without those that a stage has not finished (hidden folders)."""
    paths = folder.rglob(name)
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def read_score(path: Path) -> Score:
    """One score.json. Raises UserError if it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        metric = content["metric"]
        return Score(
            label=content["label"],
            set=content.get("set") or "test",
            modality=content.get("modality") or ANY,
            noise=content.get("noise") or "clean",
            noise_hash=content.get("noise_hash"),
            metric=metric,
            value=float(content[metric]),
            low=float(content[f"{metric}_low"]),
            high=float(content[f"{metric}_high"]),
            sentences=int(content["sentences"]),
            words=int(content["words"]),
            folder=path.parent,
            hears_noise=content.get("hears_noise", content.get("modality") not in LIPS),
            set_aside=int(content.get("set_aside") or 0),
            swept_beam=int(content.get("swept_beam") or 0),
            seconds=float(content.get("seconds") or 0.0),
            audio_seconds=float(content.get("audio_seconds") or 0.0),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a score that this version wrote ({error!r}); delete it and score again") from None


def tables(scores: Iterable[Score]) -> list[Table]:
    """The scores as tables, one per (set, metric); a floor fills every column and comes last."""
    scores = in_every_noise(with_distinct_labels(scores))
    made = []
    for name, metric in dict.fromkeys((score.set, score.metric) for score in scores):
        here = [score for score in scores if (score.set, score.metric) == (name, metric)]
        columns = sorted({score.column for score in here if score.modality != ANY}, key=column_order)
        columns = columns or [(ANY, ANY)]
        systems = [_without_beam(score) for score in here]  # they stay in the order they were given
        here.sort(key=lambda score: (score.modality == ANY, systems.index(_without_beam(score)), score.swept_beam))
        cells = {}
        for score in here:
            for column in columns if score.modality == ANY else [score.column]:
                cells[score.label, column] = score
        rows = list(dict.fromkeys(score.label for score in here))
        summaries = {AVERAGE: averages(rows, columns, cells), REAL_TIME: real_time_factors(here)}
        kept = {heading: shown for heading, shown in summaries.items() if shown}
        made.append(Table(name, metric, rows, columns, cells, kept))
    return made


def averages(
    rows: Iterable[str], columns: Sequence[tuple[str, str]], cells: dict[tuple[str, tuple[str, str]], Score]
) -> dict[str, str]:
    """Label -> the plain mean of its five rates in u-HuBERT's Table 2 (AV and A clean and noisy, V); only with all."""
    if not set(AVERAGED) <= set(columns):
        return {}
    found = {label: [cells[label, at].value for at in AVERAGED if (label, at) in cells] for label in rows}
    return {
        label: f"{sum(values) / len(values):.1f}" for label, values in found.items() if len(values) == len(AVERAGED)
    }


def real_time_factors(scores: Sequence[Score]) -> dict[str, str]:
    """Label -> seconds of decoding per second of speech over all its conditions, where a width was swept."""
    own = [score for score in scores if score.swept_beam and score.audio_seconds and score.noise_hash != SAME]
    spent: dict[str, list[float]] = {}
    for score in own:
        total = spent.setdefault(score.label, [0.0, 0.0])
        total[0] += score.seconds
        total[1] += score.audio_seconds
    return {label: f"{seconds / audio_seconds:.3f}" for label, (seconds, audio_seconds) in spent.items()}


def shown(made: Iterable[Table]) -> list[Table]:
    """The tables as people read them: one with more than a few noises keeps the standard ones, and another is laid out
    with SNRs across and a row for each system, input and kind of noise."""
    parts = []
    for table in made:
        if len({noise for _, noise in table.columns} - {"clean", ANY}) <= MANY:
            parts.append(table)
        else:
            parts += [replace(table, columns=[at for at in table.columns if at[1] in (*STANDARD, ANY)]), by_snr(table)]
    return [part for part in parts if part.columns]


def by_snr(table: Table) -> Table:
    """A table's scores in noise with SNRs across, and the mean over them; what hears no noise is left out."""
    cells: dict[tuple[str, tuple[str, str]], Score] = {}
    for (label, (modality, noise)), score in table.scores.items():
        kind, snr_db = split_noise(noise)
        if math.isfinite(snr_db) and score.modality != ANY and score.noise_hash != SAME:
            row = f"{label}, {modality.upper()} {kind}"
            cells[row, (BY_SNR, f":{snr_db:g}")] = score
            if clean := table.scores.get((label, (modality, "clean"))):
                cells[row, (BY_SNR, "clean")] = clean
    columns = sorted({column for _, column in cells}, key=column_order)
    order = {label: place for place, label in enumerate(table.rows)}
    sources = {row: score for (row, at), score in cells.items() if at[1] != "clean"}
    rows = sorted(sources, key=lambda row: (order[sources[row].label], column_order(sources[row].column)))
    noisy = [column for column in columns if column[1] != "clean"]
    values = {row: [cells[row, at].value for at in noisy if (row, at) in cells] for row in rows}
    means = {row: f"{sum(found) / len(found):.1f}" for row, found in values.items() if len(found) == len(noisy)}
    title = f"{table.set}, by noise and SNR"
    return replace(table, set=title, rows=rows, columns=columns, scores=cells, summaries={MEAN: means} if means else {})


def with_distinct_labels(scores: Iterable[Score]) -> list[Score]:
    """The scores, where two would share a cell, with the folder of their experiment added to the label."""
    scores = list(scores)
    cells: dict[tuple[str, ...], set[Path]] = {}
    for score in scores:
        cells.setdefault((score.label, score.set, score.metric, *score.column), set()).add(score.folder)
    shared = [(key[0], folders) for key, folders in cells.items() if len(folders) > 1]
    ambiguous = {label for label, _ in shared}
    still = {label for label, folders in shared if len(set(map(_experiment, folders))) < len(folders)}
    places = {score.folder: score.folder if score.label in still else _experiment(score.folder) for score in scores}
    return [
        replace(score, label=f"{score.label} ({places[score.folder]})") if score.label in ambiguous else score
        for score in scores
    ]


def in_every_noise(scores: Iterable[Score]) -> list[Score]:
    """The scores; those of inputs that hear no noise once more for each noise that others of their set were given.

    Lips alone are decoded once: their figure is the same in all noises, and a table should show it beside the others.
    """
    scores = list(scores)
    there = {(score.label, score.set, score.metric, *score.column) for score in scores}
    more = []
    for score in scores:
        if score.hears_noise or score.noise != "clean":
            continue
        noises = {other.noise for other in scores if (other.set, other.metric) == (score.set, score.metric)}
        for noise in sorted(noises - {"clean", ANY}):
            if (score.label, score.set, score.metric, score.modality, noise) not in there:
                more.append(replace(score, noise=noise, noise_hash=SAME))
    return scores + more


def column_order(column: tuple[str, str]) -> tuple[int, str, str, float]:
    """AV, A, V, others; in each: clean, then by kind of noise and falling SNR."""
    modality, noise = column
    rank = MODALITIES.index(modality) if modality in MODALITIES else len(MODALITIES)
    kind, snr_db = split_noise(noise)
    return rank, modality, "" if noise == "clean" else kind, -snr_db


def split_noise(noise: str) -> tuple[str, float]:
    """`babble:-5` -> ("babble", -5.0); `clean` -> ("clean", inf)."""
    kind, _, snr = noise.partition(":")
    try:
        return kind, float(snr) if snr else math.inf
    except ValueError:
        return noise, math.inf


def heading(column: tuple[str, str]) -> str:
    """`("av", "babble:0")` -> `AV babble 0 dB`."""
    modality, noise = column
    if noise == ANY:
        return "any input"
    if modality == BY_SNR:
        return "no noise" if noise == "clean" else f"SNR {split_noise(noise)[1]:g} dB"
    kind, snr_db = split_noise(noise)
    return f"{modality.upper()} {kind}" + (f" {snr_db:g} dB" if math.isfinite(snr_db) else "")


def hash_mark(noise_hash: str | None) -> str:
    """The first 8 digits, which tell two noises apart; a warning where there is none."""
    if noise_hash is None:
        return ""
    return noise_hash if noise_hash in ("mixed", SAME) else f"#{noise_hash[:8]}" if noise_hash else "no hash"


def printed(table: Table) -> rich.table.Table:
    """The table for a terminal."""
    made = rich.table.Table(title=table.title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    made.add_column("", overflow="fold")
    for column in table.columns:
        modality, _, noise = heading(column).partition(" ")
        mark = hash_mark(table.noise_hash(column))
        lines = [modality, noise, mark] if mark else [modality, noise]
        made.add_column(Text("\n".join(lines)), justify="right", no_wrap=True)
    for heading_of_last in table.summaries:
        made.add_column(Text(heading_of_last.replace(" ", "\n", 1)), justify="right", no_wrap=True)
    for label in table.rows:
        cells = [table.scores.get((label, column)) for column in table.columns]
        made.add_row(
            Text(label),
            *(
                Text.assemble(f"{cell.value:.1f}", "\n", (f"{cell.low:.1f}–{cell.high:.1f}", "dim")) if cell else "–"
                for cell in cells
            ),
            *(last.get(label, "–") for last in table.summaries.values()),
        )
    made.caption = Text("\n".join([f"Below each rate: {READING}", *notes([table])]))
    made.caption_justify = "left"
    return made


def by_modality(table: Table) -> list[Table]:
    """The table as one for each modality, for narrow terminals; what sums them up stands in the last."""
    modalities = dict.fromkeys(modality for modality, _ in table.columns)
    parts = [replace(table, columns=[at for at in table.columns if at[0] == one], summaries={}) for one in modalities]
    return [*parts[:-1], replace(parts[-1], summaries=table.summaries)]


def markdown(made: Sequence[Table]) -> str:
    """The tables in Markdown."""
    parts = []
    for table in made:
        marks = [hash_mark(table.noise_hash(column)) for column in table.columns]
        heads = [
            heading(column) + (f" `{mark}`" if mark else "") for column, mark in zip(table.columns, marks, strict=True)
        ]
        heads += table.summaries
        lines = [f"| {table.title} | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
        for label in table.rows:
            cells = [_cell(table.scores.get((label, column))) for column in table.columns]
            cells += [last.get(label, "–") for last in table.summaries.values()]
            lines.append(f"| {_escaped(label)} | {' | '.join(cells)} |")
        parts.append("\n".join(lines) + "\n")
    below = [f"In brackets: {READING.replace('#', '`#`')}", *notes(made)]
    return "\n".join(parts) + "".join(f"\n{line}\n" for line in below)


def notes(made: Iterable[Table]) -> list[str]:
    """What must be known beside the rates: which columns are the clean one again, and which cuts do not count."""
    made = list(made)
    same: dict[str, None] = {}
    missing: dict[str, list[str]] = {}
    for table in made:
        same |= {column[0].upper(): None for column in table.columns if table.noise_hash(column) == SAME}
        for (label, column), score in table.scores.items():
            if score.set_aside and column in table.columns and score.noise_hash != SAME:
                text = f"{label}: {score.set_aside} cut(s) of {table.set} could not be read and do not count"
                missing.setdefault(text, []).append(heading(column))
    deaf = [f"{SAME}: lips hear no noise: {', '.join(same)} is the same in all noises."] if same else []
    averaged = any(AVERAGE in table.summaries for table in made)
    mean = [f"{AVERAGE}: plain mean of {', '.join(map(heading, AVERAGED))}."] if averaged else []
    if any(column[0] == BY_SNR for table in made for column in table.columns):
        mean.append("The hash of each noise stands in table.tsv.")
    # A set scored by two metrics names its columns twice.
    return deaf + mean + [f"{text} ({', '.join(dict.fromkeys(where))})." for text, where in missing.items()]


def tsv(scores: Iterable[Score]) -> str:
    """One line per score, and one for each noise that a score without sound does not hear."""
    names = ["set", "system", "modality", "noise", "noise_hash", "metric", "value", "low", "high"]
    lines = ["\t".join([*names, "sentences", "words", "set_aside", "folder"])]
    for score in in_every_noise(scores):
        values = [f"{value:.3f}" for value in (score.value, score.low, score.high)]
        start = [score.set, score.label.replace("\t", " "), score.modality, score.noise, score.noise_hash or ""]
        counts = [str(count) for count in (score.sentences, score.words, score.set_aside)]
        lines.append("\t".join([*start, score.metric, *values, *counts, str(score.folder)]))
    return "\n".join(lines) + "\n"


def write(scores: Sequence[Score], out: Path) -> list[Table]:
    """Write table.md and table.tsv into the folder `out`; returns the tables."""
    made = tables(scores)
    with files.replacing(out / "table.md") as path:
        path.write_text(markdown(shown(made)), encoding="utf-8")
    with files.replacing(out / "table.tsv") as path:
        path.write_text(tsv(scores), encoding="utf-8")
    return made


def warnings(made: Iterable[Table]) -> Iterator[str]:
    """One line for each column whose rates cannot be compared."""
    for table in made:
        for column in table.columns:
            if table.noise_hash(column) == "mixed":
                yield (
                    f"{table.title}, {heading(column)}: systems were decoded with different noise; "
                    "decode all of them with the same frozen noise before comparing"
                )


def _cell(score: Score | None) -> str:
    return f"{score.value:.1f} [{score.low:.1f}, {score.high:.1f}]" if score else "–"


def _without_beam(score: Score) -> str:
    """The label of the system, whatever the width of its search."""
    return score.label.replace(f", beam {score.swept_beam}", "") if score.swept_beam else score.label


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _experiment(folder: Path) -> Path:
    return folder.parent.parent if folder.parent.name == "decode" else folder.parent
