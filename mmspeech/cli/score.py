"""`mmspeech score`: error rates of decoded sets, the floor, tables, and the report."""

import dataclasses
import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from rich.console import Console

from mmspeech import files
from mmspeech.cli import score_modalities
from mmspeech.console import say
from mmspeech.data.text import TRANSCRIPT, check_target, normalise
from mmspeech.errors import BadItem, UserError
from mmspeech.plan import load_row
from mmspeech.scoring import against as beside_paper
from mmspeech.scoring import bleu as bleu_score
from mmspeech.scoring import bootstrap, codebooks, floor, noise_table, report, table, wer
from mmspeech.scoring import compare as comparing

app = typer.Typer()
app.command("modalities")(score_modalities.run)

DecodeFolders = Annotated[list[Path], typer.Argument(help="Folders that `mmspeech decode` wrote.")]
Experiments = Annotated[list[Path], typer.Argument(help="Folders of experiments; everything below is found.")]
Against = Annotated[
    list[Path] | None, typer.Option(help="Row of a paper's table, conf/*/rows/*.yaml, to print beside. Repeatable.")
]
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
    train: Annotated[Path, typer.Argument(help="Training cuts, from whose texts the answer is chosen.")],
    test: Annotated[Path, typer.Argument(help="Test cuts, on which it is scored.")],
    out: Annotated[Path, typer.Argument(help="Folder to write, e.g. exp/floor.")],
    set_name: Annotated[str | None, typer.Option("--set", help="Name of the test set; default: from its file.")] = None,
    text: Annotated[str, typer.Option(help="Which texts: transcript, or translation.LANGUAGE.")] = TRANSCRIPT,
    seed: Seed = 0,
    resamples: Resamples = bootstrap.RESAMPLES,
) -> None:
    """What a model without any input reaches: the word error rate, or BLEU, of the best constant answer.

    The answer is the string of words that has the fewest errors on the training texts: the best of the transcripts
    seen there and of strings of their most frequent words, improved word by word. Of translations it is the one with
    the highest BLEU on them. Writes score.json with the label "floor (no input)"; in a table it stands in every column.

    Example: `mmspeech score floor exp/data/cuts_trainval.jsonl.gz exp/data/cuts_test.jsonl.gz exp/floor`
    """
    check_target(text)
    name = set_name or test.name.split(".")[0].removeprefix("cuts_")
    stage = files.Stage(out, [train, test], {"seed": seed, "resamples": resamples, "set": name, "text": text})
    if not stage.is_current():
        known, references = (list(texts_of(path, text)) for path in (train, test))
        for path, texts in ((train, known), (test, references)):
            if not texts:
                raise UserError(f"{path}: no cut has a {text}; give cuts that have one")
        answer = floor.best_constant(known, metric=metric_of(text), seed=seed)
        answers = [answer] * len(references)
        if metric_of(text) == "bleu":
            score = bleu_score.summary(references, answers, seed=seed, resamples=resamples)
        else:
            counts = [wer.count(wer.words_of(said), wer.words_of(answer)) for said in references]
            score = wer.summary(references, answers, counts, seed=seed, resamples=resamples)
        about = {"label": floor.LABEL, "set": name, "modality": table.ANY, "noise": table.ANY, "answer": answer}
        with stage.writing() as folder:
            files.write_json(folder / "score.json", about | score)
    score = json.loads((out / "score.json").read_text(encoding="utf-8"))
    value = f"{score['bleu']:.1f} BLEU" if score["metric"] == "bleu" else f"a WER of {score['wer']:.1f} %"
    say(f"{out}: always answering `{score['answer']}` has {value} on {name}")


