"""Noise: the public arithmetic, the asked-for level, draws that depend on their key alone, frozen test sets."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cuts import write_cuts

from mmspeech import files
from mmspeech.cli.prepare_noisy import noisy
from mmspeech.data import frozen_noise, noise
from mmspeech.data.audio import read_audio
from mmspeech.data.cutfiles import open_cuts
from mmspeech.errors import UserError


@pytest.fixture
def speech(tmp_path) -> Path:
    return write_cuts(tmp_path / "speech", [1.0, 0.7, 2.1], units=None, name="cuts_test.jsonl.gz")


@pytest.fixture
def noises(tmp_path) -> Path:
    """Noise longer and shorter than the speech."""
    for category in ("babble", "music"):
        for split in ("train", "test"):
            write_cuts(tmp_path / "noise", [5.0, 0.5, 1.0], units=None, name=f"noise_{category}_{split}.jsonl.gz")
    return tmp_path / "noise"


def test_mixtures_are_those_of_the_public_code(shared):
    """int16 samples are equal, also where the sum leaves the range; noise from its beginning, repeated."""
    path = shared / "reference" / "avhubert" / "noise_mixing.pt"
    for case in torch.load(path, weights_only=True)["cases"]:
        clean = case["clean"].numpy().astype(np.float32) / 32768
        if "noises_averaged" in case:
            shortest = min(map(len, case["noises_averaged"]))
            several = [one.numpy()[:shortest].astype(float) for one in case["noises_averaged"]]
            added = np.floor(np.mean(several, axis=0)) / 32768
        else:
            added = case["noise"].numpy().astype(np.float32) / 32768
        added = np.take(added, np.arange(len(clean)), mode="wrap")
        mixed = noise.mix(clean, added, noise.find_gain(clean, added, case["snr"]))
        np.testing.assert_array_equal(mixed * 32768, case["mixed"].numpy())


@pytest.mark.parametrize("snr_db", [-5, 0, 20])
def test_mixture_has_the_wanted_level(snr_db):
    """What was added is `snr_db` below the speech."""
    rng = np.random.default_rng(0)
    clean, added = 0.05 * rng.standard_normal(16000), 0.01 * rng.standard_normal(16000)
    rest = noise.mix(clean, added, noise.find_gain(clean, added, snr_db)) - clean
    assert 20 * np.log10(noise.rms(clean) / noise.rms(rest)) == pytest.approx(snr_db, abs=0.05)


def test_silence_stays_finite():
    """Silent noise leaves the speech as it is; silent speech stays silent. The public code gives nan."""
    rng = np.random.default_rng(0)
    sound, silence = (np.round(rng.uniform(-999, 999, 500)) / 32768).astype(np.float32), np.zeros(500, np.float32)
    np.testing.assert_array_equal(noise.mix(sound, silence, noise.find_gain(sound, silence, 0)), sound)
    np.testing.assert_array_equal(noise.mix(silence, sound, noise.find_gain(silence, sound, 0)), silence)


def test_noise_of_training_depends_on_its_key_alone(speech, noises):
    """Same (seed, pass, cut): same mixture, also in a worker's copy; another pass or seed: another one."""
    cut = next(iter(open_cuts(speech)))
    wave = read_audio(cut)
    config = noise.NoiseConfig(cuts=noises, probability=1.0, snr_db=(-5, 5), categories={"babble": 2.0, "music": 1.0})
    pool = noise.NoisePool(config, seed=1)
    first = pool(wave, cut, 0)
    assert not np.array_equal(first, wave)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(pool))(wave, cut, 0), first)
    assert not np.array_equal(pool(wave, cut, 1), first)
    assert not np.array_equal(noise.NoisePool(config, seed=2)(wave, cut, 0), first)


def test_noise_falls_on_the_wanted_share_of_utterances(speech, noises):
    """With probability 0.25; the rest is left as it is."""
    cut = next(iter(open_cuts(speech))).truncate(duration=0.1, preserve_id=True)
    wave = read_audio(cut)
    pool = noise.NoisePool(noise.NoiseConfig(cuts=noises, probability=0.25, categories={"babble": 1.0}), seed=0)
    noisy = np.mean([pool(wave, cut, number) is not wave for number in range(400)])
    assert noisy == pytest.approx(0.25, abs=0.07)


