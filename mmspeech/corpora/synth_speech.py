"""Speech for the embedded corpus: espeak-ng's, with the times of its phones and words.

The library and its voices come in the wheel `espeakng_loader`. Its samples differ slightly from call to call, the
length too: what was spoken is stored, never hashed, and the times always come from the same call as the samples.
"""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

from mmspeech.data import espeak
from mmspeech.errors import BadItem

RATE_HZ = 16000
SHORTEST_S = 0.001  # of a phone; label files have less precision than that

ACCENTS = ("en", "en-US", "en-GB-x-rp", "en-US-nyc")  # more would need more speakers than minutes allow

# espeak-ng's voice variants that sound like a person: no whispers, robots or croaks, and none whose cepstra of the same
# phones lie far from those of all others.
_TIMBRES = """
m1 m2 m3 m4 m5 m6 m7 m8 f1 f2 f3 f4 f5 Alex Andrea Annie Denis Diogo Gene Henrique Hugo Mario Michael Mike Nguyen Reed
adam anika announcer antonio aunty belinda benjamin boris caleb david ed edward edward2 grandma grandpa gustave iven3
john klatt3 klatt4 linda marcelo max michel miguel mike2 pablo paul pedro quincy rob robert sandro victor
"""
TIMBRES = tuple(_TIMBRES.split())
_HIGH_TIMBRES = "f1 f2 f3 f4 f5 Andrea Annie anika aunty belinda grandma linda"
HIGH_TIMBRES = frozenset(_HIGH_TIMBRES.split())  # women's; espeak-ng has few of them
TRACTS = (0.92, 1.08)  # lengths of vocal tracts, relative to the timbre's own

# espeak-ng's phone names, without stress marks -> ARPABET.
PHONES = {
    "0": "AA", "A:": "AA", "A@": "AA", "a": "AE", "aa": "AE", "a#": "AH", "@": "AH", "@2": "AH", "@5": "AH", "V": "AH",
    "3": "ER", "3:": "ER", "E": "EH", "e": "EH", "e@": "EH", "E@": "EH", "I": "IH", "I2": "IH", "I#": "IH", "i": "IY",
    "i:": "IY", "i@": "IY", "i@3": "IY", "u": "UW", "u:": "UW", "U": "UH", "U@": "UH", "O": "AO", "O:": "AO",
    "O2": "AO", "o": "AO", "o@": "AO", "O@": "AO", "oU": "OW", "eI": "EY", "aI": "AY", "aI2": "AY", "aI3": "AY",
    "aI@": "AY", "aU": "AW", "aU@": "AW", "OI": "OY", "b": "B", "p": "P", "t": "T", "t#": "T", "t2": "T", "t[": "T",
    "d": "D", "d#": "D", "d[": "D", "k": "K", "g": "G", "f": "F", "v": "V", "T": "TH", "D": "DH", "s": "S", "z": "Z",
    "S": "SH", "Z": "ZH", "tS": "CH", "dZ": "JH", "h": "HH", "m": "M", "n": "N", "n-": "N", "N": "NG", "l": "L",
    "l#": "L", "l-": "L", "@L": "L", "r": "R", "r-": "R", "r2": "R", "j": "Y", "w": "W", "w#": "W", "*": "T",
}  # fmt: skip
NOT_PHONES = {";", "?", "", "|"}  # palatalisation, glottal onset, joins: they belong to the phone before
SILENCE = "sil"


class Mark(NamedTuple):
    """A phone or a word and when it sounds, in seconds."""

    label: str
    start_s: float
    end_s: float

    def later(self, seconds: float) -> "Mark":
        """The same mark, moved in time."""
        return Mark(self.label, self.start_s + seconds, self.end_s + seconds)


class Voice(NamedTuple):
    """How one speaker sounds."""

    accent: str
    timbre: str
    tract: float  # length of the vocal tract, relative to the timbre's own: formants and pitch lie lower in longer ones
    words_per_minute: int
    pitch: int  # 0-100, espeak-ng's scale; 50 is the timbre's own
    pitch_range: int


class Speech(NamedTuple):
    """What was spoken: samples (S,) float32 in [-1, 1] at 16 kHz; phones and words with their times."""

    samples: NDArray[np.float32]
    phones: list[Mark]
    words: list[Mark]


def draw_voice(timbre: str, rng: np.random.Generator) -> Voice:
    """A speaker's accent, vocal tract, rate and pitch; the timbre is given, so that no two splits share one."""
    return Voice(
        accent=str(rng.choice(ACCENTS)),
        timbre=timbre,
        tract=round(float(rng.uniform(*TRACTS)), 3),
        words_per_minute=int(rng.integers(140, 201)),
        pitch=int(rng.integers(30, 71)),
        pitch_range=int(rng.integers(30, 71)),
    )


