"""Decoding in parts, so that a stopped run goes on: what a rank has decoded is on disk within a minute.

cuts -> numbered batches, the same for any number of ranks -> those that are in no part yet, dealt over the ranks
     -> encoded once, searched by each search -> a part per rank and minute -> all parts, sorted, by the first rank
"""

import contextlib
import json
import shutil
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from mmspeech import dist, files
from mmspeech.batch import Batch
from mmspeech.console import progress, say
from mmspeech.data.frozen_noise import FrozenNoise
from mmspeech.data.loader import CutDataset, DataConfig, Validation
from mmspeech.data.reading import FRAMES_PER_S, Reading
from mmspeech.data.text import Tokenizer
from mmspeech.decoding.beam import BeamConfig
from mmspeech.decoding.hypothesis import Hypothesis
from mmspeech.errors import UserError
from mmspeech.finetuning import recognizer
from mmspeech.finetuning.ctc import CTCSearchConfig

PART_S = 60.0  # seconds of work that a killed rank may lose


class Output(NamedTuple):
    """What one search of a condition gave."""

    lines: list[dict]  # {id, text, score, confidence, ref} and, if asked for, nbest, in the order of the ids
    bad: list[str]  # reasons, one per cut that could not be read
    seconds: float  # of decoding, as if this had been the only search
    encoding_seconds: float  # of these, what all searches share
    audio_seconds: float  # of speech


@dataclass(kw_only=True)
class Part:
    """What a rank decoded between two looks at the clock; a file of this appears as a whole."""

    rank: int
    lines: list[list[dict]]  # of each search
    seconds: list[float]  # that each search took
    encoding_seconds: float = 0.0
    frames: int = 0
    batches: list[int] = field(default_factory=list)  # their numbers
    bad: list[str] = field(default_factory=list)

    @classmethod
    def empty(cls, searches: int) -> "Part":
        """One that nothing was decoded for yet."""
        return cls(rank=dist.rank(), lines=[[] for _ in range(searches)], seconds=[0.0] * searches)

    def write(self, folder: Path) -> str:
        """Returns the file's name, which no other part has: its batches are its own."""
        name = f"part-{self.batches[0]:08d}.json"
        with files.replacing(folder / name) as temporary:
            temporary.write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")
        return name


def read_part(path: Path) -> Part:
    """What `Part.write` wrote."""
    return Part(**json.loads(path.read_text(encoding="utf-8")))


def decode(
    model: recognizer.Recognizer,
    tokenizer: Tokenizer,
    cuts: Path,
    streams: Sequence[str],
    frozen: FrozenNoise | None,
    searches: Sequence[BeamConfig | CTCSearchConfig],
    parts: files.Stage,
    *,
    title: str,
    batch_s: float,
    workers: int,
    device: torch.device,
    strict: bool = False,
) -> list[Output]:
    """Decode cuts with some streams by each of the searches, encoded once; the first rank gets all, the others nothing.

    Args:
        parts: a folder for parts; what a stopped run of the same left there is not decoded again. Whoever has written
            the outputs discards it.

    Raises UserError if a cut cannot be read and `strict` is set; a rank then ends at its first one.
    """
    inputs = {name: model.inputs[name] for name in streams}
    config = DataConfig(valid_cuts=[cuts], streams=inputs, batch_s=batch_s, max_batch_s=batch_s, workers=workers)
    batches = Validation(config, CutDataset(Reading(streams=inputs, text=model.text, mix_noise=frozen)), "main")
    before = begun(parts)
    if before.batches:
        say(f"{title}: {len(before.batches)} batches are decoded already; going on")
    written: list[str] = []
    try:
        for part in decoded_parts(model, tokenizer, batches, before.batches, searches, title, device, strict):
            written.append(part.write(parts.output))
    except BaseException:
        if not any(parts.output.glob("part-*.json")):  # a setting that the model does not know
            discard(parts)
        raise
    everyone = dist.gather_on_host((written, batches.bad))
    bad = sorted([*before.bad, *(why for _, theirs in everyone for why in theirs)])
    if strict and bad:
        discard(parts)
        raise UserError(f"{title}: {len(bad)} cut(s) could not be read, as {bad[0]} (--strict stops here)")
    if not dist.is_first():
        return []
    # By name, not from a listing: a network's file system may show the first rank late what others have written.
    names = [*before.names, *(name for theirs, _ in everyone for name in theirs)]
    return merged((read_part(parts.output / name) for name in names), len(searches))


class Begun(NamedTuple):
    """What a stopped run has left."""

    names: list[str]  # of its parts
    batches: set[int]
    bad: list[str]


