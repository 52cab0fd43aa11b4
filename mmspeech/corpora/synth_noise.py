"""The noise of the embedded corpus, in MUSAN's layout: speech of other speakers, music-like and noise-like sounds."""

import numpy as np
from numpy.typing import NDArray
from scipy.signal import fftconvolve, lfilter

from mmspeech.corpora import synth_speech, synth_text
from mmspeech.corpora.synth_speech import RATE_HZ, Voice

SPEECH_S, SOUND_S = 10, 15  # seconds of a file


def speech(voice: Voice, rng: np.random.Generator) -> NDArray[np.float32]:
    """Ten seconds of words without pause: (S,) float32 at 16 kHz. Their words are none of the corpus's own."""
    sentence = synth_text.chatter(rng, num_words=5 * SPEECH_S)
    spoken = synth_speech.speak(sentence.words, sentence.spoken, voice)
    return level(spoken.samples[: SPEECH_S * RATE_HZ])


def music(rng: np.random.Generator) -> NDArray[np.float32]:
    """Chords of plucked notes over a bass, with a beat: (S,) float32."""
    beat_s = rng.uniform(0.25, 0.6)
    key_hz = 110.0 * 2 ** (rng.integers(12) / 12)
    scale = np.array([0, 2, 4, 5, 7, 9, 11]) if rng.uniform() < 0.5 else np.array([0, 2, 3, 5, 7, 8, 10])
    harmonics = rng.integers(3, 9)
    tilt = rng.uniform(0.8, 2.0)
    sound = np.zeros(SOUND_S * RATE_HZ + 2 * RATE_HZ)
    for beat in range(int(SOUND_S / beat_s)):
        if beat % 4 == 0:
            root = rng.choice([0, 3, 4, 5])
        degrees = [root, root + 2, root + 4] if beat % 2 == 0 else [rng.integers(7) + 7]
        for degree in degrees:
            semitones = scale[degree % 7] + 12 * (degree // 7)
            length_s = rng.uniform(0.5, 2.0) * beat_s * 2
            time = np.arange(int(length_s * RATE_HZ)) / RATE_HZ
            h = np.arange(1, harmonics + 1)[:, None]
            hz = key_hz * 2 ** (semitones / 12)
            tone = (np.sin(2 * np.pi * hz * h * time) / h**tilt * (hz * h < 7500)).sum(0)
            start = int(beat * beat_s * RATE_HZ)
            sound[start : start + len(time)] += (tone * np.exp(-4 * time / length_s))[: len(sound) - start]
        if beat % 2 == 1:
            start = int(beat * beat_s * RATE_HZ)
            sound[start : start + 1600] += 0.8 * rng.standard_normal(1600) * np.exp(-np.arange(1600) / 300)
    return level(sound[: SOUND_S * RATE_HZ])


def noise(rng: np.random.Generator) -> NDArray[np.float32]:
    """Coloured noise that swells, or a hum, or clatter, or a mix of them: (S,) float32."""
    num = SOUND_S * RATE_HZ
    spectrum = np.fft.rfft(rng.standard_normal(num))
    hz = np.fft.rfftfreq(num, 1 / RATE_HZ)
    centre_hz, octaves = np.exp(rng.uniform(np.log(150), np.log(4000))), rng.uniform(0.5, 3.0)
    shape = np.maximum(hz, 20.0) ** -rng.uniform(0.0, 1.0)
    shape *= 0.1 + np.exp(-0.5 * (np.log2(np.maximum(hz, 20.0) / centre_hz) / octaves) ** 2)
    sound = np.fft.irfft(spectrum * shape, num)
    sound /= sound.std()
    swell = lfilter([1.0], [1.0, -0.99], rng.standard_normal(SOUND_S * 100)) * 0.14
    sound *= np.exp(rng.uniform(0.0, 0.7) * np.interp(np.arange(num), np.arange(SOUND_S * 100) * RATE_HZ / 100, swell))
    if rng.uniform() < 0.4:
        time = np.arange(num) / RATE_HZ
        base_hz = rng.uniform(45, 400)
        sound += rng.uniform(0.3, 1.5) * sum(np.sin(2 * np.pi * base_hz * h * time) / h for h in range(1, 8))
    if rng.uniform() < 0.5:
        ring = np.exp(-np.arange(4000) / rng.uniform(100, 900)) * np.sin(np.arange(4000) * rng.uniform(0.1, 1.5))
        knocks = np.zeros(num)
        knocks[rng.integers(num, size=rng.integers(10, 90))] = rng.uniform(1.0, 4.0)
        sound += fftconvolve(knocks, ring)[:num]
    return level(sound)


def level(samples: NDArray[np.floating]) -> NDArray[np.float32]:
    """Bring to the same loudness, softened so that nothing exceeds the range."""
    scaled = 0.06 * samples / max(float(np.std(samples)), 1e-6)
    return np.tanh(scaled).astype(np.float32)
