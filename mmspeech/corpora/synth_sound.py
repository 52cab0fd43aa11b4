"""Sentences as sound for the embedded corpora: recorded, with the times of phones and words, by voices of each part."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmspeech.corpora import synth_lips, synth_noise, synth_speech, synth_text
from mmspeech.corpora.synth_speech import RATE_HZ, SILENCE, Mark
from mmspeech.seeds import numpy_rng

SPLITS = ("pretrain", "trainval", "test")
TIMBRE_SHARES = (0.38, 0.24, 0.22)  # of the timbres, in the same order; the noise has the rest
SAMPLES_PER_FRAME = RATE_HZ // synth_lips.FRAMES_PER_S


def record(
    sentence: synth_text.Sentence, voice: synth_speech.Voice, difficulty: float, rng: np.random.Generator
) -> tuple[NDArray[np.float32], list[Mark], list[Mark]]:
    """A sentence's sound, as long as a whole number of frames, with the times of phones and words in it."""
    speech = synth_speech.speak(sentence.words, sentence.spoken, voice)
    before = int(rng.uniform(0.12, 0.36) * RATE_HZ)
    total = before + len(speech.samples) + int(rng.uniform(0.12, 0.36) * RATE_HZ)
    total += -total % SAMPLES_PER_FRAME
    samples = np.zeros(total, np.float32)
    samples[before : before + len(speech.samples)] = synth_noise.level(speech.samples) * rng.uniform(0.5, 1.5)
    floor_db = -70.0 + 25.0 * difficulty * rng.uniform()
    samples += 10 ** (floor_db / 20) * rng.standard_normal(total, np.float32)
    later = before / RATE_HZ
    phones = [mark.later(later) for mark in speech.phones]
    return samples, phones, [mark.later(later) for mark in speech.words]


def text_grid(phones: Sequence[Mark], words: Sequence[Mark], duration_s: float) -> str:
    """Praat's TextGrid with the interval tiers `phones` and `words`; silence is `sil` and an empty word."""
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {duration_s:.5f}"]
    lines += ["tiers? <exists>", "size = 2", "item []:"]
    for number, (name, marks, gap) in enumerate((("phones", phones, SILENCE), ("words", words, "")), start=1):
        filled = synth_lips.without_gaps(marks, duration_s, gap)
        lines += [f"    item [{number}]:", '        class = "IntervalTier"', f'        name = "{name}"']
        lines += ["        xmin = 0", f"        xmax = {duration_s:.5f}", f"        intervals: size = {len(filled)}"]
        for i, mark in enumerate(filled, start=1):
            lines += [f"        intervals [{i}]:", f"            xmin = {mark.start_s:.5f}"]
            lines += [f"            xmax = {mark.end_s:.5f}", f'            text = "{mark.label}"']
    return "\n".join(lines) + "\n"


def timbres_of(seed: int) -> dict[str, list[str]]:
    """The timbres of each split and of the noise: none in two of them, the high ones spread evenly."""
    order = [str(timbre) for timbre in numpy_rng(seed, "synth timbres").permutation(synth_speech.TIMBRES)]
    high = [timbre for timbre in order if timbre in synth_speech.HIGH_TIMBRES]
    low = [timbre for timbre in order if timbre not in synth_speech.HIGH_TIMBRES]
    places = {((i + 0.5) / len(group), timbre) for group in (high, low) for i, timbre in enumerate(group)}
    spread = [timbre for _, timbre in sorted(places)]
    edges = [round(share * len(spread)) for share in np.cumsum((0.0, *TIMBRE_SHARES, 1.0 - sum(TIMBRE_SHARES)))]
    parts = zip((*SPLITS, "noise"), edges[:-1], edges[1:], strict=True)
    return {name: spread[first:last] for name, first, last in parts}
