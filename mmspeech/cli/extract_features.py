"""Frames for clustering, spectral features or a layer of an encoder, or that layer's units at once: streamed to disk in
parts that can be resumed.

    cuts of a part -> batches of similar length -> read (threads) -> compute (device) -> shard, in the order it comes

A part is PART_CUTS cuts: a shard, its cuts, and a record of the cuts set aside, written last. A run that was stopped
goes on with the first part that has no record.
"""

import itertools
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lhotse.array import TemporalArray
from lhotse.cut import Cut
from torch import Tensor

from mmspeech import config as configs
from mmspeech import files
from mmspeech.console import progress, say
from mmspeech.data import audio, cutfiles, sizes, units
from mmspeech.data.reading import Reading, collate, read_item, streams_given
from mmspeech.errors import BadItem, UserError
from mmspeech.models.av_encoder import AVEncoder, check_folder

PART_CUTS = 200
UNKNOWN = -1  # unit of a frame that is not finite
READ_AHEAD = 2  # batches that are being read while one is computed


@dataclass(frozen=True)
class Extractor:
    """How a batch of cuts becomes frames at 25 Hz, and the field of the cut that carries them."""

    read: Callable[[Cut], Any]  # in a thread; raises BadItem
    compute: Callable[[Sequence[Cut], Sequence[Any]], list[np.ndarray]]  # -> (T, C) of each cut, or (T,) units
    uses: Callable[[Cut], list[str]]  # streams of a cut that its frames are made from; none: the cut is passed over
    field: str = units.FEATURES  # also the name of the folder of shards


def spectral(feature: str, device: torch.device) -> Extractor:
    """MFCC (39), or log-mel frames stacked to 25 Hz (fbank26: 104 values, normalised; fbank80: 320)."""

    def compute(cuts: Sequence[Cut], waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        lengths = torch.tensor([len(wave) for wave in waves])
        padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(wave) for wave in waves], batch_first=True)
        return unpad(cuts, *SPECTRAL[feature](padded.to(device), lengths))

    def read(cut: Cut) -> np.ndarray:
        if not cut.has_recording:
            raise BadItem(
                f"{cut.id}: expected sound, found none: {feature} is made of nothing else. Speech without the anchor "
                "modality has no units in the first iteration (u-HuBERT Sec. 3.2); label it with `--encoder`"
            )
        wave = audio.read_audio(cut)
        if len(wave) < audio.WINDOW:
            raise BadItem(f"{cut.id}: {len(wave)} samples, but a frame needs {audio.WINDOW}; leave such cuts out")
        return wave

    return Extractor(read, compute, lambda cut: ["audio"])


SPECTRAL: dict[str, Callable[[Tensor, Tensor], audio.Frames]] = {
    "mfcc": lambda waves, lengths: audio.every_fourth(audio.mfcc(waves, lengths)),
    "fbank26": audio.stacked_log_mel,
    "fbank80": lambda waves, lengths: audio.stack(audio.fbank(waves, lengths)),
}


def from_encoder(
    encoder: AVEncoder,
    layer: int,
    modalities: Sequence[str] | None,
    device: torch.device,
    label: Callable[[Tensor], Tensor] | None = None,
    field: str = units.FEATURES,
) -> Extractor:
    """Raw outputs of block `layer` (0: the fused features), unmasked, in evaluation mode, with the centre crop.

    Args:
        modalities: streams that the encoder gets, of cuts that have all of them; None: whatever a cut has.
        label: (n, D) half-precision frames on the device -> (n,) units, which are stored instead.
    """
    streams = wanted_streams(encoder, modalities)
    check_layers(encoder, [layer])
    encoder = encoder.to(device).eval()
    reading = Reading(streams=streams)

    @torch.inference_mode()
    def compute(cuts: Sequence[Cut], items: Sequence[Any]) -> list[np.ndarray]:
        batch = collate(items, list(streams), [0] * len(items))
        # Lengths stay on the host, where the encoder looks at them.
        inputs = {name: stream.to(device, non_blocking=True) for name, stream in batch.streams.items()}
        encoded = encoder.encode(inputs, batch.lengths, batch.present, layers=(layer,))
        frames = encoded.layers[0].half()  # also for units: the same frames as would be stored
        if label is None:
            return unpad(cuts, frames, encoded.lengths)
        found = label(frames.flatten(0, 1)).view(frames.shape[:2])
        found = found.masked_fill(~frames.isfinite().all(-1), UNKNOWN)
        return unpad(cuts, found.to(torch.int32), encoded.lengths)

    def uses(cut: Cut) -> list[str]:
        there = streams_given(cut, streams)
        if modalities:
            return there if len(there) == len(streams) else []
        return there or list(streams)  # without any it goes on, to be set aside with the reason

    return Extractor(lambda cut: read_item(cut, reading), compute, uses, field)


