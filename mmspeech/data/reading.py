"""Cuts -> a Batch: every stream of an item read by its reader, trimmed together, padded.

How a stream is read stands in YAML: `{audio: {reader: logmel}, video: {reader: mouth, size: 96, crop: 88}}`. A new
modality whose vectors lie in a field of the cut needs no code: `emg: {reader: array, field: emg}`.

Streams of one cut have the same number of frames, up to MAX_MISSING; the shortest decides. Those of ENDS_EARLY may end
long before the others (phones of a text at a fixed rate): they never shorten what stands beside them, and what is
longer than that is cut. Alone they are as long as they are. Behind its end such a stream is absent: its length in the
batch says so, and a front-end gives zeros there.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lhotse.cut import Cut
from torch import Tensor

from mmspeech import config as configs
from mmspeech import seeds
from mmspeech.batch import STACK, Batch
from mmspeech.data import audio, units, video
from mmspeech.data.open_shards import load_stored
from mmspeech.data.text import TRANSCRIPT, text_of
from mmspeech.errors import BadItem, UserError

FRAMES_PER_S = 25
MAX_MISSING = 2  # frames by which two streams of an item, or its units, may differ in length
PAD_TOKEN = 1
Mixer = Callable[[np.ndarray, Cut, int], np.ndarray]  # (waveform, cut, pass) -> waveform with noise


@dataclass(frozen=True)
class Reading:
    """What all items of a loader have in common; picklable, so that workers get it."""

    streams: Mapping[str, Mapping[str, Any]]  # name -> reader and its settings
    train: bool = False  # random crops, flips, trims; else the middle of the frame and the whole cut
    seed: int = 0
    units: str | None = None  # name of the units that become targets["units"]
    encode_text: Callable[[str], list[int]] | None = None  # text -> token ids that become targets["text"]
    text: str = TRANSCRIPT  # which text of a cut that is; or translation.LANGUAGE
    trim_s: float | None = None  # longer cuts are trimmed to a random span of this length
    mix_noise: Mixer | None = None


@dataclass
class Item:
    """One cut, read."""

    id: str
    streams: dict[str, np.ndarray]  # name -> (T, ...)
    units: np.ndarray | None  # (T,)
    tokens: list[int] | None
    text: str


def read_logmel(cut: Cut, frames: int | None, rng: np.random.Generator, noisy: Callable, train: bool) -> Any:
    """(T, 104) stacked and normalised log-mel frames of the cut's sound, after noise; None without sound."""
    if not cut.has_recording:
        return None
    return audio.stacked_log_mel_of_one(noisy(audio.read_audio(cut)), frames).numpy()


def read_mouth(
    cut: Cut,
    frames: int | None,
    rng: np.random.Generator,
    noisy: Callable,
    train: bool,
    size: int = video.SIZE,
    crop: int = 88,
) -> Any:
    """(T, crop, crop) uint8 of the cut's mouth track, scaled to size x size before; None without a track."""
    return video.augment(video.read_mouth(cut), rng, crop, size, train) if cut.has_custom("mouth") else None


def read_array(cut: Cut, frames: int | None, rng: np.random.Generator, noisy: Callable, train: bool, field: str) -> Any:
    """(T, C) float32 from a field of the cut at 25 Hz; None without the field. BadItem if a value is not finite."""
    if not cut.has_custom(field):
        return None
    values = load_stored(cut, field).astype(np.float32)
    if not np.isfinite(values).all():
        raise BadItem(f"{cut.id}: field `{field}` holds values that are not finite; write it again")
    return values


def read_phones(
    cut: Cut, frames: int | None, rng: np.random.Generator, noisy: Callable, train: bool, size: int = 46
) -> Any:
    """(T, 4) uint8 phone ids at 100 Hz, at most `frames`; None without phones, or where a span begins behind their end.

    Args:
        size: ids that the front-end knows. Raises UserError for another one.
    """
    if not cut.has_custom("phones"):
        return None
    values = load_stored(cut, "phones")[:frames]
    if not len(values):
        return None
    if values.ndim != 2 or values.shape[1] != STACK or int(values.max()) >= size:
        found = f"{values.shape} with ids up to {values.max()}"
        raise UserError(
            f"{cut.id}: expected phones (T, {STACK}) with ids below {size}, found {found}; set `size`, here and of the "
            "front-end, to the number of lines of phones.txt, or run `mmspeech extract phones` again"
        )
    return values


