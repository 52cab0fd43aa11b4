"""GigaSpeech: audiobooks, podcasts and YouTube, 10,000 hours of sound in long recordings with times and transcripts.

    CORPUS/GigaSpeech.json                          {..., "audios": [{aid, path, source, subsets, segments}, ...]}
    CORPUS/audio/{audiobook,podcast,youtube}/P0000/AID.opus

A segment is {sid, begin_time, end_time, text_tn, speaker, subsets}. The list is more than 10 GB: it is read entry by
entry. VATLM's unpaired audio is what XL has of YouTube, 3,846 h (Sec. IV-A); there its transcripts are not looked at.

Chen et al.: GigaSpeech, an evolving, multi-domain ASR corpus with 10,000 hours of transcribed audio, 2021.
"""

import itertools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lhotse import MonoCut

from mmspeech.corpora.splits import Clip, SetAside, check_places, not_there, part_of, supervise, to_cut, write_splits
from mmspeech.corpora.transcripts import clean
from mmspeech.errors import BadItem, UserError
from mmspeech.files import Stage

LIST = "GigaSpeech.json"
HELD_OUT = {"DEV": "valid", "TEST": "test"}  # subsets that are never trained on
PUNCTUATION = re.compile(r"<(?:COMMA|PERIOD|QUESTIONMARK|EXCLAMATIONPOINT)>")
NOT_SPEECH = re.compile(r"<(?:SIL|MUSIC|NOISE|OTHER)>")  # segments of DEV and TEST in which nobody is understood
UNKNOWN = "N/A"  # in place of a speaker
CHUNK = 1 << 20  # characters that are read at a time
LONGEST_ENTRY = 1 << 27  # characters; what is longer is no entry but a mistake in the file
AUDIOS = re.compile(r'"audios"\s*:\s*\[')
BETWEEN = re.compile(r"[\s,]*")
ABOUT = (
    "GigaSpeech (10,000 h of sound with transcripts, after a form is filled in at github.com/SpeechColab/GigaSpeech) "
    f"is a folder with {LIST} and audio/{{audiobook,podcast,youtube}}/P0000/AID.opus"
)


@dataclass(frozen=True, kw_only=True)
class LongRecording(Clip):
    """One file of sound, with those of its segments that are wanted, as the list has them."""

    segments: list[dict[str, Any]]

    @property
    def id(self) -> str:
        """GigaSpeech's own."""
        return self.media.stem


def prepare(
    corpus: Path,
    out: Path,
    subset: Literal["XS", "S", "M", "L", "XL"] = "XL",
    source: Literal["all", "audiobook", "podcast", "youtube"] = "all",
    jobs: int = 4,
    strict: bool = False,
) -> None:
    """GigaSpeech, in its own layout -> cuts of sound, one for each segment.

    CORPUS holds GigaSpeech.json and audio/. OUT receives cuts_trainval.jsonl.gz (the segments of the subset),
    cuts_valid.jsonl.gz and cuts_test.jsonl.gz (DEV and TEST, whatever the subset and source; cuts_pretrain.jsonl.gz
    stays empty: all of GigaSpeech has transcripts), the recordings as FLAC, and rejected.jsonl with every recording
    and segment that was set aside and the reason. Stopped, it goes on where it was. Does nothing if the output is
    current.

    Example: `mmspeech prepare gigaspeech /data/GigaSpeech exp/gigaspeech/data --subset XL --source youtube`

    Args:
        corpus: The folder that holds GigaSpeech.json.
        out: Folder to write.
        subset: How much is trained on: XS 10 h, S 250 h, M 1,000 h, L 2,500 h, XL 10,000 h.
        source: What is trained on: all, or audiobook, podcast or youtube alone.
        jobs: Processes that decode recordings.
        strict: Stop at the first recording or segment that cannot be used.
    """
    if not (corpus / LIST).is_file():
        raise not_there(corpus, "GigaSpeech", f"no {LIST} is there", ABOUT, lambda place: (place / LIST).is_file())
    check_places(corpus, out)
    stage = Stage(out, [corpus], {"subset": subset, "source": source})
    if stage.is_current():
        return
    found: Iterator[LongRecording] = find_recordings(corpus, subset, source)
    first = next(found, None)
    if first is None:
        raise UserError(
            f"{corpus / LIST}: no segment of subset {subset} and source {source}, nor DEV or TEST; get the whole list"
        )
    found = itertools.chain([first], found)
    write_splits(stage, found, read_recording, jobs=jobs, strict=strict, title="gigaspeech")