def described(encoder: Path) -> tuple[dict[str, Any], list[Path]]:
    """How an encoder reads each stream, and the files that make it. Raises UserError if the folder holds none."""
    check_folder(encoder)
    config = encoder / "config.yaml"
    return configs.read(config).get("inputs") or {}, [config, *encoder.glob("*.safetensors")]


def layers_of(typed: str) -> list[int]:
    """`6,9` -> [6, 9]. Raises UserError for anything but numbers."""
    try:
        return [int(number) for number in typed.split(",")]
    except ValueError:
        raise UserError(f"--layer {typed}: expected a number, as in 9, or several, as in 6,9; mend it") from None


def check_layers(encoder: AVEncoder, layers: Sequence[int]) -> None:
    """Raise UserError for a layer that the encoder does not have."""
    for layer in layers:
        if not 0 <= layer <= encoder.config.num_layers:
            blocks = encoder.config.num_layers
            raise UserError(f"--layer {layer}: the encoder has 0 (fused features) to {blocks}; take one")


def wanted_streams(encoder: AVEncoder, modalities: Sequence[str] | None) -> Mapping[str, Mapping[str, Any]]:
    """How the chosen streams of an encoder are read: as in its training; None: of all those that it was trained on.

    Raises UserError for a stream that it lacks, or that no cut of its training had: its front-end knows nothing yet.
    """
    if not encoder.inputs:
        raise UserError("the encoder's config.yaml does not say how its streams are read; add `inputs:` to it")
    for name in modalities or ():
        if name not in encoder.inputs:
            raise UserError(f"--modalities {name}: this encoder reads {', '.join(encoder.inputs)}; take some of these")
        if name not in encoder.trained_on:
            raise UserError(
                f"--modalities {name}: this encoder was trained on {', '.join(encoder.trained_on)} alone; a modality N "
                "hops from the anchor has units from iteration N + 1 on (u-HuBERT Sec. 5), when one that was paired "
                "with it has been trained on"
            )
    return {name: encoder.inputs[name] for name in modalities or encoder.trained_on}


def unpad(cuts: Sequence[Cut], values: Tensor, lengths: Tensor) -> list[np.ndarray]:
    """float16 frames, or units, of each cut, not beyond its end at 25 Hz, as windows may."""
    rows = (values.half() if values.is_floating_point() else values).cpu().numpy()
    counts = lengths.tolist()
    return [row[: min(count, audio.num_frames(cut))] for cut, row, count in zip(cuts, rows, counts, strict=True)]


def is_usable(values: np.ndarray) -> bool:
    """Whether the frames are all finite, or those were that units stand for."""
    return bool(np.isfinite(values).all() and (values.dtype.kind != "i" or (values != UNKNOWN).all()))


class Extracted(NamedTuple):
    """Which cuts of a file have what was extracted, and how many were passed over: they lack a stream named."""

    durations: sizes.Durations  # of those that have it
    lacking: int

    @property
    def written(self) -> int:
        return self.durations.total()


def run(
    stage: files.Stage,
    cuts: Sequence[Path],
    extractor: Extractor,
    streams: Sequence[str],
    *,
    strict: bool,
    batch_s: float,
    jobs: int,
) -> None:
    """Write the output of a stage: every file of cuts, with frames or units.

    Args:
        streams: that a cut must have; for what is said of cuts that lack one.

    Raises:
        UserError: no cut gave frames.
    """
    out, noun = stage.output, "frames" if extractor.field == units.FEATURES else extractor.field
    with stage.resuming(), files.Rejects(out / "rejected.jsonl", strict) as rejects:
        found = [extract(path, out, extractor, rejects, batch_s=batch_s, jobs=jobs) for path in cuts]
        written, lacking = sum(one.written for one in found), sum(one.lacking for one in found)
        if not written:
            why = f"none has {'+'.join(streams)}" if lacking else f"reasons in {rejects.path}"
            raise UserError(f"{', '.join(map(str, cuts))}: no cut gave {noun}; {why}")
        sizes.write_note(out, {path.name: one.durations for path, one in zip(cuts, found, strict=True)})
    left_out = f", {lacking} left out that have not all of {'+'.join(streams)}" if lacking else ""
    say(f"{out}: {written} cuts with {noun}{left_out}")


