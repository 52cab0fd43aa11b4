"""`mmspeech decode`: a recognizer and cuts -> hypotheses, for any streams and noise."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer

from mmspeech import config as configs
from mmspeech import dist, files
from mmspeech.cli.cluster import check_strict
from mmspeech.console import progress, say
from mmspeech.data import cutfiles
from mmspeech.data.frozen_noise import FrozenNoise
from mmspeech.data.loader import CutDataset, DataConfig, Validation
from mmspeech.data.noise import parse_kind
from mmspeech.data.reading import FRAMES_PER_S, Reading, has_stream, named_streams
from mmspeech.data.text import Tokenizer, normalise
from mmspeech.decoding.beam import BeamConfig
from mmspeech.errors import UserError
from mmspeech.finetuning import recognizer
from mmspeech.finetuning.ctc import CTCSearchConfig
from mmspeech.scoring import table

SEARCHES = {"seq2seq": BeamConfig, "ctc": CTCSearchConfig}


def run(
    model: Annotated[Path, typer.Argument(help="Folder of the recognizer, e.g. exp/av/model.")],
    cuts: Annotated[Path, typer.Argument(help="Cuts to decode, e.g. exp/mouth/cuts_test.jsonl.gz.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; gets one folder per condition.")],
    modality: Annotated[
        str, typer.Option(help="Streams the model gets: av, a, v, or names as in audio+video; several with commas.")
    ] = "av",
    noise: Annotated[
        str, typer.Option(help="clean, or CATEGORY:DECIBELS as in babble:0; several with commas.")
    ] = "clean",
    noise_sets: Annotated[
        Path | None, typer.Option(help="Frozen noise, as written by `mmspeech prepare noisy`.")
    ] = None,
    search: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the search: --set beam=20 --set length_penalty=0.")
    ] = None,
    batch_s: Annotated[float, typer.Option(help="Seconds of speech, padding included, decoded at once.")] = 120.0,
    workers: Annotated[int, typer.Option(help="Processes that read cuts.")] = 1,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default the GPU if there is one.")] = None,
    label: Annotated[str, typer.Option(help="Name of the system in tables; by default the model's folder.")] = "",
    strict: Annotated[bool, typer.Option("--strict", help="Stop, and write nothing, if a cut cannot be read.")] = False,
) -> None:
    """Decode cuts under every combination of streams and noise.

    OUT/SET-STREAMS-NOISE/ receives hyp.jsonl, ref.jsonl, decode.json, and rejected.jsonl with the cuts that could not
    be read; then `mmspeech score wer` or `score report`. Noise falls on sound: lips alone are decoded once, clean,
    whatever --noise says. A condition with a stream that no cut has is skipped, with a line. What is current is not
    decoded again.

    OUT holds one model with one search: give another OUT for another beam.

    Example: mmspeech decode exp/synth-av/model exp/mouth/cuts_test.jsonl.gz exp/decode-beam5 --set beam=5 --modality
    av,a,v --noise clean,babble:0 --noise-sets exp/noisy
    """
    where = dist.start(device)
    loaded = recognizer.load(model, where)
    tokenizer = Tokenizer.load(model)
    given = configs.build(configs.tree_of(search or []), SEARCHES[loaded.task], Path("--set"))
    for condition in possible(list(conditions(loaded, modality, noise, cuts, noise_sets)), loaded, cuts):
        folder = out / condition.name
        inputs = [model, cuts, *([condition.noise_file] if condition.noise_file else [])]
        settings = {"search": configs.plain(given), "streams": condition.streams, "label": label}
        stage = files.Stage(folder, inputs=inputs, settings=settings)
        if stage.is_current():
            check_strict(folder, strict)
            continue
        frozen = FrozenNoise(condition.noise_file) if condition.noise_file else None
        lines, bad, seconds, audio_seconds = decode(
            loaded, tokenizer, cuts, condition, frozen, given, batch_s, workers, where
        )
        if strict and bad:
            raise UserError(f"{condition.name}: {len(bad)} cut(s) could not be read, as {bad[0]} (--strict stops here)")
        if not dist.is_first():
            continue
        if not lines:
            raise UserError(f"{cuts}: no cut could be decoded as {condition.name}; see the reasons above")
        with stage.writing() as new:
            # A reason begins with the cut, or with the file that could not be read.
            write_lines(new / "rejected.jsonl", [{"item": why.partition(": ")[0], "reason": why} for why in bad])
            write_lines(new / "hyp.jsonl", [{key: line[key] for key in ("id", "text", "score")} for line in lines])
            write_lines(new / "ref.jsonl", [{"id": line["id"], "text": line["ref"]} for line in lines if line["ref"]])
            facts = {
                "set": condition.set,
                "modality": condition.modality,
                "noise": condition.noise,
                "noise_hash": frozen.sha256 if frozen else None,
                "hears_noise": condition.hears_noise,
                "text": loaded.text,
                "set_aside": len(bad),
                "model": str(model),
                "search": configs.plain(given),
                "seconds": round(seconds, 3),
                "audio_seconds": round(audio_seconds, 3),
                "label": label or model.parent.name,
            }
            files.write_json(new / "decode.json", facts)
        what = f", noise {table.hash_mark(frozen.sha256)}" if frozen else ""
        say(f"{folder}: {len(lines)} utterances{what}, {seconds / max(audio_seconds, 1e-9):.3f} x real time")
        if bad:
            say(f"{folder}: {len(bad)} cut(s) set aside and in no error rate; reasons in {folder / 'rejected.jsonl'}")


@dataclass(frozen=True)
class Condition:
    """One way to decode a set."""

    set: str
    modality: str  # as typed
    streams: list[str]
    noise: str  # clean or CATEGORY:DECIBELS
    noise_file: Path | None
    hears_noise: bool  # whether noise changes any of its streams

    @property
    def name(self) -> str:
        """The folder's name."""
        kind = "clean" if self.noise_file is None else self.noise_file.stem
        return f"{self.set}-{self.modality}-{kind}"


