"""A stand-in for LibriSpeech, in its layout: digits read aloud, without pictures, by people whom nobody has seen.

Out of domain beside the embedded corpus as audiobooks are beside talks: voices (the timbres that it keeps for noise)
and accents that no talking face has, read slowly and evenly into a quiet microphone. The words are the same, so that
a recognizer tuned on it can be tried on the talking faces.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

from mmspeech import files, media
from mmspeech.console import say
from mmspeech.corpora import synth_sound, synth_speech, synth_text
from mmspeech.errors import UserError
from mmspeech.seeds import numpy_rng

ACCENTS = ("en-029", "en-GB-scotland", "en-GB-x-gbclan", "en-GB-x-gbcwmd")  # none of those that talk
WORDS_PER_MINUTE = (90, 131)  # 140 to 200 in talks
PITCH_RANGE = (5, 26)  # 30 to 70 in talks
DEV_SHARE = 0.1  # of the readers


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """What one reader reads; readers read one chapter each."""

    part: str
    reader: int
    timbre: str
    utterances: int
    seed: int

    @property
    def id(self) -> str:
        """Its name among the rejected, and the beginning of its utterances' ids."""
        return f"{self.reader}-1"


def prepare(out: Path, seed: int = 0, clips: int = 800, readers: int = 40, jobs: int = 2) -> None:
    """Make a small corpus of read digits in LibriSpeech's layout: sound and text, no pictures.

    OUT receives LibriSpeech/train-clean-100 and dev-clean (a tenth of the readers). Its voices, accents and pace are
    none of those of `prepare synth` with the same seed; its words are. A clip lasts about 3.4 seconds. Does nothing if
    OUT is current. Next: `mmspeech prepare librispeech OUT/LibriSpeech ...`

    Example: `mmspeech prepare synth-read exp/read --seed 0`

    Args:
        out: Folder to write.
        seed: Fixes texts and readers.
        clips: Utterances, of all readers together.
        readers: At least 2, one of them for validation.
        jobs: Processes that make sound.
    """
    chapters = plan_chapters(seed, clips, readers)
    stage = files.Stage(out, settings={"seed": seed, "clips": clips, "readers": readers})
    if stage.is_current():
        return
    synth_speech.check_installed()
    with stage.writing() as folder, files.Rejects(folder / "rejected.jsonl") as rejects:
        read = functools.partial(read_aloud, folder=folder / "LibriSpeech")
        made = list(files.parallel_map(read, chapters, jobs=jobs, rejects=rejects, title="read digits"))
        if len(made) < 0.9 * readers:
            reason = (folder / "rejected.jsonl").read_text().splitlines()[0]
            raise UserError(f"{out}: only {len(made)} of {readers} readers could be heard; the first reason: {reason}")
    say(f"{out}: {len(made)} readers, {sum(made) / 60:.1f} minutes")


def plan_chapters(seed: int, clips: int, readers: int) -> list[Chapter]:
    """All chapters; the first readers train. Raises UserError for sizes that cannot be."""
    if not 2 <= readers <= clips:
        raise UserError(f"readers: {readers} of {clips} clips; expected 2 or more, and a clip for each")
    timbres = synth_sound.timbres_of(seed)["noise"]
    held_out = max(1, round(DEV_SHARE * readers))
    return [
        Chapter(
            part="train-clean-100" if i < readers - held_out else "dev-clean",
            reader=1000 + i,
            timbre=timbres[i % len(timbres)],
            utterances=len(range(i, clips, readers)),
            seed=seed,
        )
        for i in range(readers)
    ]


def voice_of(chapter: Chapter) -> synth_speech.Voice:
    """How its reader sounds."""
    rng = numpy_rng(chapter.seed, "synth reader", chapter.reader)
    return synth_speech.draw_voice(chapter.timbre, rng)._replace(
        accent=str(rng.choice(ACCENTS)),
        words_per_minute=int(rng.integers(*WORDS_PER_MINUTE)),
        pitch_range=int(rng.integers(*PITCH_RANGE)),
    )


def read_aloud(chapter: Chapter, folder: Path) -> float:
    """Write a chapter: a FLAC for each utterance, and the texts; returns how many seconds it lasts."""
    place = folder / chapter.part / str(chapter.reader) / "1"
    lines, seconds = [], 0.0
    for number in range(chapter.utterances):
        name = f"{chapter.id}-{number:04d}"
        rng = numpy_rng(chapter.seed, "synth read", name)
        sentence = synth_text.digits(rng)
        samples, _, _ = synth_sound.record(sentence, voice_of(chapter), 0.0, rng)
        media.write_flac(place / f"{name}.flac", [samples])
        lines.append(f"{name} {' '.join(sentence.words).upper()}\n")
        seconds += len(samples) / media.RATE_HZ
    (place / f"{chapter.id}.trans.txt").write_text("".join(lines))
    return seconds
