"""Audio features: the public model's input to the last digits that matter, alone and in padded batches."""

import time

import kaldi_native_fbank
import numpy as np
import pytest
import soundfile
import torch
from cuts import write_cuts
from lhotse import MonoCut, Recording

from mmspeech.data import audio
from mmspeech.data.cutfiles import open_cuts
from mmspeech.errors import BadItem

python_speech_features = pytest.importorskip("python_speech_features")


@pytest.fixture
def waves() -> tuple[torch.Tensor, torch.Tensor]:
    """A padded batch whose padding is not silent, and its lengths."""
    lengths = torch.tensor([16000, 12345, 400, 20800])
    return torch.from_numpy(np.random.default_rng(0).uniform(-0.3, 0.3, (4, 20800)).astype(np.float32)), lengths


def load(shared, name):
    return torch.load(shared / "reference" / "avhubert" / name, weights_only=True)


def test_log_mel_frames_are_those_of_the_public_model(shared):
    """The stored 26 bands, their stacking to 25 Hz, the fit to the video's length and the norm of each frame."""
    for stored in load(shared, "audio_features.pt")["utterances"]:
        wave = stored["wav"].numpy().astype(np.float32) / 32768
        fine = audio.log_mel(torch.from_numpy(wave)[None], torch.tensor([len(wave)])).values[0]
        torch.testing.assert_close(fine, stored["logfbank_float64"], atol=1e-3, rtol=0)
        coarse = audio.stacked_log_mel_of_one(wave, stored["num_video_frames"])
        torch.testing.assert_close(coarse, stored["features"], atol=1e-3, rtol=0)


def test_log_mel_frames_are_those_of_python_speech_features(waves):
    """Every item of a padded batch equals the library on the item alone."""
    values, counts = audio.log_mel(*waves)
    for wave, length, found, count in zip(*waves, values, counts, strict=True):
        expected = python_speech_features.logfbank((wave[:length] * 32768).double().numpy(), 16000)
        assert count == len(expected)
        np.testing.assert_allclose(found[:count], expected, atol=1e-3)


def test_log_mel_is_not_slower_than_python_speech_features():
    """On ten seconds, the best of several runs each."""
    wave = (np.random.default_rng(0).uniform(-0.3, 0.3, 160_000) * 32768).astype(np.int16)
    ours = torch.from_numpy(wave.astype(np.float32) / 32768)[None]

    def best(function):
        times = []
        for _ in range(7):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        return min(times)

    library = best(lambda: python_speech_features.logfbank(wave, 16000))
    assert best(lambda: audio.log_mel(ours, torch.tensor([160_000]))) < library


def test_mfcc_is_that_of_the_first_iteration(shared):
    """39 values at 100 Hz, 98 frames in the first second."""
    for stored in load(shared, "mfcc.pt")["utterances"]:
        wave = stored["wav"].float()[None] / 32768
        values, lengths = audio.mfcc(wave, torch.tensor([wave.shape[1]]))
        assert lengths.tolist() == [len(stored["mfcc39"])]
        torch.testing.assert_close(values[0], stored["mfcc39"], atol=1e-3, rtol=0)


def test_fbank_is_kaldis(waves):
    """80 bins: equal in the mean to 1e-5 and everywhere to 2.5e-2 (float32 against double in quiet bins)."""
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0
    options.mel_opts.num_bins = 80
    for wave, length, found, count in zip(*waves, *audio.fbank(*waves), strict=True):
        peer = kaldi_native_fbank.OnlineFbank(options)
        peer.accept_waveform(16000, (wave[:length] * 32768).tolist())
        peer.input_finished()
        expected = np.stack([peer.get_frame(i) for i in range(peer.num_frames_ready)])
        assert count == len(expected)
        error = np.abs(found[:count].numpy() - expected)
        assert error.mean() < 1e-5
        assert error.max() < 2.5e-2


