"""LibriSpeech: audiobooks, sound alone, every utterance with its text; Lhotse's own recipe reads each of them.

    CORPUS/PART/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac
    CORPUS/PART/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt      lines of id and text, in capitals

The sound is 16 kHz mono FLAC already: cuts name the corpus's own files, nothing is copied.

Panayotov, Chen, Povey, Khudanpur: Librispeech: an ASR corpus based on public domain audio books, 2015.
"""

from dataclasses import dataclass
from pathlib import Path

import soundfile
from lhotse import MonoCut

from mmspeech.console import say
from mmspeech.corpora.splits import Clip, check_places, not_there, supervise, write_splits
from mmspeech.corpora.transcripts import clean, read_lines
from mmspeech.errors import BadItem, UserError
from mmspeech.files import Stage
from mmspeech.media import RATE_HZ

PARTS = {  # of LibriSpeech and of Mini LibriSpeech -> which cuts they become
    **dict.fromkeys(("train-clean-100", "train-clean-360", "train-other-500", "train-clean-5"), "trainval"),
    **dict.fromkeys(("dev-clean", "dev-other", "dev-clean-2"), "valid"),
    **dict.fromkeys(("test-clean", "test-other"), "test"),
}
ABOUT = (
    "LibriSpeech (960 h of audiobooks, CC BY 4.0, openslr.org/12; Mini LibriSpeech: openslr.org/31) is a folder with "
    "any of train-clean-100, train-clean-360, train-other-500, dev-clean, dev-other, test-clean, test-other, each with "
    "SPEAKER/CHAPTER/*.flac and SPEAKER-CHAPTER.trans.txt"
)


@dataclass(frozen=True, kw_only=True)
class Utterance(Clip):
    """One line of a chapter's transcripts."""

    part: Path
    line: str

    @property
    def id(self) -> str:
        """LibriSpeech's own, which says speaker and chapter."""
        return self.name


def prepare(corpus: Path, out: Path, jobs: int = 4, strict: bool = False) -> None:
    """LibriSpeech, in its own layout -> cuts of sound with transcripts.

    CORPUS holds any of the parts (train-clean-100 ... test-other), or a folder LibriSpeech with them. OUT receives
    cuts_{pretrain,trainval,valid,test}.jsonl.gz (all train parts are trainval, all dev parts valid, all test parts
    test; pretrain stays empty) and rejected.jsonl. The sound stays where it is. Does nothing if the output is current.

    Example: `mmspeech prepare librispeech /data/LibriSpeech exp/librispeech/data`

    Args:
        corpus: The folder that holds train-clean-100 and others, from openslr.org/12.
        out: Folder to write.
        jobs: Processes that look at the sound files.
        strict: Stop at the first utterance that cannot be used.
    """
    utterances, left_out = find_utterances(corpus.absolute())
    check_places(corpus, out)
    stage = Stage(out, [corpus])
    if stage.is_current():
        return
    write_splits(stage, utterances, read_utterance, jobs=jobs, strict=strict, title="librispeech", left_out=left_out)


def find_utterances(corpus: Path) -> tuple[list[Utterance], list[tuple[str, str]]]:
    """All lines of all chapters, and (item, reason) of transcripts that cannot be read and sound that has none.

    Raises UserError if no part of the corpus is there.
    """
    corpus = corpus / "LibriSpeech" if (corpus / "LibriSpeech").is_dir() else corpus
    parts = [part for part in PARTS if (corpus / part).is_dir()]
    if not parts:
        raise not_there(
            corpus,
            "LibriSpeech",
            "no part of it is there",
            ABOUT,
            lambda place: any((place / one).is_dir() for one in PARTS),
        )
    say(f"{corpus}: {', '.join(parts)}")
    utterances: list[Utterance] = []
    left_out: list[tuple[str, str]] = []
    for part in parts:
        silent = set((corpus / part).glob("*/*/*.flac"))
        for path in sorted((corpus / part).glob("*/*/*.trans.txt")):
            try:
                lines = [line for line in read_lines(path) if line.strip()]
            except BadItem as error:
                left_out.append((str(path), str(error)))
                continue
            for line in lines:
                name = line.split()[0]
                sound = path.with_name(f"{name}.flac")
                silent.discard(sound)
                utterances.append(
                    Utterance(
                        split=PARTS[part], speaker=path.parts[-3], name=name, media=sound, transcript=path,
                        part=corpus / part, line=line,
                    )
                )  # fmt: skip
        left_out += [(str(path), f"{path}: its chapter has no transcript of it; left out") for path in sorted(silent)]
    if not utterances:
        raise UserError(f"{corpus}: no transcript in {', '.join(parts)}; expected LibriSpeech. {ABOUT}")
    return utterances, left_out


def read_utterance(utterance: Utterance, audio: Path) -> list[MonoCut]:
    """One utterance as a cut; BadItem if it cannot be used. `audio` is not needed: the sound stays in the corpus."""
    # Here, not above: with it lhotse imports its recipes of all corpora, and other commands need none.
    from lhotse.recipes.librispeech import parse_utterance

    if len(utterance.line.split(maxsplit=1)) < 2:
        raise BadItem(f"{utterance.transcript}: expected words behind {utterance.id}, found none; left out")
    if utterance.media.parent != utterance.part / Path(*utterance.id.split("-")[:-1]):
        raise BadItem(f"{utterance.media}: its id {utterance.id} is not that of its folders; left out")
    check_sound(utterance.media)
    recording, segment = parse_utterance(utterance.part, utterance.line, {})
    return [supervise(recording.to_cut(), utterance.speaker, clean(segment.text), "en")]


def check_sound(path: Path) -> None:
    """Raise BadItem unless the file is 16 kHz mono and whole: its last sample can be read."""
    if not path.is_file():
        raise BadItem(f"{path}: no such file, but a transcript of it; left out")
    try:
        with soundfile.SoundFile(path) as sound:
            if (sound.samplerate, sound.channels) != (RATE_HZ, 1):
                found = f"{sound.samplerate} Hz, {sound.channels} channels"
                raise BadItem(f"{path}: expected {RATE_HZ} Hz and one channel, found {found}; left out")
            sound.seek(max(sound.frames - 1, 0))
            whole = len(sound.read(1)) == 1
    except soundfile.LibsndfileError as error:
        raise BadItem(f"{path}: cannot be read ({error}); copy it again") from None
    if not whole:
        raise BadItem(f"{path}: cut off; copy it again")