def begun(parts: files.Stage) -> Begun:
    """Make the folder of parts, or take it up; every rank gets the same. Parts of anything else are removed."""
    found = Begun([], set(), [])
    if dist.is_first():
        with parts.resuming(is_whole=lambda: False):
            for path in sorted(parts.output.glob("part-*.json")):
                part = read_part(path)
                found.names.append(path.name)
                found.batches.update(part.batches)
                found.bad.extend(part.bad)
    return dist.gather_on_host(found)[0]


def discard(parts: files.Stage) -> None:
    """Remove the folder of parts, and the one around it if there is nothing else in it."""
    if dist.is_first():
        shutil.rmtree(parts.output, ignore_errors=True)
        with contextlib.suppress(OSError):
            parts.output.parent.rmdir()


def decoded_parts(
    model: recognizer.Recognizer,
    tokenizer: Tokenizer,
    batches: Validation,
    done: Collection[int],
    searches: Sequence[BeamConfig | CTCSearchConfig],
    title: str,
    device: torch.device,
    strict: bool,
) -> Iterator[Part]:
    """What this rank has to decode; with `strict` up to the first cut that cannot be read."""
    part, began = Part.empty(len(searches)), time.monotonic()
    told: set[str] = set()
    for number, batch in progress(batches.numbered(done), f"{title}, batches"):
        if batch is not None:
            add(part, batch, model, tokenizer, searches, device)
        part.batches.append(number)
        part.bad += [why for why in batches.bad if why not in told]
        told.update(batches.bad)
        if strict and told:
            break
        if time.monotonic() - began >= PART_S:
            yield part
            part, began = Part.empty(len(searches)), time.monotonic()
    if part.batches:
        yield part


def add(
    part: Part,
    batch: Batch,
    model: recognizer.Recognizer,
    tokenizer: Tokenizer,
    searches: Sequence[BeamConfig | CTCSearchConfig],
    device: torch.device,
) -> None:
    """Decode a batch: encoded once, searched by each search, each under the clock."""
    start = time.perf_counter()
    encoded = model.objective.encoded(batch.to(device))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    part.encoding_seconds += time.perf_counter() - start
    part.frames += int(batch.frames.sum())
    for number, search in enumerate(searches):
        start = time.perf_counter()
        found = model.objective.search(encoded, search)  # type: ignore[arg-type]  # of the same task
        part.seconds[number] += time.perf_counter() - start
        for name, ref, hypotheses in zip(batch.ids, batch.texts, found, strict=True):
            part.lines[number].append(line_of(name, ref, hypotheses, tokenizer, search.nbest))


def merged(parts: Iterable[Part], searches: int) -> list[Output]:
    """What all parts hold of each search, as one; ranks work side by side, so the seconds of the slowest count."""
    lines: list[list[dict]] = [[] for _ in range(searches)]
    bad: list[str] = []
    seconds: defaultdict[int, list[float]] = defaultdict(lambda: [0.0] * searches)
    encoding: defaultdict[int, float] = defaultdict(float)
    frames = 0
    for part in parts:
        bad += part.bad
        encoding[part.rank] += part.encoding_seconds
        frames += part.frames
        for number in range(searches):
            lines[number] += part.lines[number]
            seconds[part.rank][number] += part.seconds[number]
    return [
        Output(
            lines=sorted(lines[number], key=lambda line: line["id"]),
            bad=sorted(bad),
            seconds=max((seconds[rank][number] + encoding[rank] for rank in encoding), default=0.0),
            encoding_seconds=max(encoding.values(), default=0.0),
            audio_seconds=frames / FRAMES_PER_S,
        )
        for number in range(searches)
    ]


def line_of(name: str, ref: str, hypotheses: list[Hypothesis], tokenizer: Tokenizer, nbest: int) -> dict:
    """What is written of one cut: its best hypothesis; with `nbest` above 1 all of them, with their tokens' scores."""
    readings = [
        {
            "text": tokenizer.decode(one.ids),
            "score": one.score,
            "tokens": [tokenizer.symbols[token] for token in one.ids],
            "token_scores": one.token_scores,  # of an attention search with that of the end symbol
        }
        for one in hypotheses
    ]
    best = readings[0] if readings else {"text": "", "score": None}
    confidence = hypotheses[0].confidence if hypotheses else None
    # References are normalised as hypotheses are written.
    line = {"id": name, "text": best["text"], "score": best["score"], "confidence": confidence}
    line["ref"] = tokenizer.reference(ref)
    return line | ({"nbest": readings} if nbest > 1 else {})
