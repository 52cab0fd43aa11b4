"""`mmspeech transcribe`: any video or sound file -> its words, as text or subtitles."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from mmspeech import config as configs
from mmspeech import dist, files
from mmspeech.cli.decode import SEARCHES, search_of
from mmspeech.cli.extract_features import wanted_streams
from mmspeech.console import progress, say
from mmspeech.data.one_file import OneFile, open_file
from mmspeech.data.reading import FRAMES_PER_S, collate, named_streams
from mmspeech.data.text import Tokenizer
from mmspeech.decoding import subtitles, windows
from mmspeech.decoding.beam import BeamConfig
from mmspeech.errors import BadItem, UserError
from mmspeech.finetuning import recognizer
from mmspeech.finetuning.ctc import CTCSearchConfig

BATCH_S = 120.0  # of speech decoded at once
MIN_WINDOW_S = 2.0


def run(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE", help="Video or sound: mp4, mkv, wav, flac, m4a ...")],
    model: Annotated[Path, typer.Option(help="Folder of the recognizer, e.g. exp/synth-av/model.")],
    modality: Annotated[
        str, typer.Option(help="auto (what file and model both have), or av, a, v, or names as in audio+video.")
    ] = "auto",
    srt: Annotated[bool, typer.Option("--srt", help="Subtitles instead of text; their times are estimates.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write NAME.txt or NAME.srt of each file to, instead of printing.")
    ] = None,
    landmarks: Annotated[
        Path | None,
        typer.Option(help="Folder with SPLIT/SPEAKER/CLIP.npy, (T, 68, 2) pixels at 25 Hz, instead of the detector."),
    ] = None,
    window: Annotated[
        float, typer.Option(min=MIN_WINDOW_S, help="Longer files are decoded in windows of at most so many seconds.")
    ] = 15.0,
    search: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the search: --set beam=20 --set length_penalty=0.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default the GPU if there is one.")] = None,
) -> None:
    """Write down what is said in video or sound files, without any preparation.

    Prints one line of text per file, with the file's name and a tab before it if there are several; all else goes to
    stderr. The mouth is found and cut out as by `extract mouth`; if no face is found, or MediaPipe is missing, sound
    alone is decoded, and a line says so. Windows overlap by a quarter, and what two of them hear is written once. A
    subtitle's times come from spreading the words of a window over its speech. A file that cannot be read does not
    stop the others, but makes the exit code 2.

    Example: `mmspeech transcribe talk.mp4 --model exp/synth-av/model --srt > talk.srt`
    """
    check_outputs(paths, out, srt)
    if landmarks is not None and not landmarks.is_dir():
        raise UserError(f"{landmarks}: no such folder of landmarks; mend the path, or leave out --landmarks to detect")
    where = dist.start(device)
    loaded, tokenizer = recognizer.load(model, where), Tokenizer.load(model)
    given: Any = search_of(configs.tree_of(search or []), SEARCHES[loaded.task])
    named = None if modality == "auto" else named_streams(modality, loaded.inputs, "--modality")
    inputs = wanted_streams(loaded.objective.encoder, named)
    failed = 0
    for path in paths:
        try:
            with open_file(path, inputs, landmarks) as file:
                if named and file.missing:
                    raise BadItem(f"{path}: {next(iter(file.missing.values()))}; --modality auto takes what there is")
                for line in file.notices():
                    say(line)
                words = transcribe(file, loaded, tokenizer, given, round(window * FRAMES_PER_S), where)
                if not words:  # silence, or a file that was cut off: nothing else would tell
                    say(f"{path}: no word in {file.num_frames / FRAMES_PER_S:.1f} s; is the file whole?")
                text = subtitles.srt(words, file.start_s) if srt else " ".join(word.text for word in words) + "\n"
        except BadItem as error:
            if len(paths) == 1:
                raise
            say(f"set aside: {error}")
            failed += 1
            continue
        if out is not None:
            with files.replacing(output(path, out, srt)) as temporary:
                temporary.write_text(text, encoding="utf-8")
        else:
            print(f"{path}\t{text}" if len(paths) > 1 else text, end="", flush=True)
    if failed:
        raise UserError(f"{failed} of {len(paths)} files could not be transcribed; the lines above say why")


def check_outputs(paths: Sequence[Path], out: Path | None, srt: bool) -> None:
    """Raise UserError if the results of several files would run into each other."""
    if out is None and srt and len(paths) > 1:
        raise UserError(f"--srt: {len(paths)} files make as many files of subtitles; give --out DIR")
    if out is not None and len({output(path, out, srt) for path in paths}) < len(paths):
        raise UserError(f"{out}: two of the files would be written to one place; rename one, or take them in two calls")


def output(path: Path, out: Path, srt: bool) -> Path:
    """Where the result of a file goes."""
    return out / f"{path.stem}{'.srt' if srt else '.txt'}"


def transcribe(
    file: OneFile,
    model: recognizer.Recognizer,
    tokenizer: Tokenizer,
    search: BeamConfig | CTCSearchConfig,
    size: int,
    device: torch.device,
) -> list[windows.Word]:
    """The words of an open file, from windows of at most `size` frames, decoded in batches.

    Raises BadItem if nothing in it can be read: lips alone, and no face for long enough.
    """
    spans = windows.spans(file.num_frames, size, overlap=size // 4)
    seen = [span for span in spans if file.shows_lips(*span)]
    readable = spans if file.recording is not None else seen
    if not readable:
        raise BadItem(f"{file.path}: has no sound, and no face for long enough; give another file")
    if file.mouth is not None and len(seen) < len(spans):
        instead = "only sound is read there" if file.recording is not None else "nothing is read there"
        say(f"{file.path}: hardly a face in {len(spans) - len(seen)} of {len(spans)} windows; {instead}")
    per_batch = max(1, int(BATCH_S * FRAMES_PER_S / size))
    batches: Sequence[Sequence[windows.Span]] = [
        readable[first : first + per_batch] for first in range(0, len(readable), per_batch)
    ]
    words: list[windows.Word] = []
    clock = windows.clock_of(file.speaking)
    before = windows.Span(0, 0)
    for batch in progress(batches, f"{file.path}, batches") if len(batches) > 1 else batches:
        for span, text in zip(batch, _texts(batch, file, model, tokenizer, search, device), strict=True):
            overlap = windows.Span(clock[span.start], max(clock[span.start], clock[before.stop]))
            words = windows.join(words, windows.place(text, clock, span), overlap)
            before = span
    return words


def _texts(
    batch: Sequence[windows.Span],
    file: OneFile,
    model: recognizer.Recognizer,
    tokenizer: Tokenizer,
    search: Any,  # BeamConfig or CTCSearchConfig, as the model's task has it
    device: torch.device,
) -> list[str]:
    items = [item for item in itertools.starmap(file.read, batch) if item is not None]
    hypotheses = model.objective.generate(collate(items, list(file.streams), [0] * len(items)).to(device), search)
    return [tokenizer.decode(best[0].ids) if best else "" for best in hypotheses]
