"""Own recordings: any folder of videos or sound files, with or without transcripts beside them.

CORPUS/**/SPEAKER/CLIP.mp4 (or another kind of video or sound), and CLIP.txt with what is said in it
"""

import functools
import math
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from lhotse import MonoCut

from mmspeech.console import say
from mmspeech.corpora.splits import Clip, check_places, list_digest, pick, supervise, to_cut, write_splits
from mmspeech.corpora.transcripts import clean, read_lines
from mmspeech.errors import BadItem, UserError
from mmspeech.files import Stage

VIDEO = (".mp4", ".mkv", ".mov", ".avi", ".mpg", ".mpeg", ".webm", ".m4v")
SOUND = (".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus")
VALID_SHARE = TEST_SHARE = 0.1
NOT_TRANSCRIPTS = ("readme", "license", "licence")


def prepare(corpus: Path, out: Path, language: str = "en", seed: int = 0, jobs: int = 4, strict: bool = False) -> None:
    """A folder of your own videos or sound files -> cuts.

    CORPUS may have any folders; the one that a clip lies in is its speaker. CLIP.txt beside CLIP.mp4 is its
    transcript. OUT receives cuts_pretrain.jsonl.gz (clips without transcript) and cuts_{trainval,valid,test}.jsonl.gz
    (with one: a tenth for validation, a tenth for test; by speaker where there are three or more), the sound as FLAC,
    and rejected.jsonl. Does nothing if the output is current.

    Example: `mmspeech prepare clips ~/videos exp/data`

    Args:
        corpus: The folder with the clips (mp4 mkv mov avi mpg webm, wav flac mp3 m4a ogg opus).
        out: Folder to write.
        language: Language of the transcripts, e.g. en.
        seed: Fixes the choice of speakers or clips for validation and test.
        jobs: Processes that decode clips.
        strict: Stop at the first clip that cannot be used.
    """
    clips, left_out = find_clips(corpus)
    check_places(corpus, out)
    stage = Stage(out, [corpus], {"language": language, "seed": seed})
    if stage.is_current():
        return
    clips = split(clips, seed)
    for name in ("valid", "test"):
        ids = [f"{clip.speaker}/{clip.name}" for clip in clips if clip.split == name]
        say(f"{name}: {len(ids)} clips, list {list_digest(ids)} (seed {seed})")
    read = functools.partial(read_clip, language=language)
    write_splits(stage, clips, read, jobs=jobs, strict=strict, title="clips", left_out=left_out)


def find_clips(corpus: Path) -> tuple[list[Clip], list[tuple[str, str]]]:
    """All clips (as pretrain), and (item, reason) of what lies there without use. Raises UserError if there is none."""
    paths = [path for path in sorted(corpus.rglob("*")) if path.suffix.lower() in (*VIDEO, *SOUND) and path.is_file()]
    texts = {path for path in corpus.rglob("*.txt") if not path.stem.lower().startswith(NOT_TRANSCRIPTS)}
    clips: dict[str, Clip] = {}
    left_out = []
    # Videos first: where sound of the same name lies beside one, it is the same clip again.
    for path in sorted(paths, key=lambda path: path.suffix.lower() in SOUND):
        parts = path.relative_to(corpus).with_suffix("").parts
        text = path.with_suffix(".txt")
        texts.discard(text)
        clip = Clip(
            split="pretrain",
            speaker=path.parent.name,
            name=_short("-".join([*parts[:-2], parts[-1]])),  # folders above the speaker's keep names apart
            media=path,
            transcript=text if text.exists() else None,
        )
        if (first := clips.setdefault(clip.id, clip)) is not clip:
            left_out.append((str(path), f"{path}: has the same name as {first.media}, which is used; rename one"))
    if not clips:
        found = "no video or sound file is there" if corpus.is_dir() else "no such folder"
        kinds = " ".join(ending[1:] for ending in (*VIDEO, *SOUND))
        raise UserError(f"{corpus}: expected clips, but {found}; give a folder with files of these kinds: {kinds}")
    left_out += [(str(text), f"{text}: a transcript without its clip") for text in sorted(texts)]
    return [clips[name] for name in sorted(clips)], left_out


def split(clips: list[Clip], seed: int) -> list[Clip]:
    """The clips with their split; those without transcript stay in pretrain, and keep off the speakers of test."""
    told = [(clip.speaker, clip.name) for clip in clips if clip.transcript]
    by_speaker = len({speaker for speaker, _ in told}) >= 3
    test = pick(told, _share(TEST_SHARE, told), seed, "clips test", by_speaker=by_speaker)
    rest = [name for name in told if name not in test]
    valid = pick(rest, _share(VALID_SHARE, told), seed, "clips validation", by_speaker=by_speaker)
    places = dict.fromkeys(told, "trainval") | dict.fromkeys(test, "test") | dict.fromkeys(valid, "valid")
    held_out = {speaker for speaker, _ in test | valid} if by_speaker else set()
    kept = [clip for clip in clips if clip.transcript or clip.speaker not in held_out]
    if len(kept) < len(clips):
        say(f"{len(clips) - len(kept)} clips without transcript are of speakers of validation or test: not used")
    return [replace(clip, split=places.get((clip.speaker, clip.name), "pretrain")) for clip in kept]


def read_clip(clip: Clip, audio: Path, language: str) -> list[MonoCut]:
    """One clip as a cut; BadItem if it cannot be used."""
    text = read_text(clip.transcript) if clip.transcript else None
    return [supervise(to_cut(clip, audio, need_video=False), clip.speaker, text, language if text else None)]


def read_text(path: Path) -> str:
    """What is said in a clip: the line `Text: ...` if there is one, as in LRS3, else all lines. Raises BadItem."""
    lines = read_lines(path)
    told = [line.partition(":")[2] for line in lines if line.startswith("Text:")]
    text = clean(" ".join(told[:1] or lines))
    if not text:
        raise BadItem(f"{path}: expected a transcript, found no words; the clip is left out")
    return text


def _short(name: str) -> str:
    """A name that file systems take with a suffix behind it: they allow 255 bytes, and titles of videos have more."""
    if len(name.encode()) <= 200:
        return name
    return f"{name.encode()[:150].decode(errors='ignore')}-{list_digest([name])}"


def _share(share: float, clips: Collection[tuple[str, str]]) -> int:
    """How many clips a held-out set gets; none where there are too few to train on the rest."""
    return math.ceil(share * len(clips)) if len(clips) >= 3 else 0