@app.command("compare")
def score_compare(
    a: Annotated[Path, typer.Argument(help="Folder that `mmspeech decode` wrote.")],
    b: Annotated[Path, typer.Argument(help="Another system's, of the same cuts and noise.")],
    metric: Annotated[str | None, typer.Option(help="wer or bleu; default: what they were scored by.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the comparison as JSON to this file, too.")] = None,
    seed: Seed = 0,
    resamples: Resamples = bootstrap.RESAMPLES,
) -> None:
    """Whether two systems differ: B minus A with a 95 % interval and a p-value, from paired resamples of utterances.

    Refuses other utterances, other references, other noise. What hears no noise (lips alone) goes with any.

    Example: `mmspeech score compare exp/ours/decode/test-av-clean exp/theirs/decode/test-av-clean`
    """
    found = comparing.compare(a, b, metric, seed=seed, resamples=resamples)
    unit = "BLEU" if found.metric == "bleu" else "% WER"
    say(f"{found.set}, {found.condition}: {found.sentences} utterances")
    say(f"A: {found.a}: {found.score_a:.2f} {unit}")
    say(f"B: {found.b}: {found.score_b:.2f} {unit}")
    say(f"B - A: {found.line} ({found.interval})")
    print(json.dumps(dataclasses.asdict(found)))
    if out is not None:
        files.write_json(out, dataclasses.asdict(found))


@app.command("codebooks")
def score_codebooks(
    encoder: Annotated[Path, typer.Argument(help="`encoder` folder of a pre-training run.")],
    cuts: Annotated[list[Path], typer.Argument(help="Cuts with phone alignments and all streams, e.g. cuts_valid.")],
    out: Annotated[Path, typer.Argument(help="Folder to write, e.g. exp/codebooks.")],
    learn_from: Annotated[
        list[Path] | None, typer.Option(help="Cuts that the codebooks are learnt from; default: CUTS. Repeatable.")
    ] = None,
    clusters: Annotated[int, typer.Option(min=2, help="Size of each codebook.")] = 100,
    layer: Annotated[int | None, typer.Option(help="Of the encoder: k for block k; default: the last.")] = None,
    points: Annotated[int, typer.Option(min=2, help="Frames that t-SNE shows under each input.")] = 500,
    label: Annotated[str, typer.Option(help="Name of the model in tables; by default the encoder's experiment.")] = "",
    seed: Annotated[int, typer.Option(help="Fixes codebooks, resamples, and the frames that t-SNE shows.")] = 0,
    starts: Annotated[int, typer.Option(min=1, help="Choices of first centres; the best is kept.")] = 20,
    resamples: Annotated[int, typer.Option(min=200, help="Of the utterances, for the intervals.")] = 1000,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default the GPU if there is one.")] = None,
    batch_seconds: Annotated[float, typer.Option(min=1.0, help="Speech in one batch, padding included.")] = 120.0,
    jobs: Annotated[int, typer.Option(min=1, help="Threads that read ahead.")] = 2,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first cut that cannot be used.")] = False,
    against: Annotated[
        Path | None, typer.Option(help="Row file with a paper's PNMI, rows/table1-*.yaml, to print beside.")
    ] = None,
) -> None:
    """PNMI of every input's features under every codebook, and their t-SNE (u-HuBERT, Table 1 and Figure 3).

    The encoder gets all its streams, and each alone; a codebook is learnt from each kind of features and from all
    together; each quantises each. OUT receives codebooks.json .md .tsv .png, tsne.json .png, and rejected.jsonl;
    `mmspeech score report` shows them. The frames lie on disk meanwhile. Does nothing if OUT is current.

    Example: `mmspeech score codebooks exp/iter2/encoder exp/mouth/cuts_valid.jsonl.gz exp/codebooks --clusters 200`
    """
    import shutil

    from mmspeech import dist  # torch and lhotse, which other scores do not need
    from mmspeech.cli import score_codebooks as work
    from mmspeech.models.av_encoder import load_encoder

    learn, row = learn_from or cuts, load_row(against) if against else None
    if row and not row.pnmi:
        raise UserError(f"{against}: has no PNMI; give rows/table1-drop.yaml or rows/table1-plain.yaml")
    settings: dict[str, object] = {
        "clusters": clusters,
        "layer": layer,
        "points": points,
        "seed": seed,
        "starts": starts,
    }
    settings |= {"resamples": resamples, "label": label, "learn_from": sorted(map(files.digest, learn))}
    weights = [encoder / "encoder.safetensors", encoder / "config.yaml"]
    model = load_encoder(encoder)
    rows = [against] if against else []
    stage = files.Stage(out, list(dict.fromkeys([*cuts, *learn, *weights, *rows])), settings)
    if not stage.is_current():
        place = dist.start(device)
        subsets = work.subsets_of(model)
        layer = model.config.num_layers if layer is None else layer
        about = {"label": label or encoder.resolve().parent.name, "encoder": str(encoder), "layer": layer}
        about |= {"clusters": clusters, "seed": seed, "resamples": resamples, "cuts": ", ".join(map(str, cuts))}
        with stage.writing() as folder, files.Rejects(folder / "rejected.jsonl", strict) as rejects:
            rejects.path = out / "rejected.jsonl"  # where it will be found
            frames = folder / "frames"
            frames.mkdir()
            how: dict[str, Any] = {"device": place, "batch_s": batch_seconds, "jobs": jobs}
            measured = work.store_frames(cuts, model, layer, subsets, frames, "cuts", rejects, **how)
            learnt = measured
            if learn != cuts:
                learnt = work.store_frames(learn, model, layer, subsets, frames, "learn", rejects, **how)
            books = work.learn(learnt, subsets, clusters, seed=seed, starts=starts)
            found, resampled = work.measure(measured, books, subsets, place, about)
            codebooks.save(found, resampled, folder, row)
            drawn = work.draw_frames(work.aligned(measured, subsets), points, seed=seed)
            codebooks.save_points(work.project(drawn, subsets, seed=seed), found.label, folder)
            shutil.rmtree(frames)
    found = codebooks.load(out / "codebooks.json")
    terminal().print(codebooks.printed(codebooks.against(found, row) if row else [found]))
    say(f"{out / 'codebooks.md'}, {out / 'codebooks.png'}, {out / 'tsne.png'}")