def find_recordings(corpus: Path, subset: str, source: str) -> Iterator[LongRecording]:
    """The recordings that have segments of a subset, of a source, or of DEV and TEST; lazily, in the list's order."""
    for entry in read_list(corpus / LIST):
        wanted = HELD_OUT | ({subset: "trainval"} if source in ("all", entry.get("source")) else {})
        for name, split in wanted.items():
            segments = [one for one in entry.get("segments", ()) if f"{{{name}}}" in one.get("subsets", ())]
            if segments:
                path = corpus / str(entry.get("path"))
                yield LongRecording(
                    split=split, speaker=str(entry.get("source")), name=f"{path.parent.name}/{path.stem}", media=path,
                    transcript=corpus / LIST, segments=segments,
                )  # fmt: skip


def read_list(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of the list `audios`, one at a time. Raises UserError where the file is no such list, or cut off."""
    decoder = json.JSONDecoder()
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(CHUNK)
            begin = AUDIOS.search(text)
            if begin is None:
                raise UserError(f'{path}: expected a list "audios" near its beginning, found none; download it again')
            place = begin.end()
            while True:
                place = BETWEEN.match(text, place).end()  # type: ignore[union-attr]  # matches nothing, too
                if text.startswith("]", place):
                    return
                try:
                    entry, place = decoder.raw_decode(text, place)
                except ValueError as error:  # most often only because its end is not read yet
                    rest = len(text) - place
                    more = file.read(max(CHUNK, rest)) if rest < LONGEST_ENTRY else ""
                    if not more:
                        where = f"the entry that begins with {text[place : place + 40]!r}" if rest else "its end"
                        raise UserError(f"{path}: cut off or broken at {where}; download it again") from error
                    text, place = text[place:] + more, 0
                else:
                    yield entry
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected JSON in UTF-8 ({error}); download it again") from None


def read_recording(recording: LongRecording, audio: Path) -> list[MonoCut | SetAside]:
    """One recording as the cuts of its segments, those that are wrong set aside; BadItem if it cannot be used."""
    whole = to_cut(recording, audio, need_video=False)
    found = [read_segment(segment, recording, whole) for segment in recording.segments]
    cuts = [one for one in found if one is not None]
    if not cuts:
        raise BadItem(f"{recording.media}: expected segments of speech, found none; the recording is left out")
    return cuts


def read_segment(segment: dict[str, Any], recording: LongRecording, whole: MonoCut) -> MonoCut | SetAside | None:
    """A segment as a cut; None if nobody speaks in it, or not one sample of the recording is its own."""
    where = str(segment.get("sid", recording.id))
    try:
        name, text = str(segment["sid"]), str(segment["text_tn"])
        start_s, end_s = float(segment["begin_time"]), float(segment["end_time"])
        if not 0 <= start_s <= end_s < math.inf:
            raise ValueError(f"{start_s} to {end_s} s")
        cut = None if NOT_SPEECH.search(text) else part_of(whole, recording, name, start_s, end_s)
    except (KeyError, TypeError, ValueError) as error:
        return SetAside(
            where,
            f"{recording.transcript}: {where}: expected sid, begin_time, end_time and text_tn ({error!r} is wrong); "
            "the segment is left out",
        )
    except BadItem as error:
        return SetAside(where, f"{where}: {error}")
    if cut is None:
        return None
    speaker = segment.get("speaker", UNKNOWN)
    words = clean(PUNCTUATION.sub(" ", text))
    return supervise(cut, None if speaker == UNKNOWN else speaker, words or None, "en")