def conditions(
    model: recognizer.Recognizer, modality: str, noise: str, cuts: Path, noise_sets: Path | None
) -> Iterator[Condition]:
    """Every combination that makes sense. Raises UserError for streams or noise that are not there."""
    name = cuts.name.removesuffix(".gz").removesuffix(".jsonl").removeprefix("cuts_")
    kinds = list(dict.fromkeys(noise.split(",")))
    file_names = {kind: parse_kind(kind).file_name for kind in kinds if kind != "clean"}
    for typed in dict.fromkeys(modality.split(",")):
        streams = named_streams(typed, model.inputs, "--modality")
        heard = any(model.inputs[stream]["reader"] == "logmel" for stream in streams)
        if not heard and "clean" not in kinds:
            say(f"{name}-{typed}-clean: decoded in place of {noise}, because {typed} hears no noise")
        for kind in kinds if heard else ["clean"]:
            if kind == "clean":
                yield Condition(name, typed, streams, kind, None, heard)
            else:
                file_name = file_names[kind]
                if noise_sets is None or not (noise_sets / file_name).exists():
                    raise UserError(
                        f"--noise {kind}: no frozen noise {file_name} in {noise_sets or '--noise-sets'}; make it with "
                        f"`mmspeech prepare noisy {cuts} NOISE_DIR DIR --noise {kind}`"
                    )
                yield Condition(name, typed, streams, kind, noise_sets / file_name, heard)


def possible(wanted: list[Condition], model: recognizer.Recognizer, cuts: Path) -> list[Condition]:
    """Those whose streams some cut has; a line for each other one. Raises UserError if none is left."""
    missing = dict(model.inputs)
    for cut in cutfiles.open_cuts(cuts):
        missing = {name: settings for name, settings in missing.items() if not has_stream(cut, settings)}
        if not missing:
            return wanted
    left = [condition for condition in wanted if not set(condition.streams) & missing.keys()]
    if not left:
        there = " or ".join(name for name in model.inputs if name not in missing)
        advice = f"decode {there} alone with --modality" if there else "give cuts that have some"
        raise UserError(f"{cuts}: no cut has {' or '.join(missing)}; {advice}")
    for condition in wanted:
        if condition not in left:
            lacking = " or ".join(name for name in condition.streams if name in missing)
            say(f"{condition.name}: skipped, no cut in {cuts} has {lacking}")
    return left


class Output(NamedTuple):
    """What a condition gave."""

    lines: list[dict]  # {id, text, score, ref}, in the order of the ids
    bad: list[str]  # reasons, one per cut that could not be read
    seconds: float  # of decoding
    audio_seconds: float  # of speech


def decode(
    model: recognizer.Recognizer,
    tokenizer: Tokenizer,
    cuts: Path,
    condition: Condition,
    frozen: FrozenNoise | None,
    search: BeamConfig | CTCSearchConfig,
    batch_s: float,
    workers: int,
    device: torch.device,
) -> Output:
    """Decode one condition; every rank gets what all of them decoded."""
    streams = {name: model.inputs[name] for name in condition.streams}
    config = DataConfig(valid_cuts=[cuts], streams=streams, batch_s=batch_s, max_batch_s=batch_s, workers=workers)
    reading = Reading(streams=streams, text=model.text, mix_noise=frozen)
    batches = Validation(config, CutDataset(reading), "main")
    lines, seconds, frames = [], 0.0, 0
    for _, batch in progress(batches, condition.name):
        start = time.perf_counter()
        hypotheses = model.objective.generate(batch.to(device), search)
        seconds += time.perf_counter() - start
        frames += int(batch.frames.sum())
        for name, ref, best in zip(batch.ids, batch.texts, hypotheses, strict=True):
            text = tokenizer.decode(best[0].ids) if best else ""
            lines.append({"id": name, "text": text, "score": best[0].score if best else None})
            lines[-1]["ref"] = normalise(ref)  # hypotheses are written so
    gathered = dist.gather_on_host(Output(lines, batches.bad, seconds, frames / FRAMES_PER_S))
    return Output(
        lines=sorted((line for theirs in gathered for line in theirs.lines), key=lambda line: line["id"]),
        bad=sorted(why for theirs in gathered for why in theirs.bad),
        seconds=max(theirs.seconds for theirs in gathered),
        audio_seconds=sum(theirs.audio_seconds for theirs in gathered),
    )


def write_lines(path: Path, lines: list[dict]) -> None:
    """JSON lines, in a folder that appears as a whole."""
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