@app.command("table")
def score_table(
    experiments: Experiments,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: report/ in the first EXPERIMENT.")] = None,
    against: Against = None,
) -> None:
    """Collect all score.json files below the folders into one table: systems down, streams and noise across.

    Prints it, and writes table.md and table.tsv. The hash over a noisy column says which noise was added. With
    --against also a paper's figures, ours and the differences, as against.md and against.tsv; where corpus or hours of
    labels are others than the paper's, the condition is named and nothing is subtracted.

    Example: `mmspeech score table exp/synth-av exp/synth-av-scratch exp/floor`

    Example: `mmspeech score table exp --against recipes/lrs3/conf/uhubert/rows/table2-drop-av-drop.yaml`
    """
    out = out or experiments[0] / "report"
    rows = [load_row(path) for path in against or ()]
    scores = table.collect(experiments)
    compared = [beside_paper.beside(row, scores) for row in rows]  # before anything is written: a row may not fit
    show(table.write(scores, out))
    say(f"{out / 'table.md'}, {out / 'table.tsv'}")
    write_against(compared, out)


@app.command("noise")
def score_noise(
    experiments: Experiments,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: report/ in the first EXPERIMENT.")] = None,
) -> None:
    """Error rates in noise as VATLM's Table IV has them: systems and inputs down, noises and SNRs across, averages.

    Scores what is not scored yet below the folders; prints the table and writes noise.md and noise.tsv.

    Run before: `mmspeech decode --noise-grid`.

    Example: `mmspeech score noise exp/av`
    """
    out = out or experiments[0] / "report"
    score_the_rest(experiments)
    scores = table.collect(experiments)
    console = terminal()
    for grid in noise_table.write(scores, out):
        whole = noise_table.printed(grid)
        fits = console.measure(whole, options=console.options.update(max_width=10_000)).maximum <= console.width
        for part in [whole] if fits else map(noise_table.printed, noise_table.by_kind(grid)):
            console.print(part)
    for line in table.warnings(table.tables(scores)):
        say(f"warning: {line}")
    say(f"{out / 'noise.md'}, {out / 'noise.tsv'}")


