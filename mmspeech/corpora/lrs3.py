"""LRS3: talks cut to clips of a face, with transcripts; in `pretrain` with the times of the words.

    CORPUS/{pretrain,trainval,test}/SPEAKER/CLIP.mp4 and CLIP.txt
    CLIP.txt    Text:  THE WORDS OF IT
                Conf:  4
                (pretrain)  WORD START END ASDSCORE, and a line of each for every word

Afouras, Chung, Zisserman: LRS3-TED, a large-scale dataset for visual speech recognition, 2018.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lhotse import MonoCut
from lhotse.supervision import AlignmentItem

from mmspeech.console import say
from mmspeech.corpora import alignments as align
from mmspeech.corpora.segments import split_at_pauses, within
from mmspeech.corpora.splits import (
    Alignment,
    Clip,
    check_places,
    list_digest,
    not_there,
    pick,
    supervise,
    to_cut,
    with_alignments,
    write_splits,
)
from mmspeech.corpora.transcripts import clean, read_lines
from mmspeech.errors import BadItem, UserError
from mmspeech.files import Stage
from mmspeech.media import FRAMES_PER_S

FOLDERS = ("pretrain", "trainval", "test")
STAND_IN = "stand-in.txt"  # name of a corpus that only has LRS3's layout: its figures do not compare with LRS3's
LAYOUT = "pretrain/, trainval/ and test/, each with SPEAKER/CLIP.mp4 and SPEAKER/CLIP.txt"
ABOUT = (
    "LRS3 (talks with faces, by Oxford's Visual Geometry Group and the BBC's licence) is no longer handed out; who has "
    f"it gives the folder that holds {LAYOUT}. Otherwise: `mmspeech prepare grid` (free, from Zenodo), `prepare clips` "
    "(your own videos) or `prepare synth` (a corpus that we make)"
)


@dataclass(frozen=True)
class Transcript:
    """What CLIP.txt says."""

    text: str
    words: list[AlignmentItem]  # with times, in pretrain


def prepare(
    corpus: Path,
    out: Path | None = None,
    max_s: float = 15.0,
    valid_ids: Path | None = None,
    valid_clips: int = 1200,
    alignments: Path | None = None,
    translations: Path | None = None,
    translation_language: str = "es",
    seed: int = 0,
    jobs: int = 4,
    strict: bool = False,
    check: bool = False,
) -> None:
    """LRS3, in its own layout -> cuts for pre-training, fine-tuning, validation and test.

    CORPUS holds pretrain/, trainval/ and test/, each with SPEAKER/CLIP.mp4 and CLIP.txt. OUT receives
    cuts_{pretrain,trainval,valid,test}.jsonl.gz, the sound as FLAC, and rejected.jsonl with every clip that was set
    aside and the reason. Long clips of pretrain are cut at pauses. Does nothing if the output is current.

    Example: `mmspeech prepare lrs3 /data/lrs3 exp/data --valid-ids lrs3-valid.id`

    Args:
        corpus: The folder that holds pretrain, trainval and test.
        out: Folder to write. Not needed with --check.
        max_s: Longest cut of pretrain, in seconds; longer clips are cut in the middle of pauses.
        valid_ids: File with the validation clips, one SPEAKER/CLIP of trainval per line (usually 1,200).
        valid_clips: Without --valid-ids: about so many clips of trainval, by speaker, at most a tenth.
        alignments: Folder of TextGrid or CTM files with phones, named SPLIT/SPEAKER/CLIP or SPEAKER/CLIP.
        translations: File of lines SPLIT/SPEAKER/CLIP (or SPEAKER/CLIP), a tab, and the translation of what is said.
        translation_language: Language of the translations, e.g. es; they are kept in lower case.
        seed: Fixes the choice of validation speakers.
        jobs: Processes that decode clips.
        strict: Stop at the first clip that cannot be used.
        check: Only look at the folder and say what is there and what is missing.
    """
    if check:
        look(corpus)
        return
    if out is None:
        raise UserError("prepare lrs3: missing OUT; give the folder to write, or --check to look at the corpus only")
    clips, left_out = find_clips(corpus)
    check_places(corpus, out)
    inputs = [path for path in (corpus, valid_ids, alignments, translations) if path is not None]
    settings: dict[str, object] = {"max_s": max_s, "valid_clips": valid_clips, "seed": seed}
    settings["translation_language"] = translation_language if translations else None
    stage = Stage(out, inputs, settings)
    if stage.is_current():
        return
    valid = read_ids(valid_ids, clips) if valid_ids else choose_valid(clips, valid_clips, seed)
    digest = list_digest(f"{speaker}/{name}" for speaker, name in valid)
    say(f"validation: {len(valid)} clips of trainval, list {digest}{'' if valid_ids else f' (seed {seed})'}")
    if alignments:
        clips = with_alignments(clips, alignments)
    if translations:
        clips, without = with_translations(clips, translations, translation_language)
        left_out += without
        if any(clip.translation for clip in clips if clip.split == "pretrain"):
            say(f"clips of pretrain longer than {max_s:g} s are cut at pauses: their parts have no translation")
    clips = [
        replace(clip, split="valid") if clip.split == "trainval" and (clip.speaker, clip.name) in valid else clip
        for clip in clips
    ]
    read = functools.partial(read_clip, max_frames=math.floor(max_s * FRAMES_PER_S))
    write_splits(stage, clips, read, jobs=jobs, strict=strict, title=corpus_of(corpus), left_out=left_out)


def corpus_of(corpus: Path) -> str:
    """`lrs3`, or what the maker of a stand-in in its layout wrote into STAND_IN."""
    note = corpus / STAND_IN
    return note.read_text(encoding="utf-8").strip() if note.is_file() else "lrs3"


def find_clips(corpus: Path) -> tuple[list[Clip], list[tuple[str, str]]]:
    """All clips by split, speaker and name; and (item, reason) of transcripts without a clip.

    Raises UserError if the corpus, or a part of it, is not there.
    """
    there = [folder for folder in FOLDERS if (corpus / folder).is_dir()]
    if not there:
        raise not_there(
            corpus,
            "LRS3",
            "nothing of it is there",
            ABOUT,
            lambda place: all((place / one).is_dir() for one in FOLDERS),
        )
    if missing := [folder for folder in FOLDERS if folder not in there]:
        say(f"{corpus}: no {', no '.join(missing)}: going on with {', '.join(there)}")
    clips, left_out = [], []
    for split in there:
        videos = sorted((corpus / split).glob("*/*.mp4"))
        texts = set((corpus / split).glob("*/*.txt"))
        for video in videos:
            text = video.with_suffix(".txt")
            clips.append(Clip(split=split, speaker=video.parent.name, name=video.stem, media=video, transcript=text))
            texts.discard(text)
        left_out += [(str(text), f"{text}: a transcript without its clip {text.stem}.mp4") for text in sorted(texts)]
    if not clips:
        raise UserError(f"{corpus}: no clip in {', '.join(there)}; expected {LAYOUT}")
    return clips, left_out


def look(corpus: Path) -> None:
    """Say what of LRS3 is in the folder and what is missing; opens no clip. Raises UserError if something is."""
    clips, left_out = find_clips(corpus)
    wrong = [reason for _, reason in left_out]
    for split in FOLDERS:
        here = [clip for clip in clips if clip.split == split]
        speakers = len({clip.speaker for clip in here})
        silent = [clip for clip in here if clip.transcript is None or not clip.transcript.exists()]
        say(f"{corpus / split}: {len(here)} clips of {speakers} speakers, {len(silent)} without transcript")
        wrong += [f"{clip.media}: a clip without its transcript {clip.name}.txt" for clip in silent]
        if not here:
            wrong.append(f"{corpus / split}: missing or empty")
    in_training = {clip.speaker for clip in clips if clip.split != "test"}
    both = sorted(in_training & {clip.speaker for clip in clips if clip.split == "test"})
    if both:
        say(f"{len(both)} speaker(s) of test are also in pretrain or trainval: {', '.join(both[:3])}")
    for line in wrong[:10]:
        say(line)
    if wrong:
        raise UserError(f"{corpus}: {len(wrong)} thing(s) missing (see above); expected {LAYOUT}")
    say(f"{corpus}: complete")


def choose_valid(clips: Sequence[Clip], wanted: int, seed: int) -> set[tuple[str, str]]:
    """(speaker, name) of the clips of trainval to validate on: speakers that pretrain does not have come first."""
    trainval = [(clip.speaker, clip.name) for clip in clips if clip.split == "trainval"]
    heard = {clip.speaker for clip in clips if clip.split == "pretrain"}
    wanted = min(wanted, math.ceil(len(trainval) / 10))
    return pick(trainval, wanted, seed, "lrs3 validation", rather_not=heard)


def read_ids(path: Path, clips: Sequence[Clip]) -> set[tuple[str, str]]:
    """(speaker, name) of the clips that the file lists. Raises UserError if one is not of trainval."""
    known = {(clip.split, clip.speaker, clip.name) for clip in clips}
    valid, absent = set(), []
    for number, line in enumerate(read_lines(path), start=1):
        parts = line.split()[0].removesuffix(".mp4").removesuffix(".txt").split("/") if line.strip() else []
        if not parts:
            continue
        split, speaker, name = ["trainval", "", "", *parts][-3:] if len(parts) > 2 else ["trainval", *parts, "", ""][:3]
        if split != "trainval" or (("test", speaker, name) in known and ("trainval", speaker, name) not in known):
            raise UserError(f"{path}:{number}: expected a clip of trainval, found {line.strip()}; correct the list")
        if ("trainval", speaker, name) in known:
            valid.add((speaker, name))
        else:
            absent.append(line.strip())
    if not valid:
        raise UserError(f"{path}: none of its clips is in trainval; expected lines like SPEAKER/CLIP")
    if absent:
        say(f"{path}: {len(absent)} of its clips are not in trainval, such as {absent[0]}")
    return valid


def with_translations(clips: Sequence[Clip], path: Path, language: str) -> tuple[list[Clip], list[tuple[str, str]]]:
    """The clips with their translations, and (item, reason) of lines that name a clip and nothing else.

    Raises UserError for a line that is not a clip, a tab and a text, a clip that comes twice, or if no clip has one.
    """
    names: dict[str, list[str]] = {}  # as clips may be called -> their ids
    for clip in clips:
        for name in (f"{clip.split}/{clip.speaker}/{clip.name}", f"{clip.speaker}/{clip.name}"):
            names.setdefault(name, []).append(clip.id)
    told: dict[str, str] = {}
    empty, absent = [], []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        fields = line.split("\t")
        if len(fields) != 2:
            raise UserError(f"{path}:{number}: expected a clip, a tab and its translation, found {line!r}; mend it")
        name = fields[0].strip().removesuffix(".mp4").removesuffix(".txt")
        if not clean(fields[1]):
            empty.append((name, f"{path}:{number}: no translation of {name}; the clip goes without"))
        elif name not in names:
            absent.append(name)
        named = names.get(name, [])
        if len(named) > 1 or (named and named[0] in told):
            wrong = "is in several splits; write SPLIT/SPEAKER/CLIP" if len(named) > 1 else "comes twice; keep one line"
            raise UserError(f"{path}:{number}: {name} {wrong}")
        told |= dict.fromkeys(named, clean(fields[1]))
    told = {clip_id: text for clip_id, text in told.items() if text}
    if not told:
        name = f"{clips[0].split}/{clips[0].speaker}/{clips[0].name}"
        raise UserError(f"{path}: no translation of a clip of this corpus; expected lines like {name}<TAB>TRANSLATION")
    say(f"{path}: translations ({language}) of {len(told)} of {len(clips)} clips")
    if absent:
        say(f"{path}: {len(absent)} of its clips are not in the corpus, such as {absent[0]}")
    return [replace(clip, translation={language: told[clip.id]}) if clip.id in told else clip for clip in clips], empty


def read_clip(clip: Clip, audio: Path, max_frames: int) -> list[MonoCut]:
    """One clip as a cut, or several if it is one of pretrain and too long; BadItem if it cannot be used."""
    transcript = read_transcript(clip.transcript or clip.media.with_suffix(".txt"))
    tiers: Alignment = {"word": transcript.words} | align.read(clip.alignment)
    whole = to_cut(clip, audio, need_video=True)
    num_frames = round(whole.duration * FRAMES_PER_S)
    if clip.split != "pretrain" or num_frames <= max_frames:
        tiers = {tier: within(items, 0.0, whole.duration) for tier, items in tiers.items()}
        cut = supervise(whole, clip.speaker, transcript.text, "en", tiers)
        if clip.translation:
            cut.supervisions[0].custom = {"translation": clip.translation}
        return [cut]
    cuts = []
    try:
        segments = split_at_pauses(transcript.words, num_frames, max_frames)
    except BadItem as error:
        raise BadItem(f"{clip.media}: {error}") from None
    for number, segment in enumerate(segments):
        start_s, end_s = segment.start / FRAMES_PER_S, segment.end / FRAMES_PER_S
        cut = replace(whole, id=f"{clip.id}-{number}", start=start_s, duration=end_s - start_s)
        cut.custom = dict(whole.custom or {})
        text = clean(" ".join(word.symbol for word in transcript.words[segment.first : segment.last]))
        parts = {tier: within(items, start_s, end_s) for tier, items in tiers.items()}
        cuts.append(supervise(cut, clip.speaker, text, "en", parts))
    return cuts


def read_transcript(path: Path) -> Transcript:
    """Text, and the words with their times if the file has them; in lower case. Raises BadItem."""
    lines = read_lines(path)
    text = next((clean(line.partition(":")[2]) for line in lines if line.startswith("Text:")), "")
    if not text:
        raise BadItem(f"{path}: expected a first line `Text: ...` with words, found none; the clip is left out")
    words = []
    start = next((n for n, line in enumerate(lines, start=1) if line.startswith("WORD START END")), len(lines))
    for number, line in enumerate(lines[start:], start=start + 1):
        fields = line.split()
        if not fields:
            break
        try:
            begin, end = float(fields[1]), float(fields[2])
        except (ValueError, IndexError):
            raise BadItem(f"{path}:{number}: expected WORD START END SCORE, found {line!r}; left out") from None
        if not 0 <= begin <= end:
            raise BadItem(f"{path}:{number}: the word ends before it begins ({line}); the clip is left out")
        if word := clean(fields[0]):
            words.append(AlignmentItem(word, begin, round(end - begin, 4)))
    return Transcript(text, words)