_GIVEN = ("cut", "frames", "rng", "noisy", "train")  # what every reader is called with; the rest are its settings
_MARK = "given"  # in `cut.custom`, never on disk
# In the order in which they are called: sound is cut or filled to the frames of lips, phones are cut to those of sound.
READERS: dict[str, Callable[..., Any]] = {
    "mouth": read_mouth,
    "array": read_array,
    "logmel": read_logmel,
    "phones": read_phones,
}
ENDS_EARLY = ("phones",)


def has_stream(cut: Cut, settings: Mapping[str, Any]) -> bool:
    """Whether a cut has what the reader of these settings reads: sound, or a field."""
    if settings["reader"] == "logmel":
        return cut.has_recording
    return cut.has_custom(settings["field"] if settings["reader"] == "array" else settings["reader"])


def named_streams(typed: str, known: Collection[str], option: str) -> list[str]:
    """`av` -> [audio, video]: names joined by +, or their first letters. Raises UserError for others."""
    words = typed.split("+") if typed.split("+")[0] in known else list(typed)
    found = [[stream for stream in known if word in (stream, stream[0])] for word in words]
    if not found or any(len(matches) != 1 for matches in found):
        raise UserError(f"{option} {typed}: the model knows {', '.join(known)}; give letters or names joined by +")
    return [matches[0] for matches in found]


def mark_given(cut: Cut, streams: Sequence[str], number: int) -> Cut:
    """The cut on its way to a batch: only these streams of it are read (none named: all), for the `number`-th time."""
    return cut.with_custom(_MARK, {"streams": list(streams), "number": number})


