"""GRID: sentences of six words, spoken to a camera; every word with its times.

    CORPUS/SPEAKER/**/CLIP.mpg (or .mp4), and CLIP.align in alignments/SPEAKER/, align/SPEAKER/ or SPEAKER/align/

`.align` has lines of start, end, word; divided by 1000 they are frames at 25 per second. Without the file the text is
read from the name of the clip, which spells it.

Cooke, Barker, Cunningham, Shao: An audio-visual corpus for speech perception and automatic speech recognition, 2006.
"""

import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from lhotse import MonoCut
from lhotse.supervision import AlignmentItem

from mmspeech.console import say
from mmspeech.corpora.segments import within
from mmspeech.corpora.splits import Clip, check_places, list_digest, pick, supervise, to_cut, write_splits
from mmspeech.corpora.transcripts import read_lines
from mmspeech.errors import BadItem, UserError
from mmspeech.files import Stage

ENDINGS = (".mpg", ".mpeg", ".mp4")
UNITS_PER_S = 25_000  # of the times in .align
SILENCES = ("sil", "sp")
VALID_SHARE = TEST_SHARE = 0.1
ENOUGH_CLIPS = 10  # a speaker with fewer is for training only
UNSEEN_SPEAKERS = ("s1", "s2", "s20", "s22")  # the usual test speakers of the split by speaker
ABOUT = (
    "GRID (34 speakers, 1,000 sentences each, CC BY 4.0, zenodo.org/records/3625687) is a folder with SPEAKER/CLIP.mpg "
    "and alignments/SPEAKER/CLIP.align"
)
# What the letters of a clip's name stand for: bbaf2n is "bin blue at f two now".
COMMANDS = {"b": "bin", "l": "lay", "p": "place", "s": "set"}
COLOURS = {"b": "blue", "g": "green", "r": "red", "w": "white"}
PREPOSITIONS = {"a": "at", "b": "by", "i": "in", "w": "with"}
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS = dict(zip("z123456789", WORDS, strict=True))
ADVERBS = {"n": "now", "s": "soon", "p": "please", "a": "again"}
NAME = re.compile(r"([blps])([bgrw])([abiw])([a-z])([z1-9])([nspa])")


def prepare(corpus: Path, out: Path, unseen: bool = False, seed: int = 0, jobs: int = 4, strict: bool = False) -> None:
    """GRID, in its own layout -> cuts for training, validation and test.

    CORPUS holds SPEAKER/CLIP.mpg and alignments/SPEAKER/CLIP.align. OUT receives
    cuts_{pretrain,trainval,valid,test}.jsonl.gz (pretrain stays empty: all of GRID has transcripts), the sound as
    FLAC, and rejected.jsonl. Of every speaker with ten clips or more a tenth goes to validation and a tenth to test.
    Does nothing if the output is current.

    Example: `mmspeech prepare grid /data/grid exp/data`

    Args:
        corpus: The folder that holds s1, s2, ... and the alignments.
        out: Folder to write.
        unseen: Test on speakers that training does not have (s1, s2, s20, s22) instead of on other sentences.
        seed: Fixes the choice of clips for validation and test.
        jobs: Processes that decode clips.
        strict: Stop at the first clip that cannot be used.
    """
    clips, left_out = find_clips(corpus)
    check_places(corpus, out)
    stage = Stage(out, [corpus], {"unseen": unseen, "seed": seed})
    if stage.is_current():
        return
    clips = split(clips, unseen, seed)
    for name in ("valid", "test"):
        ids = [f"{clip.speaker}/{clip.name}" for clip in clips if clip.split == name]
        say(f"{name}: {len(ids)} clips, list {list_digest(ids)} (seed {seed})")
    write_splits(stage, clips, read_clip, jobs=jobs, strict=strict, title="grid", left_out=left_out)


