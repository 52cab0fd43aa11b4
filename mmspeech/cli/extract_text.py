"""Text cuts for the unified tokenizer (VATLM Sec. III-C, Fig. 2d): sentences -> phones -> units, in shards.

    lines of a shard -> phones, pauses between some words -> batches of similar length -> phoneme-to-unit model
                     -> cuts without recording, each with `phones` (T, 4) at 100 Hz and `units_NAME` (T,) at 25 Hz

A shard is LINES lines of one file. Its record, written last, makes it finished: it is not made again, and several jobs
may make different shards of one folder at the same time. What a line becomes depends on it, its place and the settings;
the size of a batch and the number of jobs only decide how products are rounded, which a tie alone could show.
"""

import gzip
import itertools
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from lhotse import MonoCut, SupervisionSegment

from mmspeech import dist, files, seeds
from mmspeech.console import progress, say, say_here
from mmspeech.data import cutfiles, phone_frames, sizes, units
from mmspeech.data.audio import FRAMES_PER_S
from mmspeech.data.phones import SILENCE, Lexicon, ids_of, is_english
from mmspeech.data.text import without_tags, words_of_english
from mmspeech.errors import BadItem, UserError
from mmspeech.models.phone2unit import BATCH_PHONES, Phone2Unit, by_length, load_phone2unit

LINES = 100_000  # of a shard
CHUNK = 1_000  # lines whose pauses are drawn at once
FIRST_REASONS = 20  # that a shard's record keeps; the others are counted
MOST_REASONS = 1_000  # in rejected.jsonl


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the output depends on, besides the texts, the lexicon and the model."""

    name: str  # of the units
    language: str
    silence: float  # how often a pause stands between two words; 0.25: SpeechLM's
    max_s: float  # of what a line takes to say
    seed: int
    precision: Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Share:
    """Shards index, index + count, ... of all: one of several jobs' part."""

    index: int
    count: int

    @classmethod
    def of(cls, typed: str) -> "Share":
        """`2/8` -> Share(2, 8). Raises UserError for what is none."""
        index, _, count = typed.partition("/")
        if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
            raise UserError(f"--shard {typed}: expected i/n with i from 0 to n - 1, as in 0/8; mend it")
        return cls(int(index), int(count))


class Sentence(NamedTuple):
    """A line that can be said."""

    id: str
    text: str
    phones: np.ndarray  # (P,) uint8


class Shard(NamedTuple):
    """Some lines of a file, and where what they become goes."""

    first: int  # number of the first line, from 1
    lines: list[bytes]
    stem: str  # of the file
    arrays: Path
    cuts: Path
    record: Path