def streams_given(cut: Cut, streams: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of the streams that the cut has and that may be read."""
    allowed = (cut.custom or {}).get(_MARK, {}).get("streams") or streams
    return [name for name, settings in streams.items() if name in allowed and has_stream(cut, settings)]


def times_given(cut: Cut, number: int) -> int:
    """How often the cut was given before; `number`, that of the pass, unless its mark says otherwise."""
    return (cut.custom or {}).get(_MARK, {}).get("number", number)


def check_streams(streams: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise UserError for a stream whose reader nobody knows, or settings that it lacks or does not have."""
    if not streams:
        raise UserError("data.streams: is empty; name at least one stream and its reader")
    for name, settings in streams.items():
        if settings.get("reader") not in READERS:
            raise UserError(f"data.streams.{name}.reader: {settings.get('reader')!r}; expected {', '.join(READERS)}")
        rest = {key: value for key, value in settings.items() if key != "reader"}
        configs.arguments(READERS[settings["reader"]], rest, f"data.streams.{name}", settings["reader"], _GIVEN)


def read_item(cut: Cut, reading: Reading, number: int = 0) -> Item:
    """Read one cut for the `number`-th time.

    Streams that the public code would cut to the lips' length are: sound follows the lips. Raises BadItem if the cut
    has none of the streams, or lengths that do not fit each other.
    """
    there = streams_given(cut, reading.streams)
    cut = trim(cut, reading, number)
    noisy = (lambda wave: reading.mix_noise(wave, cut, number)) if reading.mix_noise else (lambda wave: wave)
    streams: dict[str, np.ndarray] = {}
    frames: int | None = None
    for reader in READERS:
        for name, settings in reading.streams.items():
            if settings["reader"] == reader and name in there:
                rng = seeds.numpy_rng(reading.seed, f"augment/{name}", number, cut.id)
                rest = {key: value for key, value in settings.items() if key != "reader"}
                found = READERS[reader](cut, frames, rng, noisy, train=reading.train, **rest)
                if found is not None:
                    streams[name] = found
                    frames = len(found) if frames is None else frames
    if not streams or not frames:
        raise BadItem(f"{cut.id}: has none of the streams {', '.join(reading.streams)}; see `extract mouth`")
    whole = [len(streams[name]) for name in streams if reading.streams[name]["reader"] not in ENDS_EARLY]
    frames = min(whole or [frames])
    if max(whole or [frames]) - frames > MAX_MISSING:
        sizes = ", ".join(f"{name} {len(stream)}" for name, stream in streams.items())
        raise BadItem(f"{cut.id}: streams of different length ({sizes} frames); extract them from the same cut again")
    own_units = None
    if reading.units is not None:
        own_units = units.read_units(cut, reading.units)
        if abs(len(own_units) - frames) > MAX_MISSING:
            raise BadItem(
                f"{cut.id}: {len(own_units)} units `{reading.units}` for {frames} frames ({MAX_MISSING} may be "
                f"missing); label this cut again"
            )
    text = text_of(cut, reading.text)
    tokens = None
    if reading.encode_text is not None:
        if not text:
            raise BadItem(f"{cut.id}: expected a {reading.text}, found none; give cuts that have one")
        try:
            tokens = reading.encode_text(text)
        except BadItem as error:
            raise BadItem(f"{cut.id}: {error}") from None
    kept = {name: stream[:frames] for name, stream in streams.items()}
    return Item(cut.id, kept, None if own_units is None else own_units[:frames], tokens, text)


def trim(cut: Cut, reading: Reading, number: int) -> Cut:
    """The cut, or a random span of `trim_s` seconds of it that starts on a frame; the id stays."""
    if reading.trim_s is None or cut.duration <= reading.trim_s + 1 / FRAMES_PER_S:
        return cut
    spare = math.floor((cut.duration - reading.trim_s) * FRAMES_PER_S)
    start = int(seeds.numpy_rng(reading.seed, "trim", number, cut.id).integers(spare + 1))
    if not cut.has_recording:  # lhotse asks it for its rate
        return dataclasses.replace(cut, start=cut.start + start / FRAMES_PER_S, duration=reading.trim_s)
    return cut.truncate(offset=start / FRAMES_PER_S, duration=reading.trim_s, preserve_id=True)


def collate(items: Sequence[Item], names: Sequence[str], numbers: Sequence[int]) -> Batch:
    """Items -> a padded Batch; padding is zero, in units too; text is padded with 1."""
    size = max(len(stream) for item in items for stream in item.streams.values())
    batch = Batch(ids=[item.id for item in items], streams={}, lengths={}, passes=list(numbers))
    batch.texts = [item.text for item in items]
    for name in names:
        rows = [item.streams.get(name) for item in items]
        example = next((row for row in rows if row is not None), None)
        if example is None:
            continue
        padded = np.zeros((len(items), size, *example.shape[1:]), dtype=example.dtype)
        for place, row in zip(padded, rows, strict=True):
            if row is not None:
                place[: len(row)] = row
        batch.streams[name] = torch.from_numpy(padded)
        batch.lengths[name] = torch.tensor([0 if row is None else len(row) for row in rows])
        batch.present[name] = batch.lengths[name] > 0
    if items[0].units is not None:
        _add_target(batch, "units", [torch.from_numpy(np.asarray(item.units, np.int64)) for item in items], size, 0)
    if items[0].tokens is not None:
        tokens = [torch.tensor(item.tokens, dtype=torch.int64) for item in items]
        _add_target(batch, "text", tokens, max(map(len, tokens)), PAD_TOKEN)
    return batch


def repeat_item(batch: Batch, copies: int) -> Batch:
    """A batch of `copies` times the only item of `batch`."""

    def repeat(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.repeat(copies, *[1] * (tensor.dim() - 1)) for name, tensor in tensors.items()}

    return Batch(
        ids=[f"{batch.ids[0]}/{i}" for i in range(copies)],
        streams=repeat(batch.streams),
        lengths=repeat(batch.lengths),
        targets=repeat(batch.targets),
        target_lengths=repeat(batch.target_lengths),
        present=repeat(batch.present),
        texts=batch.texts * copies,
        passes=batch.passes * copies,
    )


def _add_target(batch: Batch, name: str, rows: Sequence[Tensor], size: int, padding: int) -> None:
    target = torch.full((len(rows), size), padding, dtype=torch.int64)
    for place, row in zip(target, rows, strict=True):
        place[: len(row)] = row
    batch.targets[name] = target
    batch.target_lengths[name] = torch.tensor([len(row) for row in rows])