def find_clips(corpus: Path) -> tuple[list[Clip], list[tuple[str, str]]]:
    """All clips (as trainval), and (item, reason) of transcripts without a clip. Raises UserError if there is none."""
    texts = {(_speaker_of_text(path), path.stem): path for path in sorted(corpus.rglob("*.align"))}
    clips: dict[tuple[str, str], Clip] = {}
    for path in sorted(corpus.rglob("*")):
        if path.suffix.lower() in ENDINGS:
            key = (path.relative_to(corpus).parts[0], path.stem)
            # The corpus also comes in a second size, in another folder of the same speaker: one is enough.
            clips.setdefault(
                key, Clip(split="trainval", speaker=key[0], name=key[1], media=path, transcript=texts.get(key))
            )
    if not clips:
        found = "no .mpg clip is there" if corpus.is_dir() else "no such folder"
        raise UserError(f"{corpus}: expected GRID, but {found}. {ABOUT}")
    lone = [path for key, path in texts.items() if key not in clips]
    return list(clips.values()), [(str(path), f"{path}: a transcript without its clip {path.stem}") for path in lone]


def split(clips: list[Clip], unseen: bool, seed: int) -> list[Clip]:
    """The clips with their split: other sentences of the same speakers, or (unseen) other speakers, for test."""
    names = [(clip.speaker, clip.name) for clip in clips]
    sizes = Counter(speaker for speaker, _ in names)
    if unseen and not (set(sizes) & set(UNSEEN_SPEAKERS) and set(sizes) - set(UNSEEN_SPEAKERS)):
        raise UserError(f"--unseen: expected some of {', '.join(UNSEEN_SPEAKERS)} and others, found {', '.join(sizes)}")
    test: set[tuple[str, str]] = {name for name in names if unseen and name[0] in UNSEEN_SPEAKERS}
    valid: set[tuple[str, str]] = set()
    for speaker, size in sizes.items():
        own = [name for name in names if name[0] == speaker and name not in test]
        if own and size >= ENOUGH_CLIPS:
            if not unseen:
                test |= pick(own, math.ceil(TEST_SHARE * size), seed, "grid test")
            rest = [name for name in own if name not in test]
            valid |= pick(rest, math.ceil(VALID_SHARE * size), seed, "grid validation")
    places = dict.fromkeys(test, "test") | dict.fromkeys(valid, "valid")
    return [replace(clip, split=places.get((clip.speaker, clip.name), "trainval")) for clip in clips]


def read_clip(clip: Clip, audio: Path) -> list[MonoCut]:
    """One clip as a cut; BadItem if it cannot be used."""
    words = read_align(clip.transcript) if clip.transcript else []
    text = " ".join(word.symbol for word in words) if words else spelled(clip)
    cut = to_cut(clip, audio, need_video=True)
    return [supervise(cut, clip.speaker, text, "en", {"word": within(words, 0.0, cut.duration)})]


def read_align(path: Path) -> list[AlignmentItem]:
    """The words with their times in seconds. Raises BadItem."""
    words = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            start, end, word = line.split()
            begin_s, end_s = float(start) / UNITS_PER_S, float(end) / UNITS_PER_S
        except ValueError:
            raise BadItem(f"{path}:{number}: expected `start end word`, found {line!r}; the clip is left out") from None
        if word.lower() not in SILENCES:
            words.append(AlignmentItem(word.lower(), begin_s, round(end_s - begin_s, 4)))
    if not words:
        raise BadItem(f"{path}: expected words, found none; the clip is left out")
    return words


def spelled(clip: Clip) -> str:
    """The sentence that the clip's name stands for. Raises BadItem."""
    match = NAME.fullmatch(clip.name)
    if match is None:
        raise BadItem(f"{clip.media}: no {clip.name}.align, and the name spells no sentence of GRID; left out")
    tables: tuple[dict[str, str], ...] = (COMMANDS, COLOURS, PREPOSITIONS, {}, DIGITS, ADVERBS)
    return " ".join(table.get(letter, letter) for table, letter in zip(tables, match.groups(), strict=True))


def _speaker_of_text(path: Path) -> str:
    """alignments/s1/x.align, s1/align/x.align or s1/x.align -> s1."""
    return path.parent.parent.name if path.parent.name in ("align", "alignments") else path.parent.name