def speak(words: Sequence[str], spoken: Sequence[str], voice: Voice) -> Speech:
    """Speak one sentence.

    Args:
        words: the words as they are written in transcripts.
        spoken: what espeak-ng reads for each word: its spelling, or phones in double square brackets.
        voice: who speaks.

    Raises:
        BadItem: espeak-ng left out a word or named a phone that `PHONES` does not know.
    """
    samples, events = _synthesize(" ".join(spoken), voice)
    starts = np.cumsum([1, *(len(word) + 1 for word in spoken)])  # espeak-ng counts characters from 1
    phones: list[Mark] = []
    owners: list[int] = []  # which word each phone belongs to, -1 for silence
    for (start_s, name, position), (end_s, _, _) in zip(
        events, [*events[1:], (len(samples) / RATE_HZ, "", 0)], strict=True
    ):
        if name in NOT_PHONES and phones:
            phones[-1] = phones[-1]._replace(end_s=end_s)
            continue
        silent = name.startswith("_")
        if not silent and name not in PHONES:
            raise BadItem(f"espeak-ng voice {voice.accent}+{voice.timbre}: unknown phone `{name}`; clip left out")
        owners.append(-1 if silent else int(np.searchsorted(starts, position, side="right")) - 1)
        phones.append(Mark(SILENCE if silent else PHONES[name], start_s, end_s))
    marks = []
    for i, word in enumerate(words):
        own = [phone for phone, owner in zip(phones, owners, strict=True) if owner == i]
        if not own:
            raise BadItem(f"espeak-ng voice {voice.accent}+{voice.timbre}: said nothing for `{word}`; clip left out")
        marks.append(Mark(word, own[0].start_s, own[-1].end_s))
    return Speech(samples, _without_instants(phones), marks)


def _without_instants(phones: list[Mark]) -> list[Mark]:
    """The phones without those that last no time (a dropped r): the one before takes what there is of it."""
    kept: list[Mark] = []
    for phone in phones:
        if phone.end_s - phone.start_s > SHORTEST_S:
            kept.append(phone)
        elif kept:
            kept[-1] = kept[-1]._replace(end_s=max(kept[-1].end_s, phone.end_s))
    return kept


def _synthesize(text: str, voice: Voice) -> tuple[NDArray[np.float32], list[tuple[float, str, int]]]:
    """Samples at 16 kHz and (start in seconds, espeak-ng's phone name, position in the text) of every phone."""
    engine = espeak.start_engine()
    name = f"{voice.accent}+{voice.timbre}"
    if not engine.set_voice(name):
        raise BadItem(f"espeak-ng has no voice {name}; clip left out")
    # Setting the voice resets these, so they come after it.
    for parameter, value in (
        (1, round(voice.words_per_minute * voice.tract)),
        (3, voice.pitch),
        (4, voice.pitch_range),
    ):
        engine.library.espeak_SetParameter(parameter, value, 0)
    engine.samples.clear()
    engine.events.clear()
    data = text.encode()
    utf8, phonemes_in_brackets = 0x1, 0x100
    status = engine.library.espeak_Synth(
        data, ctypes.c_size_t(len(data) + 1), 0, 1, 0, utf8 | phonemes_in_brackets, None, None
    )
    if status != 0:
        raise BadItem(f"espeak-ng could not speak `{text}` (status {status}); clip left out")
    pcm = np.frombuffer(b"".join(engine.samples), np.int16).astype(np.float32) / 32768
    # Played slower, a voice is that of a longer tract; it was spoken as much faster.
    rate_hz = engine.rate_hz / voice.tract
    up, down = RATE_HZ // 50, round(rate_hz / 50)  # about 320 / 441
    rate_hz = down * 50
    events = []
    word_start = None
    for kind, position, sample, phone in engine.events:
        if kind == WORD:
            word_start = sample
        elif kind == PHONEME:
            # The closure of a word's first stop lies between the word's event and the phone's: it is the phone's own.
            start = word_start if word_start is not None and sample - word_start < 0.1 * rate_hz else sample
            events.append((start / rate_hz, phone.decode().lstrip("',%="), position))
            word_start = None
    return resample_poly(pcm, up, down).astype(np.float32), events


WORD, PHONEME = 1, 7  # espeak-ng's kinds of events


def check_installed() -> None:
    """Raises UserError, with the way out, unless espeak-ng can be used; before any work is done."""
    espeak.start_engine()