def extract(
    path: Path, out: Path, extractor: Extractor, rejects: files.Rejects, *, batch_s: float, jobs: int
) -> Extracted:
    """Write OUT/<name of path>, the cuts with the extractor's field and what it was made from, part by part."""
    stem = path.name.removesuffix(".jsonl.gz")
    parts: list[Path] = []
    lacking = 0

    def usable() -> Iterator[Cut]:
        nonlocal lacking
        for cut in [] if cutfiles.is_empty(path) else cutfiles.open_cuts(path):
            if extractor.uses(cut):
                yield cut
            else:
                lacking += 1

    with ThreadPoolExecutor(jobs) as pool:
        for some in progress(_grouped(usable(), PART_CUTS), f"extract {path.name}, parts of {PART_CUTS} cuts"):
            part = out / extractor.field / f"{stem}-{len(parts):05d}.bin"
            if not _record(part).exists():
                _write_part(part, some, extractor, pool, batch_s)
            for cut_id, reason in json.loads(_record(part).read_text()):
                rejects.add(cut_id, reason)
            parts.append(part)
    written: sizes.Durations = Counter()
    with cutfiles.writing_cuts(out / path.name) as writer:
        for part in parts:
            for cut in [] if cutfiles.is_empty(_cuts(part)) else cutfiles.open_cuts(_cuts(part)):
                writer.write(cut)
                written[cut.duration] += 1
    return Extracted(written, lacking)


def _record(part: Path) -> Path:
    return part.with_suffix(".rejected.json")


def _cuts(part: Path) -> Path:
    return part.with_suffix(".jsonl.gz")


def _write_part(
    part: Path, cuts: Sequence[Cut], extractor: Extractor, pool: ThreadPoolExecutor, batch_s: float
) -> None:
    rejected: list[tuple[str, str]] = []
    stored: dict[str, TemporalArray] = {}
    with units.RawShardsWriter(part) as shard:
        for batch, items in read_ahead(by_length(cuts, batch_s), extractor.read, pool, rejected):
            for cut, values in zip(batch, extractor.compute(batch, items), strict=True):
                if is_usable(values):
                    stored[cut.id] = shard.store(cut, values)
                else:
                    reason = "its frames are not finite in half precision; look at the sound, or take another layer"
                    rejected.append((cut.id, f"{cut.id}: {reason}"))
    with cutfiles.writing_cuts(_cuts(part)) as writer:
        for cut in cuts:
            if cut.id in stored:
                cut = cut.with_custom(extractor.field, stored[cut.id])
                writer.write(cut.with_custom(units.made_from_field(extractor.field), "+".join(extractor.uses(cut))))
    files.write_json(_record(part), rejected)


def by_length(cuts: Iterable[Cut], batch_s: float) -> Iterator[list[Cut]]:
    """Batches of cuts of similar length, each of at most `batch_s` seconds with padding (or one cut), longest first."""
    batch: list[Cut] = []
    for cut in sorted(cuts, key=lambda cut: -cut.duration):
        if batch and batch[0].duration * (len(batch) + 1) > batch_s:
            yield batch
            batch = []
        batch.append(cut)
    if batch:
        yield batch


def read_ahead(
    batches: Iterable[list[Cut]],
    read: Callable[[Cut], Any],
    pool: ThreadPoolExecutor,
    rejected: list[tuple[str, str]],
) -> Iterator[tuple[list[Cut], list[Any]]]:
    """(cuts, what was read of each) per batch; cuts that cannot be used go to `rejected`."""
    waiting: deque[list[tuple[Cut, Future]]] = deque()
    for batch in itertools.chain(batches, [None] * READ_AHEAD):
        waiting.append([] if batch is None else [(cut, pool.submit(read, cut)) for cut in batch])
        if len(waiting) <= READ_AHEAD:
            continue
        done, items = [], []
        for cut, future in waiting.popleft():
            try:
                items.append(future.result())
                done.append(cut)
            except BadItem as error:
                rejected.append((cut.id, str(error)))
        if done:
            yield done, items


def _grouped(cuts: Iterable[Cut], size: int) -> Iterator[list[Cut]]:
    remaining = iter(cuts)
    while group := list(itertools.islice(remaining, size)):
        yield group