@pytest.mark.parametrize("function", [audio.stacked_log_mel, audio.mfcc, audio.fbank])
def test_features_ignore_padding_and_neighbours(waves, function):
    """A padded batch equals its items one by one; padding is zero."""
    values, lengths = function(*waves)
    for i, (wave, length) in enumerate(zip(*waves, strict=True)):
        alone, alone_length = function(wave[None, :length], length[None])
        assert alone_length[0] == lengths[i]
        torch.testing.assert_close(values[i, : lengths[i]], alone[0, : lengths[i]], atol=1e-5, rtol=0)
        assert values[i, lengths[i] :].abs().max().item() == 0 if lengths[i] < values.shape[1] else True


def test_stacked_frames_are_cut_or_filled_to_the_video(waves):
    """Frames that the audio does not reach are zero; others do not change with the wanted number."""
    free = audio.stacked_log_mel(*waves)
    assert free.lengths.tolist() == [25, 19, 1, 33]
    wanted = torch.tensor([30, 10, 3, 33])
    fitted = audio.stacked_log_mel(*waves, wanted)
    assert fitted.lengths.tolist() == wanted.tolist()
    torch.testing.assert_close(fitted.values[0, :25], free.values[0, :25])
    assert fitted.values[0, 25:].abs().max() == 0
    assert fitted.values[1, 10:].abs().max() == 0


def test_every_fourth_mfcc_frame_gives_one_per_video_frame():
    """640 samples are a video frame: the 4 T - 2 frames of Kaldi still give T at 25 Hz."""
    for frames in (1, 2, 25, 77):
        wave = torch.rand(1, 640 * frames)
        coarse = audio.every_fourth(audio.mfcc(wave, torch.tensor([640 * frames])))
        assert coarse.values.shape[1] == coarse.lengths[0] == frames


def test_cut_gives_its_samples(tmp_path):
    """And no more than its own."""
    (cut,) = open_cuts(write_cuts(tmp_path, [1.5]))
    assert audio.read_audio(cut).shape == (24000,)
    assert audio.read_audio(cut.truncate(offset=0.5, duration=0.25)).shape == (4000,)
    assert audio.num_frames(cut) == 38  # 37.5: halves go up, as lhotse counts the frames of a track


def test_sound_at_8_khz_is_refused(tmp_path):
    """The message names the cut, both rates and the command that resamples."""
    (cut,) = open_cuts(write_cuts(tmp_path, [1.0], rate=8000))
    with pytest.raises(BadItem, match=r"clip000: expected 16000 Hz mono, found 8000 Hz .*`mmspeech prepare` resamples"):
        audio.read_audio(cut)


def test_samples_that_are_not_finite_are_refused(tmp_path):
    """A recording that holds a nan would turn every weight into one."""
    import soundfile

    (cut,) = open_cuts(write_cuts(tmp_path, [1.0]))
    wave = np.zeros(16000, np.float32)
    wave[7] = np.nan
    soundfile.write(cut.recording.sources[0].source, wave, 16000, subtype="FLOAT")
    with pytest.raises(BadItem, match="clip000: expected finite samples"):
        audio.read_audio(cut)


def test_recording_that_is_gone_is_one_line(tmp_path):
    """The message names the cut and the file."""
    (cut,) = open_cuts(write_cuts(tmp_path, [1.0]))
    source = cut.recording.sources[0].source
    (tmp_path / source).unlink()
    with pytest.raises(BadItem) as error:
        audio.read_audio(cut)
    assert str(error.value) == f"{cut.id}: {source}: no such file; prepare the corpus again"


@pytest.mark.parametrize(
    ("content", "reason"), [(b"rubbish" * 100, "Format not recognised"), (None, "flac decoder lost sync")]
)
def test_a_broken_recording_is_told_in_its_readers_words_alone(tmp_path, content, reason):
    """One line: the cut, the file, what is wrong with it; no classes of lhotse."""
    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.default_rng(0).standard_normal(16_000) / 10, 16_000)
    recording = Recording.from_file(path)
    path.write_bytes(content or path.read_bytes()[:200] + b"x" * 500)
    with pytest.raises(BadItem) as found:
        audio.read_audio(MonoCut("c", 0, 1.0, 0, recording=recording))
    text = str(found.value)
    assert text.startswith(f"c: {path} cannot be read (") and reason in text and "class" not in text
    assert text.endswith("; prepare the corpus again")
