"""TED-LIUM 3: talks, sound alone, with the times of what is said in them.

    CORPUS/data/{sph,stm}/TALK.sph and TALK.stm             2,351 talks to train on
    CORPUS/legacy/{train,dev,test}/{sph,stm}/TALK.sph, .stm    the usual split; dev and test are 19 other talks

A line of an STM file is one segment: talk, channel, speaker, start, end, label, words. u-HuBERT pre-trains on the sound
of the training talks (Sec. 4.1); they are of the same kind as LRS3's.

Hernandez et al.: TED-LIUM 3, twice as much data and corpus repartition for experiments on speaker adaptation, 2018.
"""

import re
from pathlib import Path
from typing import NamedTuple

from lhotse import MonoCut

from mmspeech.corpora import alignments as align
from mmspeech.corpora.segments import within
from mmspeech.corpora.splits import (
    Clip,
    check_places,
    not_there,
    part_of,
    supervise,
    to_cut,
    with_alignments,
    write_splits,
)
from mmspeech.corpora.transcripts import clean, read_lines
from mmspeech.data.text import joined
from mmspeech.errors import BadItem
from mmspeech.files import Stage

# Folders with sph/ and stm/, and the split that they are; a talk of a later one is left out of it if an earlier has it.
PLACES = (("legacy/test", "test"), ("legacy/dev", "valid"), ("legacy/train", "trainval"), ("data", "trainval"))
NOT_SPEECH = "ignore_time_segment_in_scoring"
LABEL = re.compile(r"<(?!unk>)[^<>]*>")
ABOUT = (
    "TED-LIUM 3 (452 h of TED talks, CC BY-NC-ND 3.0, openslr.org/51) is a folder TEDLIUM_release-3 with "
    "data/{sph,stm}/ and legacy/{train,dev,test}/{sph,stm}/"
)


class Segment(NamedTuple):
    """A line of an STM file."""

    start_s: float
    end_s: float
    text: str  # cleaned; may be empty


def prepare(corpus: Path, out: Path, alignments: Path | None = None, jobs: int = 4, strict: bool = False) -> None:
    """TED-LIUM 3, in its own layout -> cuts of sound, one for each segment.

    CORPUS is TEDLIUM_release-3, with data/ and legacy/. OUT receives cuts_trainval.jsonl.gz (the training talks),
    cuts_valid.jsonl.gz and cuts_test.jsonl.gz (the legacy dev and test talks, which are never trained on;
    cuts_pretrain.jsonl.gz stays empty: all of TED-LIUM has transcripts), the talks as FLAC, and rejected.jsonl with
    every talk that was set aside and the reason. Does nothing if the output is current.

    Example: `mmspeech prepare tedlium3 /data/TEDLIUM_release-3 exp/tedlium/data`

    Args:
        corpus: The folder TEDLIUM_release-3.
        out: Folder to write.
        alignments: Folder of TextGrid or CTM files with phones, named SPEAKER/TITLE (a talk is SPEAKER_TITLE).
        jobs: Processes that decode talks.
        strict: Stop at the first talk that cannot be used.
    """
    talks, left_out = find_talks(corpus)
    check_places(corpus, out)
    stage = Stage(out, [corpus, *([alignments] if alignments else [])])
    if stage.is_current():
        return
    if alignments:
        talks = with_alignments(talks, alignments)
    write_splits(stage, talks, read_talk, jobs=jobs, strict=strict, title="tedlium3", left_out=left_out)


def find_talks(corpus: Path) -> tuple[list[Clip], list[tuple[str, str]]]:
    """All talks, each in one split; and (item, reason) of transcripts without sound and sound without transcript.

    Raises UserError if the corpus is not there.
    """
    sounds, texts = (
        {path.stem: path for path in sorted(corpus.glob(f"data/{kind}/*.{kind}"))} for kind in ("sph", "stm")
    )
    talks, left_out = [], []
    seen: set[str] = set()
    for place, split in PLACES:
        own_texts = {path.stem: path for path in sorted((corpus / place / "stm").glob("*.stm"))}
        own_sounds = {path.stem: path for path in sorted((corpus / place / "sph").glob("*.sph")) if path.exists()}
        names = (own_texts.keys() | own_sounds.keys()) - seen
        seen |= names
        for name in sorted(names):
            # The folders of legacy/train may hold links, which do not always survive a copy.
            text, sound = own_texts.get(name, texts.get(name)), own_sounds.get(name, sounds.get(name))
            if text is None or sound is None:
                missing, there = (f"{name}.stm", sound) if text is None else (f"{name}.sph", text)
                left_out.append((name, f"{there}: a talk without its {missing}; left out"))
                continue
            speaker, _, title = name.rpartition("_")
            talks.append(Clip(split=split, speaker=speaker or name, name=title, media=sound, transcript=text))
    if not talks:
        raise not_there(
            corpus,
            "TED-LIUM 3",
            "no talk with its .sph and .stm is there",
            ABOUT,
            lambda place: (place / "data/sph").is_dir(),
        )
    return talks, left_out


def read_talk(talk: Clip, audio: Path) -> list[MonoCut]:
    """One talk as the cuts of its segments; BadItem if it cannot be used."""
    segments = read_stm(talk.transcript or talk.media.with_suffix(".stm"))
    whole = to_cut(talk, audio, need_video=False)
    tiers = align.read(talk.alignment)
    cuts = []
    for number, (start_s, end_s, text) in enumerate(segments):
        cut = part_of(whole, talk, f"{talk.id}-{number:04d}", start_s, end_s)
        if cut is not None:
            own = {tier: within(items, cut.start, cut.end) for tier, items in tiers.items()}
            cuts.append(supervise(cut, talk.speaker, text or None, "en", own))
    if not cuts:
        raise BadItem(f"{talk.transcript}: expected segments of speech, found none; the talk is left out")
    return cuts


def read_stm(path: Path) -> list[Segment]:
    """The segments of a talk in which somebody speaks. Raises BadItem for a line that is none."""
    segments = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip() or line.startswith(";;"):
            continue
        try:
            _, _, _, start, end, *words = line.split()
            start_s, end_s = float(start), float(end)
        except ValueError:
            expected = "TALK CHANNEL SPEAKER START END <LABEL> WORDS"
            raise BadItem(f"{path}:{number}: expected {expected}, found {line[:80]!r}; the talk is left out") from None
        if not 0 <= start_s <= end_s:
            raise BadItem(f"{path}:{number}: the segment ends before it begins ({line[:80]!r}); the talk is left out")
        if words and LABEL.fullmatch(words[0]):
            words = words[1:]
        if words != [NOT_SPEECH]:
            segments.append(Segment(start_s, end_s, clean_text(" ".join(words))))
    return segments


def clean_text(text: str) -> str:
    """Without <unk> and {NOISE}; what the corpus sets apart is joined: `it 's` -> `it's`, `' cause` -> `'cause`."""
    text = clean(text.replace("<unk>", " "))
    return re.sub(r"(?<!\S)' (?=\w)", "'", joined(text))