@app.command("report")
def score_report(
    experiments: Experiments,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: report/ in the first EXPERIMENT.")] = None,
    cuts: Annotated[Path | None, typer.Option(help="Test cuts with mouth tracks, for the pictures.")] = None,
    clips: Annotated[int, typer.Option(min=0, help="How many clips to show.")] = 6,
    seed: Annotated[int, typer.Option(help="Fixes the choice of clips.")] = 0,
    against: Against = None,
) -> None:
    """Score what is not scored yet, print the table, and write a page with tables, curves and a few clips.

    Of what was decoded in several noises the page has VATLM's Table IV and the rates over the SNR.

    The page, report/index.html, is one file without scripts. Curves come from every metrics.jsonl below the folders,
    PNMI and t-SNE from every codebooks.json (`mmspeech score codebooks`).

    Example: `mmspeech score report exp --cuts exp/mouth/cuts_test.jsonl.gz`
    """
    out = out or experiments[0] / "report"
    rows = [load_row(path) for path in against or ()]
    score_the_rest(experiments)
    scores = table.collect(experiments)
    compared = [beside_paper.beside(row, scores) for row in rows]
    made = table.write(scores, out)
    chosen = report.pick_clips(scores, clips, seed=seed)
    if cuts is not None and chosen:
        report.fill_strips(chosen, mouth_frames(cuts, {clip.id for clip in chosen}))
    show(made)
    write_against(compared, out)
    path = report.write(experiments, scores, chosen, out, compared)
    say(f"report: {path.resolve()}")


def score_the_rest(experiments: Iterable[Path]) -> None:
    """Score what was decoded below the folders and is not scored yet."""
    for folder in sorted({path.parent for one in experiments for path in table.visible(one, "hyp.jsonl")}):
        if not (folder / "ref.jsonl").exists() or not wer.read_texts(folder / "ref.jsonl"):
            say(f"{folder}: decoded without transcripts, so there is nothing to score")
        elif not (folder / "score.json").exists():
            (bleu_score if metric_of(text_of(folder)) == "bleu" else wer).score_folder(folder)


def write_against(several: list[beside_paper.Beside], out: Path) -> None:
    """Our systems beside the papers' rows: written and printed."""
    if several:
        beside_paper.write(several, out)
        for one in several:
            terminal().print(beside_paper.printed(one))
        say(f"{out / 'against.md'}, {out / 'against.tsv'}")


def terminal() -> Console:
    """Where tables are printed: stdout."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)  # a log has no width to keep to


def show(made: list[table.Table]) -> None:
    """Print tables on stdout, with the warnings beside them."""
    console = terminal()
    for one in table.shown(made):
        whole = table.printed(one)
        wide = console.options.update(max_width=10_000)  # else a table's measure never exceeds the console
        fits = console.measure(whole, options=wide).maximum <= console.width
        for part in [whole] if fits else [table.printed(part) for part in table.by_modality(one)]:
            console.print(part)
    for line in table.warnings(made):
        say(f"warning: {line}")


def text_of(folder: Path) -> str:
    """What a decode folder's texts are: transcript, or translation.LANGUAGE."""
    try:
        return str(json.loads((folder / "decode.json").read_text(encoding="utf-8")).get("text", TRANSCRIPT))
    except (OSError, ValueError):
        return TRANSCRIPT  # whoever scores it says what is wrong with the file


def metric_of(text: str) -> Literal["wer", "bleu"]:
    """How a text is scored: transcripts by word errors, translations by BLEU."""
    return "bleu" if text.startswith("translation.") else "wer"


def texts_of(cuts: Path, text: str) -> Iterable[str]:
    """The transcripts, or translations, of a file of cuts, as models write them; cuts without are passed over.

    Read as plain JSON: lhotse need not be imported, which takes longer than the work.
    """
    language = text.partition(".")[2]
    try:
        with gzip.open(cuts, "rt", encoding="utf-8") as file:
            for line in file:
                for supervision in json.loads(line).get("supervisions") or ():
                    told = supervision.get("text")
                    if language:
                        told = ((supervision.get("custom") or {}).get("translation") or {}).get(language)
                    if told:
                        yield normalise(told)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{cuts}: expected gzipped JSON lines of cuts ({error}); write it again") from None


def mouth_frames(cuts: Path, ids: set[str]) -> dict[str, np.ndarray]:
    """The mouth frames (T, H, W) of those of the named cuts that have a track."""
    from mmspeech.data import cutfiles, video  # imported here: they bring lhotse and torch, which scoring does not need

    frames = {}
    for cut in cutfiles.open_cuts(cuts):
        if cut.id in ids and cut.has_custom("mouth"):
            try:
                frames[cut.id] = video.read_mouth(cut)
            except BadItem as error:
                say(f"no picture: {error}")
    if not frames:
        say(f"{cuts}: none of the clips shown has a mouth track in there; the report shows texts only")
    return frames