class Voice:
    """What turns lines into units: the lexicon, the pauses, the model."""

    def __init__(self, lexicon: Lexicon, model: Phone2Unit, settings: Settings, device: torch.device) -> None:
        self.lexicon, self.model, self.settings, self.device = lexicon, model.to(device), settings, device
        self.pause = ids_of(settings.language)[SILENCE]

    def words(self, line: bytes) -> tuple[str, list[list[int]]]:
        """A line's words as a text, and their phones. Raises BadItem, whose reason begins with its kind and a colon."""
        if b"\0" in line:
            raise BadItem("unreadable: zero bytes, as UTF-16 has them; save the file as UTF-8")
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadItem(f"unreadable: not UTF-8 ({error.reason})") from None
        # Else every </s> of Cantab-TEDLIUM would be a spoken noise.
        text = words_of_english(text) if is_english(self.settings.language) else without_tags(text)
        if not text:
            raise BadItem("empty: no words in the line")
        try:
            words = self.lexicon.ids(text)
        except BadItem as error:
            raise BadItem(f"unpronounced: {error}") from None
        if not (count := sum(map(len, words))):
            raise BadItem(f"unpronounced: `{text[:40]}` has no word that is spoken")
        if count > (most := self.settings.max_s * FRAMES_PER_S):  # a phone has a frame on average, at least
            raise BadItem(f"too long: {count} phones, and {self.settings.max_s:g} s hold {most:g}")
        return text, words

    def sentence(self, name: str, text: str, words: list[list[int]], draws: np.ndarray) -> Sentence:
        """With a pause after word w where draws[w] says so. Equal neighbours are one, as in aligned speech."""
        pauses = draws < self.settings.silence
        phones = list(words[0])
        for pause, word in zip(pauses, words[1:], strict=False):
            phones += [self.pause, *word] if pause else word
        return Sentence(name, text, np.array([phone for phone, _ in itertools.groupby(phones)], np.uint8))

    def say(self, sentences: Sequence[Sentence], title: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """(phone of each frame (T,) uint8, units (T,) int32) of each."""
        lengths = np.array([len(sentence.phones) for sentence in sentences], np.int64)
        said: list[tuple[np.ndarray, np.ndarray]] = [(np.empty(0), np.empty(0))] * len(sentences)
        # One autocast around all: it keeps the weights that it has rounded.
        half = torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")
        with torch.inference_mode(), half:
            for batch in progress(list(by_length(lengths, BATCH_PHONES)), title):
                padded = np.zeros((len(batch), int(lengths[batch].max())), np.int64)
                for row, i in zip(padded, batch, strict=True):
                    row[: lengths[i]] = sentences[i].phones
                made = self.model.generate(torch.from_numpy(padded).to(self.device), torch.from_numpy(lengths[batch]))
                frames, durations = made.lengths.tolist(), made.durations.cpu().numpy()
                found = made.units.to(torch.int32).cpu().numpy()
                for place, i in enumerate(batch):
                    phones = np.repeat(sentences[i].phones, durations[place, : lengths[i]])
                    said[i] = phones, found[place, : frames[place]].copy()
        return said


def run(
    texts: Sequence[Path],
    out: Path,
    phone2unit: Path,
    lexicon: Path | None,
    settings: Settings,
    share: Share,
    *,
    device: str | None,
    strict: bool,
) -> None:
    """Write the text cuts of files of sentences, or one job's share of them. Raises UserError."""
    from mmspeech.cli.cluster import check_strict

    stems = [stem_of(path) for path in texts]
    if len(set(stems)) < len(stems):
        raise UserError(f"{', '.join(map(str, texts))}: two files of one name would overwrite each other in {out}")
    model = load_phone2unit(phone2unit)
    read = [*texts, phone2unit / "config.yaml", phone2unit / "model.safetensors", *([lexicon] if lexicon else [])]
    stage = files.Stage(out, read, asdict(settings))
    if stage.is_current():
        check_strict(out, strict)
        return
    words = Lexicon.load(lexicon, settings.language)
    if len(words.symbols) > model.config.num_phones:
        raise UserError(
            f"{phone2unit}: knows {model.config.num_phones} phones, but those of `{settings.language}` are "
            f"{len(words.symbols)}; give a model that was trained on this language"
        )
    voice = Voice(words, model, settings, dist.start(device))
    # torchrun's processes take a share of this job's share each; none waits for another.
    mine = Share(share.index * dist.world_size() + dist.rank(), share.count * dist.world_size())
    if dist.is_first():
        with stage.resuming(is_whole=lambda: False):
            pass
    dist.barrier()  # the folder is there, and nothing of another origin in it
    records: list[Path] = []
    whole = False
    with stage.resuming(is_whole=lambda: whole):
        for number, shard in enumerate(shards(texts, out)):
            records.append(shard.record)
            if number % mine.count == mine.index and not shard.record.exists():
                make(shard, voice, strict)
        if missing := [number for number, record in enumerate(records) if not record.exists()]:
            if others := [number for number in missing if number % share.count != share.index]:
                say(f"{out}: {len(others)} of {len(records)} shards are left to other jobs")
        else:
            summarise(out, records, texts)
            whole = True


def stem_of(path: Path) -> str:
    """`cantab.txt.gz`, `cantab.gz` -> cantab. Raises UserError for another kind of file."""
    name = path.name.removesuffix(".gz")
    plain = name == path.name
    if not name.endswith(".txt") and (plain or "." in name):  # cuts.jsonl.gz holds none
        raise UserError(f"{path}: expected sentences, one per line, in a file .txt, .txt.gz or .gz; rename it")
    return name.removesuffix(".txt")


def shards(texts: Sequence[Path], out: Path) -> Iterator[Shard]:
    """All shards of all files, in order; one is in memory at a time. Raises UserError for a file that breaks off."""
    for path in texts:
        stem = stem_of(path)
        try:
            with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
                for number in itertools.count():
                    if not (lines := list(itertools.islice(file, LINES))):
                        break
                    name = f"{stem}-{number:05d}"
                    arrays = out / "text" / f"{name}.bin"
                    cuts, record = out / f"cuts_{name}.jsonl.gz", arrays.with_suffix(".json")
                    yield Shard(1 + number * LINES, lines, stem, arrays, cuts, record)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{path}: not a whole gzip file ({error}); copy or write it again") from None


def make(shard: Shard, voice: Voice, strict: bool) -> None:
    """Write the arrays, then the cuts, then the record of a shard."""
    rejected: list[tuple[str, str]] = []

    def reject(name: str, reason: str) -> None:
        if strict:
            raise UserError(f"{name}: {reason} (--strict stops here)")
        rejected.append((name, reason))

    sentences = list(pronounce(shard, voice, reject))
    frames = 0
    durations: Counter[float] = Counter()
    with cutfiles.writing_cuts(shard.cuts) as writer, units.RawShardsWriter(shard.arrays) as arrays:
        for sentence, (phones, found) in zip(
            sentences, voice.say(sentences, f"{shard.arrays.stem}, batches"), strict=True
        ):
            if len(found) > voice.settings.max_s * FRAMES_PER_S:
                reject(sentence.id, f"too long: {len(found) / FRAMES_PER_S:g} s, at most {voice.settings.max_s:g}")
                continue
            cut = text_cut(sentence, len(found), voice.settings.language)
            cut.custom = {
                phone_frames.FIELD: arrays.store(cut, phone_frames.repeated(phones)),  # (T, 4)
                f"units_{voice.settings.name}": arrays.store(cut, found),
            }
            writer.write(cut)
            frames += len(found)
            durations[cut.duration] += 1
    kinds = Counter(reason.partition(":")[0] for _, reason in rejected)
    facts: dict[str, object] = {"lines": len(shard.lines), "texts": len(shard.lines) - len(rejected), "frames": frames}
    facts |= {"durations": dict(durations)}
    files.write_json(shard.record, facts | {"set_aside": dict(kinds), "first": rejected[:FIRST_REASONS]})


def pronounce(shard: Shard, voice: Voice, reject: Callable[[str, str], None]) -> Iterator[Sentence]:
    """The sentences of a shard; lines that are none go to `reject`."""
    numbered = enumerate(shard.lines, start=shard.first)
    while chunk := list(itertools.islice(numbered, CHUNK)):
        spoken = []
        for number, line in chunk:
            name = f"{shard.stem}-{number:09d}"
            try:
                spoken.append((name, *voice.words(line)))
            except BadItem as error:
                reject(name, str(error))
        most = max((len(words) for *_, words in spoken), default=0)
        keys = [seeds.stable_hash(voice.settings.seed, "silence", name) for name, *_ in spoken]
        for (name, text, words), draws in zip(spoken, seeds.uniforms(keys, most), strict=True):
            yield voice.sentence(name, text, words, draws)


def text_cut(sentence: Sentence, frames: int, language: str) -> MonoCut:
    """A cut without recording."""
    duration = frames / FRAMES_PER_S
    cut = MonoCut(sentence.id, start=0, duration=duration, channel=0)
    cut.supervisions = [SupervisionSegment(cut.id, cut.id, 0, duration, text=sentence.text, language=language)]
    return cut


def summarise(out: Path, records: Sequence[Path], texts: Sequence[Path]) -> None:
    """Write units.json, what became of all lines; rejected.jsonl, why the first were set aside; a note of durations."""
    total: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    reasons: list[list[str]] = []
    found: dict[str, dict[float, int]] = {}
    for record in records:
        facts = json.loads(record.read_text())
        if "durations" in facts:  # else an earlier release made the shard
            found[f"cuts_{record.stem}.jsonl.gz"] = {float(seconds): n for seconds, n in facts["durations"].items()}
        kinds.update(facts["set_aside"])
        total.update({key: facts[key] for key in ("lines", "texts", "frames")})
        reasons += facts["first"][: MOST_REASONS - len(reasons)]
    with files.replacing(out / "rejected.jsonl") as temporary:
        lines = [json.dumps({"item": item, "reason": reason}, ensure_ascii=False) for item, reason in reasons]
        temporary.write_text("".join(f"{line}\n" for line in lines))
    if not total["texts"]:
        raise UserError(f"{', '.join(map(str, texts))}: no line gave units; reasons in {out / 'rejected.jsonl'}")
    sizes.write_note(out, found)
    files.write_json(out / "units.json", {**total, "hours": total["frames"] / FRAMES_PER_S / 3600, "set_aside": kinds})
    aside = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    say_here(f"{out}: {total['texts']} texts with units" + (f"; set aside: {aside}" if aside else ""))
