"""Frozen noisy test sets: a list of noise, offset and gain per cut, so that two labs measure the same thing.

A file is JSON lines: a header (category, level, seed, number of cuts, sha256 of all lines that follow, in canonical
form), then `{"cut", "noise", "offset", "gain", "samples"}` per cut, offsets in samples. The gain follows from the
loudness of both sounds, so the hash tells that both labs have the same recordings too; it is checked when applied.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from lhotse.cut import Cut

from mmspeech.data.audio import read_audio
from mmspeech.data.noise import NoiseKind, Noises, find_gain, mix
from mmspeech.errors import BadItem, UserError
from mmspeech.files import Rejects, replacing
from mmspeech.seeds import numpy_rng

FORMAT = "mmspeech frozen noise 1"


def freeze(
    cuts: Iterable[Cut], noise_dir: Path, kind: NoiseKind, *, seed: int, rejects: Rejects, split: str = "test"
) -> list[dict[str, object]]:
    """Choose noise, offset and gain for every cut; the choice depends on (seed, kind, cut) alone."""
    noises = Noises(noise_dir, kind.category, split)
    lines: list[dict[str, object]] = []
    for cut in cuts:
        try:
            wave = read_audio(cut)
        except BadItem as error:
            rejects.add(cut.id, str(error))
            continue
        name, offset, noise = noises.draw(len(wave), numpy_rng(seed, "frozen", kind.category, kind.snr_db, cut.id))
        gain = find_gain(wave, noise, kind.snr_db)
        lines.append({"cut": cut.id, "noise": name, "offset": offset, "gain": gain, "samples": len(wave)})
    if len({line["cut"] for line in lines}) < len(lines):
        raise UserError("cuts for a noisy test set: expected every id once, found some twice; give each file once")
    return lines


def digest(lines: Iterable[Mapping[str, object]]) -> str:
    """sha256 of the lines in canonical form; gains to 9 digits, so that no machine's last digit counts."""
    sha = hashlib.sha256()
    for line in sorted(lines, key=lambda line: str(line["cut"])):
        sha.update(json.dumps({**line, "gain": f"{line['gain']:.8e}"}, sort_keys=True).encode() + b"\n")
    return sha.hexdigest()


def write(path: Path, lines: list[dict[str, object]], noise_dir: Path, kind: NoiseKind, seed: int, split: str) -> str:
    """Write a frozen set; returns its hash. The noise folder is stored relative to the file's own."""
    header = {
        "format": FORMAT,
        "category": kind.category,
        "snr_db": kind.snr_db,
        "split": split,
        "seed": seed,
        "cuts": len(lines),
        "noise_dir": os.path.relpath(noise_dir, path.parent),
        "sha256": digest(lines),
    }
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in [header, *lines]))
    return str(header["sha256"])


class FrozenNoise:
    """A frozen set, opened: `frozen(wave, cut)` is the cut's noisy waveform, the same in every process."""

    def __init__(self, path: Path, noise_dir: Path | None = None) -> None:
        """`noise_dir`: where the noise lies, if it was moved. Raises UserError if the file is none or was changed."""
        try:
            header, *lines = [json.loads(line) for line in path.read_text().splitlines()]
        except FileNotFoundError:
            raise UserError(f"{path}: no such frozen noise; make it with `mmspeech prepare noisy`") from None
        except ValueError:
            raise UserError(f"{path}: expected JSON lines; make it again with `mmspeech prepare noisy`") from None
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise UserError(f"{path}: expected a first line with `{FORMAT}`; make it with `mmspeech prepare noisy`")
        if digest(lines) != header["sha256"]:
            raise UserError(f"{path}: its lines do not have the hash in its header; get the file as it was made")
        self.path, self.sha256, self.kind = path, header["sha256"], NoiseKind(header["category"], header["snr_db"])
        self.noises = Noises(noise_dir or path.parent / header["noise_dir"], header["category"], header["split"])
        self.lines: dict[str, dict] = {line["cut"]: line for line in lines}

    def __call__(self, wave: np.ndarray, cut: Cut, number: int = 0) -> np.ndarray:
        """The noisy waveform (S,); `number`, the pass, changes nothing.

        Raises UserError for a cut that is not in the set, or recordings that are not those it was made with.
        """
        if cut.id not in self.lines:
            raise UserError(f"{self.path}: has no line for cut {cut.id}; freeze the noise of exactly these cuts")
        return apply_frozen(wave, self.lines[cut.id], self.noises, self.kind.snr_db)


def apply_frozen(wave: np.ndarray, line: Mapping, noises: Noises, snr_db: float) -> np.ndarray:
    """The waveform (S,) with the noise that its line names. Raises UserError if the recordings are others."""
    if len(wave) != line["samples"]:
        raise UserError(
            f"cut {line['cut']}: {len(wave)} samples, but its frozen noise was made for {line['samples']}; freeze again"
        )
    noise = noises.read(line["noise"], line["offset"], len(wave))
    gain = find_gain(wave, noise, snr_db)
    # Only a cut or noise whose loudness is another is noticed: that is what a new download or encoding changes.
    if not math.isclose(gain, line["gain"], rel_tol=1e-6, abs_tol=1e-12):
        raise UserError(
            f"cut {line['cut']}: speech or noise {line['noise']} is not as loud as when the set was frozen (gain "
            f"{line['gain']:.6g}, now {gain:.6g}); use the recordings that it was made with, or freeze again"
        )
    return mix(wave, noise, line["gain"])
