"""Additive noise at a signal-to-noise ratio: drawn anew in training, frozen for test sets.

    mixture = clean + gain * noise,   gain = rms(clean) / (10^(snr / 20) rms(noise))

with the public AV-HuBERT's arithmetic on int16 samples. It always takes a noise from its beginning; here a key decides
where it starts, so that 20 utterances in babble do not share their babble.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from lhotse.cut import Cut

from mmspeech.data import cutfiles
from mmspeech.data.audio import INT16_SCALE, RATE_HZ, read_audio
from mmspeech.errors import UserError
from mmspeech.seeds import numpy_rng

CATEGORIES = ("babble", "music", "noise", "speech")  # `noise`: natural sounds
TEST_SNRS_DB = (10.0, 5.0, 0.0, -5.0, -10.0)  # of the noisy test sets of Shi et al. 2022b
GRID = ("babble", "speech", "music")  # the categories of VATLM's Table IV, each at these levels
SILENCE_RMS = 1.0  # int16 steps; a noise below it cannot be brought to any level
MAX_DRAWS = 20  # noises that are looked at until one is not silent


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """Noise in training; probability and level are those of the published noise-augmented models."""

    cuts: Path | None = None  # folder of noise_CATEGORY_SPLIT.jsonl.gz, as written by `mmspeech prepare musan`
    probability: float = 0.25  # of noise on an utterance; 0: none
    snr_db: tuple[int, int] = (0, 0)  # lowest and highest; whole numbers between them are drawn uniformly
    categories: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CATEGORIES, 1.0))  # name -> weight

    def __post_init__(self) -> None:
        if not 0.0 <= self.probability <= 1.0:
            raise UserError(f"probability: expected 0 to 1, found {self.probability}; change it")
        if self.snr_db[0] > self.snr_db[1]:
            raise UserError(f"snr_db: expected the lower bound first, found {list(self.snr_db)}; swap them")
        for name, weight in self.categories.items():
            if name not in CATEGORIES or weight < 0:
                raise UserError(f"categories: `{name}: {weight}`; expected {', '.join(CATEGORIES)} with weights >= 0")
        if not sum(self.categories.values()) > 0:
            raise UserError("categories: no category has a weight above 0; give one, or leave `noise` out")


class NoiseKind(NamedTuple):
    """What a noisy test set is called: `babble:0`."""

    category: str
    snr_db: float

    @property
    def file_name(self) -> str:
        return f"{self.category}_{self.snr_db:g}dB.jsonl"

    def __str__(self) -> str:
        return f"{self.category}:{self.snr_db:g}"


def parse_kind(text: str) -> NoiseKind:
    """`babble:0` -> NoiseKind. Raises UserError for anything else."""
    match = re.fullmatch(r"(\w+):(-?\d+(?:\.\d+)?)", text)
    if match is None or match[1] not in CATEGORIES:
        raise UserError(f"--noise {text}: expected CATEGORY:DECIBELS, e.g. babble:0; known: {', '.join(CATEGORIES)}")
    return NoiseKind(match[1], float(match[2]))


def parse_kinds(texts: Iterable[str]) -> list[NoiseKind]:
    """Kinds joined by commas, or a name for several of them; each once, in order.

    `all`: the twenty of the noisy test sets of Shi et al. 2022b; `grid`: the fifteen of VATLM's Table IV.

    Raises UserError for anything else.
    """
    names = [name for text in texts for name in text.split(",")]
    known = {"all": CATEGORIES, "grid": GRID}
    kinds = [
        [NoiseKind(category, snr_db) for category in known[name] for snr_db in TEST_SNRS_DB]
        if name in known
        else [parse_kind(name)]
        for name in names
    ]
    return list(dict.fromkeys(kind for several in kinds for kind in several))


def find_kinds(folder: Path) -> list[NoiseKind]:
    """The kinds that are frozen in a folder of `mmspeech prepare noisy`, by category and falling level."""
    matches = (re.fullmatch(r"(\w+)_(-?[\d.]+)dB\.jsonl", path.name) for path in folder.glob("*dB.jsonl"))
    kinds = [NoiseKind(match[1], float(match[2])) for match in matches if match and match[1] in CATEGORIES]
    return sorted(kinds, key=lambda kind: (CATEGORIES.index(kind.category), -kind.snr_db))


def find_gain(clean: np.ndarray, noise: np.ndarray, snr_db: float) -> float:
    """What to multiply the noise by: both (S,) in [-1, 1]. 0 if the noise is silent: no gain brings it to a level."""
    level = rms(noise)
    return rms(clean) / 10 ** (snr_db / 20) / level if level >= SILENCE_RMS else 0.0


def rms(wave: np.ndarray) -> float:
    """Root mean square in int16 steps."""
    return float(np.sqrt(np.mean(np.square(wave.astype(np.float64))))) * INT16_SCALE


def mix(clean: np.ndarray, noise: np.ndarray, gain: float) -> np.ndarray:
    """clean + gain * noise (S,), float32, on int16 steps; a sum that leaves the range is scaled down as a whole."""
    # float32 as in the public code: in float64 single samples come out one step apart.
    mixed = clean.astype(np.float32) * INT16_SCALE + noise.astype(np.float32) * INT16_SCALE * gain
    low, high = mixed.min(), mixed.max()
    if high > 32767 or low < -32768:
        mixed = mixed * float(32767 / high if high >= -low else -32768 / low)
    return (np.trunc(mixed) / INT16_SCALE).astype(np.float32)


class Noises:
    """The noises of one category and split; the list is read when first asked for, the sound only where used."""

    def __init__(self, folder: Path, category: str, split: str) -> None:
        self.path = folder / f"noise_{category}_{split}.jsonl.gz"
        self._cuts: dict[str, Cut] | None = None
        self._ids: list[str] = []  # of the cuts, to draw from

    @property
    def cuts(self) -> dict[str, Cut]:
        if self._cuts is None:
            self._cuts = {cut.id: cut for cut in cutfiles.open_cuts(self.path)}
            self._ids = list(self._cuts)
        return self._cuts

    def draw(self, samples: int, rng: np.random.Generator) -> tuple[str, int, np.ndarray]:
        """(id, offset in samples, noise (samples,)) of a noise that is not silent.

        A noise that is shorter than wanted is repeated, and may start anywhere in itself.
        """
        for _ in range(MAX_DRAWS):
            number = int(rng.integers(len(self.cuts)))  # reads the list if nobody did before
            name = self._ids[number]
            size = self.cuts[name].num_samples
            offset = int(rng.integers(size - samples + 1 if size > samples else size))
            noise = self.read(name, offset, samples)
            if rms(noise) >= SILENCE_RMS:
                return name, offset, noise
        raise UserError(f"{self.path}: {MAX_DRAWS} noises drawn and all of them silent; prepare the noise corpus again")

    def read(self, name: str, offset: int, samples: int) -> np.ndarray:
        """(samples,) of a noise from `offset` on, repeated if it is shorter. Raises UserError if it is not there."""
        if name not in self.cuts:
            raise UserError(
                f"{self.path}: has no noise `{name}`; give the noise folder that the test set was made with"
            )
        cut = self.cuts[name]
        if cut.num_samples > samples:
            cut = cut.truncate(offset=offset / RATE_HZ, duration=samples / RATE_HZ)
            offset = 0
        noise = read_audio(cut)
        return np.take(noise, np.arange(offset, offset + samples), mode="wrap")

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_cuts": None, "_ids": []}  # a worker reads its own list


def training_noises(config: NoiseConfig) -> list[Path]:
    """The lists of noises that training with this configuration draws from."""
    if config.cuts is None or config.probability == 0:
        return []
    return [Noises(config.cuts, name, "train").path for name, weight in config.categories.items() if weight > 0]


class NoisePool:
    """Noise for training: whether, which, where from and how loud depends on (seed, pass, cut) alone; picklable."""

    def __init__(self, config: NoiseConfig, *, seed: int, split: str = "train") -> None:
        if config.cuts is None:
            raise UserError("data.noise.cuts: names no noise; give the folder of `mmspeech prepare musan`")
        weights = {name: weight for name, weight in config.categories.items() if weight > 0}
        self.config, self.seed = config, seed
        self.noises = {name: Noises(config.cuts, name, split) for name in weights}
        for noises in self.noises.values():
            if cutfiles.is_empty(noises.path):
                raise UserError(f"{noises.path}: holds no noise; give its category the weight 0, or prepare it again")
        self.shares = np.array(list(weights.values())) / sum(weights.values())

    def __call__(self, wave: np.ndarray, cut: Cut, number: int) -> np.ndarray:
        """The waveform (S,) of the cut in its `number`-th pass, with noise or without."""
        rng = numpy_rng(self.seed, "noise", number, cut.id)
        if rng.random() >= self.config.probability:
            return wave
        name = list(self.noises)[rng.choice(len(self.shares), p=self.shares)]
        snr_db = int(rng.integers(self.config.snr_db[0], self.config.snr_db[1] + 1))
        _, _, noise = self.noises[name].draw(len(wave), rng)
        return mix(wave, noise, find_gain(wave, noise, snr_db))
