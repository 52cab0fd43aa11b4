"""`mmspeech score`: error rates of decoded sets, the floor, tables, and the report."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from mmspeech import files
from mmspeech.console import say
from mmspeech.data.text import normalise
from mmspeech.errors import UserError
from mmspeech.scoring import bleu as bleu_score
from mmspeech.scoring import bootstrap, floor, report, table, wer

app = typer.Typer()

DecodeFolders = Annotated[list[Path], typer.Argument(help="Folders that `mmspeech decode` wrote.")]
Experiments = Annotated[list[Path], typer.Argument(help="Folders of experiments; everything below is found.")]
Seed = Annotated[int, typer.Option(help="Fixes the resamples of the interval.")]
Resamples = Annotated[int, typer.Option(min=1000, help="How often the utterances are drawn anew for the interval.")]


@app.command("wer")
def score_wer(folders: DecodeFolders, seed: Seed = 0, resamples: Resamples = bootstrap.RESAMPLES) -> None:
    """Word and character error rates of decoded sets, with a 95 % interval and every utterance's alignment.

    Writes wer.txt (to read), utterances.jsonl and score.json (for tables) into each folder, and does nothing where
    they are current. Next: `mmspeech score table`.

    Example: `mmspeech score wer exp/synth-av/decode/*`
    """
    for folder in folders:
        say(f"{folder}: {wer.described(wer.score_folder(folder, seed=seed, resamples=resamples))}")


@app.command("bleu")
def score_bleu(folders: DecodeFolders, seed: Seed = 0, resamples: Resamples = bootstrap.RESAMPLES) -> None:
    """BLEU of decoded translations, counted by sacrebleu, with a 95 % interval.

    Writes score.json into each folder, and does nothing where it is current. Next: `mmspeech score table`.

    Example: `mmspeech score bleu exp/synth-av/decode/test-av-clean`
    """
    for folder in folders:
        bleu_score.score_folder(folder, seed=seed, resamples=resamples)


@app.command("floor")
def score_floor(
    train: Annotated[Path, typer.Argument(help="Transcribed training cuts, from whose texts the answer is chosen.")],
    test: Annotated[Path, typer.Argument(help="Test cuts, on which it is scored.")],
    out: Annotated[Path, typer.Argument(help="Folder to write, e.g. exp/floor.")],
    set_name: Annotated[str | None, typer.Option("--set", help="Name of the test set; default: from its file.")] = None,
    seed: Seed = 0,
    resamples: Resamples = bootstrap.RESAMPLES,
) -> None:
    """What a model without any input reaches: the word error rate of the best constant answer.

    The answer is the string of words that has the fewest errors on the training texts: the best of the transcripts
    seen there and of strings of their most frequent words, improved word by word. Writes score.json with the label
    "floor (no input)"; in a table it stands in every column.

    Example: `mmspeech score floor exp/data/cuts_trainval.jsonl.gz exp/data/cuts_test.jsonl.gz exp/floor`
    """
    name = set_name or test.name.split(".")[0].removeprefix("cuts_")
    stage = files.Stage(out, [train, test], {"seed": seed, "resamples": resamples, "set": name})
    if not stage.is_current():
        known = list(transcripts(train))
        if not known:
            raise UserError(f"{train}: no cut has a transcript; give transcribed training cuts")
        answer = floor.best_constant(known, seed=seed)
        references = list(transcripts(test))
        if not references:
            raise UserError(f"{test}: no cut has a transcript; give a transcribed test set")
        counts = [wer.count(wer.words_of(text), wer.words_of(answer)) for text in references]
        score = wer.summary(references, [answer] * len(references), counts, seed=seed, resamples=resamples)
        about = {"label": floor.LABEL, "set": name, "modality": table.ANY, "noise": table.ANY, "answer": answer}
        with stage.writing() as folder:
            files.write_json(folder / "score.json", about | score)
    score = json.loads((out / "score.json").read_text(encoding="utf-8"))
    say(f"{out}: always answering `{score['answer']}` has a WER of {score['wer']:.1f} % on {name}")


@app.command("table")
def score_table(
    experiments: Experiments,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: report/ in the first EXPERIMENT.")] = None,
) -> None:
    """Collect all score.json files below the folders into one table: systems down, streams and noise across.

    Prints it, and writes table.md and table.tsv. The hash over a noisy column says which noise was added.

    Example: `mmspeech score table exp/synth-av exp/synth-av-scratch exp/floor`
    """
    out = out or experiments[0] / "report"
    show(table.write(table.collect(experiments), out))
    say(f"{out / 'table.md'}, {out / 'table.tsv'}")


@app.command("report")
def score_report(
    experiments: Experiments,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: report/ in the first EXPERIMENT.")] = None,
    cuts: Annotated[Path | None, typer.Option(help="Test cuts with mouth tracks, for the pictures.")] = None,
    clips: Annotated[int, typer.Option(min=0, help="How many clips to show.")] = 6,
    seed: Annotated[int, typer.Option(help="Fixes the choice of clips.")] = 0,
) -> None:
    """Score what is not scored yet, print the table, and write a page with tables, curves and a few clips.

    The page, report/index.html, is one file without scripts. Curves come from every metrics.jsonl below the folders.

    Example: `mmspeech score report exp --cuts exp/mouth/cuts_test.jsonl.gz`
    """
    out = out or experiments[0] / "report"
    for folder in sorted({path.parent for one in experiments for path in table.visible(one, "hyp.jsonl")}):
        if not (folder / "ref.jsonl").exists() or not wer.read_texts(folder / "ref.jsonl"):
            say(f"{folder}: decoded without transcripts, so there is nothing to score")
        elif not (folder / "score.json").exists():
            wer.score_folder(folder)
    scores = table.collect(experiments)
    made = table.write(scores, out)
    chosen = report.pick_clips(scores, clips, seed=seed)
    if cuts is not None and chosen:
        report.fill_strips(chosen, mouth_frames(cuts, {clip.id for clip in chosen}))
    path = report.write(experiments, scores, chosen, out)
    show(made)
    say(f"report: {path.resolve()}")


def show(made: list[table.Table]) -> None:
    """Print tables on stdout, with the warnings beside them."""
    console = Console(highlight=False)
    if not console.is_terminal:  # a log has no width to keep to
        console = Console(highlight=False, width=200)
    for one in table.shown(made):
        whole = table.printed(one)
        wide = console.options.update(max_width=10_000)  # else a table's measure never exceeds the console
        fits = console.measure(whole, options=wide).maximum <= console.width
        for part in [whole] if fits else [table.printed(part) for part in table.by_modality(one)]:
            console.print(part)
    for line in table.warnings(made):
        say(f"warning: {line}")


def transcripts(cuts: Path) -> Iterable[str]:
    """The transcripts of a file of cuts, as recognizers write them; cuts without one are passed over.

    Read as plain JSON: lhotse need not be imported, which takes longer than the work.
    """
    try:
        with gzip.open(cuts, "rt", encoding="utf-8") as file:
            for line in file:
                for supervision in json.loads(line).get("supervisions") or ():
                    if supervision.get("text"):
                        yield normalise(supervision["text"])
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{cuts}: expected gzipped JSON lines of cuts ({error}); write it again") from None


def mouth_frames(cuts: Path, ids: set[str]) -> dict[str, np.ndarray]:
    """The mouth frames (T, H, W) of those of the named cuts that have a track."""
    from mmspeech.data import cutfiles, video  # imported here: they bring lhotse and torch, which scoring does not need

    frames = {}
    for cut in cutfiles.open_cuts(cuts):
        if cut.id in ids and cut.has_custom("mouth"):
            frames[cut.id] = video.read_mouth(cut)
    if not frames:
        say(f"{cuts}: none of the clips shown has a mouth track in there; the report shows texts only")
    return frames
