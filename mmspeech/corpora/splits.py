"""What all corpora of speech share: clips, the choice of validation and test sets, and the four files of cuts.

A corpus lists its clips (paths only), and gives a function that turns one of them into cuts; this file runs it over
all clips in parallel and writes cuts_pretrain, cuts_trainval, cuts_valid and cuts_test, each possibly empty.
Speech is in one of them only: whoever pre-trains on all of it reads pretrain and trainval.
"""

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.supervision import AlignmentItem

from mmspeech import media
from mmspeech.console import say
from mmspeech.corpora import alignments
from mmspeech.data.cutfiles import writing_cuts
from mmspeech.data.loader import DataConfig
from mmspeech.errors import BadItem, UserError
from mmspeech.files import Rejects, Stage, parallel_map
from mmspeech.seeds import stable_hash

SPLITS = ("pretrain", "trainval", "valid", "test")
SPARE_S = 1.0  # by which a segment may reach beyond its recording's end; more, and the times are another recording's
Alignment = dict[str, list[AlignmentItem]]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One clip on disk: what can be known of it without opening a file."""

    split: str  # one of SPLITS
    speaker: str
    name: str  # unique for the speaker
    media: Path
    sound: Path | None = None  # the file with the sound, where `media` holds the picture alone
    transcript: Path | None = None
    alignment: tuple[alignments.Place, ...] = ()
    translation: dict[str, str] = field(default_factory=dict)  # language -> text

    @property
    def id(self) -> str:
        return f"{self.split}-{self.speaker}-{self.name}"


class SetAside(NamedTuple):
    """A part of a clip that cannot be used, where the rest can."""

    item: str
    reason: str


AnyClip = TypeVar("AnyClip", bound=Clip)
Parts = Sequence[MonoCut | SetAside]
Read = Callable[[AnyClip, Path], Parts]  # (clip, folder for the audio) -> its cuts; raises BadItem


def not_there(corpus: Path, name: str, found: str, about: str, holds: Callable[[Path], bool]) -> UserError:
    """The error for a folder that is not the corpus: names the right one, if that is one level off.

    Args:
        found: what is wrong with a folder that is there.
        holds: whether a folder looks like the corpus.
    """
    if not corpus.is_dir():
        return UserError(f"{corpus}: expected {name}, but no such folder. {about}")
    near = [corpus.absolute().parent, *sorted(path for path in corpus.iterdir() if path.is_dir())]
    right = next((path for path in near if holds(path)), None)
    if right is not None:
        return UserError(f"{corpus}: expected {name}, but {found}; {right} holds it: give that")
    return UserError(f"{corpus}: expected {name}, but {found}. {about}")


def check_places(corpus: Path, out: Path) -> None:
    """Raise UserError if OUT lies in the corpus: its files would become part of the input."""
    if out.absolute().is_relative_to(corpus.absolute()):
        raise UserError(f"{out}: lies inside the corpus {corpus}; give a folder elsewhere")


def with_alignments(clips: Sequence[AnyClip], place: Path, folders: Mapping[str, str] | None = None) -> list[AnyClip]:
    """The clips with the place of their alignment, where there is one: SPLIT/SPEAKER/CLIP or SPEAKER/CLIP.

    Args:
        folders: split -> its folder in the corpus, where SPEAKER/CLIP is another clip in each: the name of an alignment
            is then FOLDER/SPEAKER/CLIP.

    Raises UserError if there is none at all.
    """
    found = alignments.find(place)
    wanted, aligned = [], []
    for clip in clips:
        name = f"{clip.speaker}-{clip.name}"
        wanted.append([clip.id, name] if folders is None else [f"{folders[clip.split]}-{name}"])
        aligned.append(replace(clip, alignment=next((found[one] for one in wanted[-1] if one in found), ())))
    count = sum(bool(clip.alignment) for clip in aligned)
    if not count:
        raise UserError(f"{place}: no alignment has the name of a clip; expected {wanted[0][0]}, found {min(found)}")
    say(f"{place}: alignments of {count} of {len(clips)} clips")
    return aligned


def write_splits(
    stage: Stage,
    clips: Iterable[AnyClip],
    read: Read[AnyClip],
    *,
    jobs: int,
    strict: bool,
    title: str,
    left_out: Iterable[tuple[str, str]] = (),
) -> None:
    """Turn the clips into cuts in `jobs` processes and write the four files and rejected.jsonl.

    Args:
        clips: read one after the other: a list that is larger than memory may be given lazily.
        title: the corpus; every cut carries it as `corpus`, so that figures can say what they were measured on.
        left_out: (item, reason) of what was set aside before: transcripts without clips.

    Raises:
        UserError: not one clip gave a cut; or, with `strict`, one was set aside.
    """
    counts: Counter[str] = Counter()
    hours: Counter[str] = Counter()
    too_long = given = 0

    def counted() -> Iterator[AnyClip]:
        nonlocal given
        for clip in clips:
            given += 1
            yield clip

    with stage.resuming() as folder, Rejects(folder / "rejected.jsonl", strict) as rejects, ExitStack() as stack:
        for item, reason in left_out:
            rejects.add(item, reason)
        writers = {split: stack.enter_context(writing_cuts(cuts_file(folder, split))) for split in SPLITS}
        work = functools.partial(_with_split, read, folder / "audio")
        total = len(clips) if isinstance(clips, Sequence) else None
        for split, cuts in parallel_map(work, counted(), jobs=jobs, rejects=rejects, title=title, total=total):
            for cut in cuts:
                if isinstance(cut, SetAside):
                    rejects.add(*cut)
                    continue
                cut.custom = {**(cut.custom or {}), "corpus": title}
                writers[split].write(cut)
                counts[split] += 1
                hours[split] += cut.duration / 3600
                too_long += split in ("pretrain", "trainval") and cut.duration > DataConfig.max_s
        if not counts:
            raise UserError(f"{folder}: none of {given} clips could be used; the reasons are in {rejects.path}")
    for split in SPLITS:
        say(f"{cuts_file(stage.output, split)}: {counts[split]} cuts, {hours[split]:.2f} h")
    if too_long:
        say(
            f"{stage.output}: {too_long} cut(s) are longer than {DataConfig.max_s:g} s, so training leaves them out; "
            "split such clips into shorter ones, each with its transcript"
        )


def cuts_file(folder: Path, split: str) -> Path:
    return folder / f"cuts_{split}.jsonl.gz"


def to_cut(clip: Clip, audio: Path, *, need_video: bool) -> MonoCut:
    """The whole clip as a cut without supervision; its sound is written as FLAC under `audio`."""
    path = audio / clip.split / clip.speaker / f"{clip.name}.flac"
    made = media.to_flac(clip.media, path, need_video=need_video, sound=clip.sound)
    cut = recording(clip.id, path, made.num_samples).to_cut()
    cut.id = clip.id
    if made.video is not None:
        cut.custom = {"source": made.video.as_source()}
    return cut


def part_of(whole: MonoCut, clip: Clip, name: str, start_s: float, end_s: float) -> MonoCut | None:
    """A segment of a long recording as a cut called `name`, without supervision; None if nothing is left of it.

    Raises BadItem if it ends far behind the recording.
    """
    if end_s > whole.duration + SPARE_S:
        raise BadItem(
            f"{clip.transcript}: a segment ends at {end_s:.2f} s, but {clip.media} at {whole.duration:.2f} s; they are "
            "not of one release: take both from the same"
        )
    start, end = round(start_s * media.RATE_HZ), round(min(end_s, whole.duration) * media.RATE_HZ)
    if end <= start:
        return None
    return replace(whole, id=name, start=start / media.RATE_HZ, duration=(end - start) / media.RATE_HZ)


def recording(name: str, path: Path, num_samples: int) -> Recording:
    """A 16 kHz mono FLAC as a lhotse recording, by its full path."""
    source = AudioSource(type="file", channels=[0], source=str(path.absolute()))
    return Recording(name, [source], media.RATE_HZ, num_samples, num_samples / media.RATE_HZ)


def supervise(
    cut: MonoCut, speaker: str | None, text: str | None, language: str | None = None, alignment: Alignment | None = None
) -> MonoCut:
    """Give a cut its one supervision, and return the cut.

    The alignment's times count from the supervision's start, here that of the cut: truncated, lhotse moves the
    supervision and leaves them alone.
    """
    supervision = SupervisionSegment(
        cut.id, cut.recording_id, 0.0, cut.duration, text=text, language=language, speaker=speaker
    )
    if alignment:
        supervision.alignment = {tier: items for tier, items in alignment.items() if items}
    cut.supervisions = [supervision]
    return cut


def pick(
    clips: Collection[tuple[str, str]],
    wanted: int,
    *key: object,
    by_speaker: bool | None = None,
    rather_not: Collection[str] = (),
) -> set[tuple[str, str]]:
    """Choose about `wanted` of the (speaker, clip) pairs, the same ones for the same key.

    At least one clip, or speaker, stays on the other side.

    Args:
        by_speaker: take whole speakers, so that nobody is on both sides; None: where there are three or more.
        rather_not: speakers that come last.
    """
    sizes = Counter(speaker for speaker, _ in clips)
    by_speaker = len(sizes) >= 3 if by_speaker is None else by_speaker
    wanted = min(wanted, len(clips) - 1)
    if wanted <= 0 or (by_speaker and len(sizes) < 2):
        return set()
    if not by_speaker:
        return set(sorted(clips, key=lambda clip: (stable_hash(*key, *clip), clip))[:wanted])
    order = sorted(sizes, key=lambda speaker: (speaker in rather_not, stable_hash(*key, speaker), speaker))
    chosen: set[str] = set()
    total = 0
    for speaker in order:
        # A speaker who alone would take far more than was asked for is left to training.
        if total < wanted and total + sizes[speaker] <= 1.5 * wanted:
            chosen.add(speaker)
            total += sizes[speaker]
    if not chosen:
        chosen = {min(order, key=lambda speaker: sizes[speaker])}
    return {clip for clip in clips if clip[0] in chosen}


def list_digest(names: Iterable[str]) -> str:
    """12 hexadecimal digits that stand for a list of names, in whatever order."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:12]


def _with_split(read: Read[AnyClip], audio: Path, clip: AnyClip) -> tuple[str, Parts]:
    return clip.split, read(clip, audio)
