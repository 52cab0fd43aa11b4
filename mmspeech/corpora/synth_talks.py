"""What the embedded corpus has beside its talking faces: text without speech, and speech without faces.

    text/sentences.txt                        sentences of the same grammar, one per line
    tedlium/data/{sph,stm}/                   talks with transcripts, in TED-LIUM's layout; to eight of them one more in
    tedlium/legacy/dev/{sph,stm}/             to validate on; phones with times of both in
    talk-alignments/SPEAKER/talk.TextGrid
    gigaspeech/GigaSpeech.json and audio/     recordings, in GigaSpeech's layout

VATLM's other three kinds of data (Sec. IV-A). Speakers have the timbres of pretrain and are none of its speakers; no
sentence of the test clips is among what is written or said.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from mmspeech import files
from mmspeech.console import say
from mmspeech.corpora import synth_speech, synth_text
from mmspeech.corpora.gigaspeech import LIST, UNKNOWN
from mmspeech.corpora.synth_sound import record, text_grid, timbres_of
from mmspeech.corpora.synth_speech import RATE_HZ, Mark
from mmspeech.seeds import numpy_rng

SENTENCES = 20  # of a talk
TRAINED = 8  # talks to train on for each one held out
PAUSES_S = (0.2, 0.8)  # between them
Layout = Literal["tedlium", "gigaspeech"]


class Unseen(NamedTuple):
    """Sentences of a vocabulary that no test clip says."""

    vocabulary: str
    tested: frozenset[tuple[str, ...]]

    def draw(self, rng: np.random.Generator) -> synth_text.Sentence:
        """The next one."""
        while (sentence := synth_text.VOCABULARIES[self.vocabulary](rng)).words in self.tested:
            pass
        return sentence


@dataclass(frozen=True, kw_only=True)
class Talk:
    """One long recording to make, by a speaker of its own."""

    layout: Layout
    number: int
    timbre: str
    difficulty: float
    seed: int
    place: str = "data"  # of a talk in TED-LIUM's layout

    @property
    def id(self) -> str:
        """Its name among the rejected, and in the corpus: TED-LIUM's are SPEAKER_TITLE."""
        return f"t{self.number:04d}_talk" if self.layout == "tedlium" else f"YOU{self.number:010d}"


class Said(NamedTuple):
    """A sentence of a talk, and when."""

    words: tuple[str, ...]
    start_s: float
    end_s: float


def write_sentences(folder: Path, unseen: Unseen, number: int, seed: int) -> None:
    """Write text/sentences.txt; more sentences begin with the fewer."""
    if number:
        rng = numpy_rng(seed, "synth sentences", unseen.vocabulary)
        with files.replacing(folder / "text/sentences.txt") as path, open(path, "w", encoding="utf-8") as file:
            file.writelines(f"{' '.join(unseen.draw(rng).words)}\n" for _ in range(number))
        say(f"text: {number} sentences")


def make(
    folder: Path,
    unseen: Unseen,
    seed: int,
    difficulty: float,
    talks: int,
    recordings: int,
    jobs: int,
    rejects: files.Rejects,
) -> None:
    """Write the talks and recordings."""
    timbres = timbres_of(seed)["pretrain"]
    layouts: list[tuple[Layout, str, range]] = [
        ("tedlium", "data", range(talks)),
        ("tedlium", "legacy/dev", range(talks, talks + talks // TRAINED)),
        ("gigaspeech", "", range(recordings)),
    ]
    planned = [
        Talk(layout=layout, number=i, timbre=timbres[i % len(timbres)], difficulty=difficulty, seed=seed, place=place)
        for layout, place, numbers in layouts
        for i in numbers
    ]
    if not planned:
        return
    work = functools.partial(make_talk, unseen=unseen, folder=folder)
    made = list(files.parallel_map(work, planned, jobs=jobs, rejects=rejects, title="talks"))
    if recordings:
        files.write_json(folder / "gigaspeech" / LIST, {"audios": [about for about in made if about]})
    say(f"talks, recordings: {len(made)} of {len(planned)}, of {SENTENCES} sentences each")


def make_talk(talk: Talk, unseen: Unseen, folder: Path) -> dict[str, Any] | None:
    """Speak and write one; returns what GigaSpeech's list says of it, if it is in that layout."""
    samples, phones, words, said = speak_talk(talk, unseen)
    if talk.layout == "gigaspeech":
        path = Path("audio/youtube/P0000") / f"{talk.id}.opus"
        write_opus(folder / "gigaspeech" / path, samples)
        subsets = ["{XL}"]
        segments = [
            {
                "sid": f"{talk.id}_S{i:07d}", "speaker": UNKNOWN, "begin_time": round(one.start_s, 3),
                "end_time": round(one.end_s, 3), "text_tn": " ".join(one.words).upper(), "subsets": subsets,
            }
            for i, one in enumerate(said)
        ]  # fmt: skip
        return {"aid": talk.id, "path": str(path), "source": "youtube", "subsets": subsets, "segments": segments}
    speaker, _, title = talk.id.partition("_")
    sph, stm = (folder / f"tedlium/{talk.place}/{kind}/{talk.id}.{kind}" for kind in ("sph", "stm"))
    grid = folder / f"talk-alignments/{speaker}/{title}.TextGrid"
    for path in (sph, stm, grid):
        path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(sph, samples, RATE_HZ, format="NIST", subtype="PCM_16")
    lines = [
        f"{talk.id} 1 {speaker} {one.start_s:.2f} {one.end_s:.2f} <o,f0,unknown> {' '.join(one.words)}\n"
        for one in said
    ]
    stm.write_text("".join(lines), encoding="utf-8")
    grid.write_text(text_grid(phones, words, len(samples) / RATE_HZ), encoding="utf-8")
    return None


def speak_talk(talk: Talk, unseen: Unseen) -> tuple[NDArray[np.float32], list[Mark], list[Mark], list[Said]]:
    """The sound (S,) of a talk, its phones and words with their times, and its sentences with theirs."""
    voice = synth_speech.draw_voice(talk.timbre, numpy_rng(talk.seed, "synth talk voice", talk.id))
    rng = numpy_rng(talk.seed, "synth talk", talk.id)
    sounds: list[NDArray[np.float32]] = []
    phones: list[Mark] = []
    words: list[Mark] = []
    said: list[Said] = []
    time_s = 0.0
    for _ in range(SENTENCES):
        sentence = unseen.draw(rng)
        # To hundredths, as STM files have them.
        pause = np.zeros(round(rng.uniform(*PAUSES_S) * 100) * RATE_HZ // 100, np.float32)
        spoken, own_phones, own_words = record(sentence, voice, talk.difficulty, rng)
        start_s = time_s + len(pause) / RATE_HZ
        time_s = start_s + len(spoken) / RATE_HZ
        sounds += [pause, spoken]
        phones += [mark.later(start_s) for mark in own_phones]
        words += [mark.later(start_s) for mark in own_words]
        said.append(Said(sentence.words, start_s, time_s))
    return np.concatenate(sounds), phones, words, said


def write_opus(path: Path, samples: NDArray[np.float32]) -> None:
    """Write sound (S,) at 16 kHz as Opus."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pcm = (np.clip(samples, -1, 1) * 32767).astype(np.int16)[None]
    with av.open(str(path), "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=RATE_HZ, layout="mono")
        frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
        frame.sample_rate, frame.pts = RATE_HZ, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