def test_bad_settings_of_noise_are_named(tmp_path):
    """Each names the setting."""
    for settings in (
        {"probability": 1.5},
        {"snr_db": (5, 0)},
        {"categories": {"rain": 1.0}},
        {"categories": {"babble": 0.0}},
    ):
        with pytest.raises(UserError, match=next(iter(settings))):
            noise.NoiseConfig(cuts=tmp_path, **settings)
    with pytest.raises(UserError, match="noise_babble_train"):
        noise.NoisePool(noise.NoiseConfig(cuts=tmp_path), seed=0)
    with pytest.raises(UserError, match="babble:0"):
        noise.parse_kind("rain:0")


def test_frozen_noise_is_the_same_in_two_processes(speech, noises, tmp_path, capsys):
    """The waveform of every cut, byte by byte, and the hash that the command prints, also when it does nothing."""
    wanted = ["babble:0", "music:-5"]
    noisy([speech], noises, tmp_path / "noisy", noise=wanted)
    said = capsys.readouterr().err
    code = (
        "import sys, hashlib, pathlib\n"
        "from mmspeech.data import audio, cutfiles, frozen_noise\n"
        "frozen = frozen_noise.FrozenNoise(pathlib.Path(sys.argv[1]))\n"
        "for cut in cutfiles.open_cuts(pathlib.Path(sys.argv[2])):\n"
        "    print(hashlib.sha256(frozen(audio.read_audio(cut), cut).tobytes()).hexdigest())\n"
        "print(frozen.sha256)\n"
    )
    for name in ("babble_0dB.jsonl", "music_-5dB.jsonl"):
        command = [sys.executable, "-c", code, str(tmp_path / "noisy" / name), str(speech)]
        runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)]
        assert runs[0] == runs[1]
        *waves, sha256 = runs[0].split()
        assert len(set(waves)) == 3
        assert f"{name}: sha256 {sha256}" in said
    noisy([speech], noises, tmp_path / "noisy", noise=wanted)
    said = capsys.readouterr().err
    assert "current, nothing to do" in said
    assert sha256 in said


def freeze(speech, noises, path, seed=0):
    kind = noise.parse_kind("babble:0")
    with files.Rejects(path.parent / "rejected.jsonl") as rejects:
        lines = frozen_noise.freeze(open_cuts(speech), noises, kind, seed=seed, rejects=rejects)
    return frozen_noise.write(path, lines, noises, kind, seed, "test")


def test_frozen_set_depends_on_its_seed_and_is_at_its_level(speech, noises, tmp_path):
    """The hash too; what is added is as loud as the speech at 0 dB."""
    path = tmp_path / "babble.jsonl"
    first = freeze(speech, noises, path, seed=1)
    assert freeze(speech, noises, path, seed=2) != first
    assert freeze(speech, noises, path, seed=1) == first
    frozen = frozen_noise.FrozenNoise(path)
    for cut in open_cuts(speech):
        wave = read_audio(cut)
        assert noise.rms(frozen(wave, cut) - wave) == pytest.approx(noise.rms(wave), rel=0.01)


def test_frozen_set_notices_other_recordings_and_changed_lines(speech, noises, tmp_path):
    """A cut that is louder, a cut that is not in the set, a file that was edited: each is named."""
    path = tmp_path / "babble.jsonl"
    freeze(speech, noises, path)
    frozen = frozen_noise.FrozenNoise(path)
    cut = next(iter(open_cuts(speech)))
    with pytest.raises(UserError, match=r"clip000: speech or noise .* not as loud"):
        frozen(read_audio(cut) * 1.01, cut)
    with pytest.raises(UserError, match="has no line for cut other"):
        frozen(read_audio(cut), cut.with_id("other"))
    path.write_text(path.read_text().replace('"offset": ', '"offset": 1'))
    with pytest.raises(UserError, match="do not have the hash"):
        frozen_noise.FrozenNoise(path)
