"""Media: the timing is kept, whatever the container's rates, offsets and flags are."""

import av
import numpy as np
import pytest
import soundfile
from clips import beep, numbered_frames, read_number, write_clip

from mmspeech import media


def onset_s(wave: np.ndarray) -> float:
    """When the beep begins."""
    return np.flatnonzero(np.abs(wave) > 0.1)[0] / 16_000


@pytest.mark.parametrize("fps", [25, 30, 30_000 / 1001, 24_000 / 1001, 50, 60, 12.5])
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_grid_frame_is_the_one_shown_at_its_time(tmp_path, fps, ending):
    """Frame i of the grid is source frame floor(i / 25 * fps)."""
    count = round(1.6 * fps)
    path = write_clip(tmp_path / f"a.{ending}", numbered_frames(count), None, fps=fps)
    read = [read_number(frame) for frame in media.read_frames(path, grey=True)]
    assert read == [int((i / 25 + 0.0015) * fps) for i in range(round(count / fps * 25))]
    assert len(read) == media.probe(path).num_grid_frames


def test_variable_rates_keep_their_times(tmp_path):
    """Frame i of the grid is the last source frame whose time is at most i / 25."""
    gaps = np.random.default_rng(0).uniform(0.005, 0.15, size=40)
    times = np.round(np.concatenate([[0.0], np.cumsum(gaps)[:-1]]), 3)
    path = write_clip(tmp_path / "a.mp4", numbered_frames(40), None, fps=30, times=times)
    read = [read_number(frame) for frame in media.read_frames(path, grey=True)]
    expected = [int(np.searchsorted(times, i / 25 + 0.0015, side="right")) - 1 for i in range(len(read))]
    assert read == expected
    assert len(read) == media.probe(path).num_grid_frames == pytest.approx(times[-1] * 25, abs=2)


def test_avi_that_reorders_frames_without_saying_when_to_show_them_is_read_in_order(tmp_path):
    """H.264 in AVI: FFmpeg's time stamps are scrambled there; frames still come one by one, with their sound."""
    path = write_clip(tmp_path / "a.avi", numbered_frames(30), beep(1.2, 0.5))
    assert [read_number(frame) for frame in media.read_frames(path, grey=True)] == list(range(30))
    made = media.to_flac(path, tmp_path / "a.flac")
    assert made.num_samples == 30 * 640 and made.video.video_start_s == 0
    assert onset_s(soundfile.read(tmp_path / "a.flac")[0]) == pytest.approx(0.5, abs=0.03)


def test_a_hole_in_the_sound_becomes_silence(tmp_path):
    """Time stamps that jump by half a second, as when a recorder pauses, keep what follows at its time."""
    path = write_clip(tmp_path / "a.mkv", numbered_frames(50), beep(1.5, 0.2) + beep(1.5, 1.0), hole=(0.6, 0.5))
    media.to_flac(path, tmp_path / "a.flac")
    sound, _ = soundfile.read(tmp_path / "a.flac")
    assert onset_s(sound) == pytest.approx(0.2, abs=0.03)
    assert onset_s(np.concatenate([np.zeros(16_000), sound[16_000:]])) == pytest.approx(1.5, abs=0.03)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_flag_turns_the_picture_upright(tmp_path, rotation):
    """What a phone stores lying on its side is read standing, grey and in colour, and probe gives the size as shown."""
    stored = np.zeros((32, 64), np.uint8)
    stored[:16, :16] = 200  # top left
    path = write_clip(tmp_path / "a.mp4", [stored] * 5, None, rotation=rotation)
    upright = np.rot90(stored, rotation // 90)
    grey = next(media.read_frames(path, grey=True))
    assert grey.shape == upright.shape
    assert np.abs(grey.astype(int) - upright).mean() < 3
    colour = next(media.read_frames(path, grey=False))
    assert np.abs(colour.mean(axis=2) - upright).mean() < 3
    video = media.probe(path)
    assert (video.frame_height, video.frame_width) == upright.shape
    assert video.rotation == rotation


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "yuv444p", "yuv420p10le"])
def test_grey_spans_black_to_white_in_every_pixel_format(tmp_path, pix_fmt):
    """Limited range (16-235) and full range come out alike: a ramp from 0 to 255 stays one."""
    ramp = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None], 32, axis=0)
    path = write_clip(tmp_path / "a.mkv", [ramp] * 3, None, pix_fmt=pix_fmt)
    grey = next(media.read_frames(path, grey=True)).astype(int)
    colour = next(media.read_frames(path, grey=False)).astype(int)
    assert grey.dtype == int and np.abs(grey - ramp).max() <= 5
    assert np.abs(colour - ramp[..., None]).max() <= 8


def test_a_frame_may_be_changed_without_changing_the_next(tmp_path):
    """A source frame that is shown twice, and the decoder's own memory, are safe from what a caller does."""
    path = write_clip(tmp_path / "a.mp4", numbered_frames(20), None, fps=12.5)
    read = []
    for frame in media.read_frames(path, grey=True):
        read.append(read_number(frame))
        frame[:] = 255
    assert read == [i // 2 for i in range(40)]


@pytest.mark.parametrize(("rate", "channels"), [(44_100, 2), (48_000, 1), (8_000, 1), (22_050, 1)])
def test_sound_is_resampled_to_16_khz_mono_in_time(tmp_path, rate, channels):
    wave = np.tile(beep(1.6, 0.7, rate, length_s=0.3), (channels, 1))
    path = write_clip(tmp_path / "a.mp4", numbered_frames(40), wave, rate=rate)
    made = media.to_flac(path, tmp_path / "a.flac")
    sound, read_rate = soundfile.read(tmp_path / "a.flac")
    assert read_rate == 16_000 and sound.ndim == 1 and len(sound) == made.num_samples == 40 * 640
    assert onset_s(sound) == pytest.approx(0.7, abs=0.003)
    assert np.abs(sound[round(0.75 * 16_000) : round(0.95 * 16_000)]).max() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize(("video_start_s", "audio_start_s"), [(0.0, 0.32), (0.32, 0.0), (0.2, 0.52), (1.0, 1.0)])
def test_sound_and_picture_that_start_apart_stay_together(tmp_path, ending, video_start_s, audio_start_s):
    """A flash and a beep at the same moment stay at the same moment: time 0 is the first video frame's."""
    flash_s = 0.8 + video_start_s
    frames = [np.full((32, 32), 250 if i == 20 else 0, np.uint8) for i in range(40)]
    wave = beep(1.6, flash_s - audio_start_s)
    path = write_clip(tmp_path / f"a.{ending}", frames, wave, video_start_s=video_start_s, audio_start_s=audio_start_s)
    made = media.to_flac(path, tmp_path / "a.flac")
    sound, _ = soundfile.read(tmp_path / "a.flac")
    flash = np.argmax([frame.mean() for frame in media.read_frames(path, grey=True)])
    assert flash == 20
    assert onset_s(sound) == pytest.approx(flash / 25, abs=0.004)
    assert len(sound) == made.video.num_grid_frames * 640 == 40 * 640


def test_sound_without_picture_starts_with_its_first_sample(tmp_path):
    for ending in ("wav", "flac", "mp3", "ogg"):
        path = write_clip(tmp_path / f"a.{ending}", None, beep(1.0, 0.5, 48_000), rate=48_000)
        made = media.to_flac(path, tmp_path / f"{ending}.flac")
        sound, _ = soundfile.read(tmp_path / f"{ending}.flac")
        assert made.video is None
        assert onset_s(sound) == pytest.approx(0.5, abs=0.03)


def test_the_cover_of_a_song_is_no_video(tmp_path):
    path = tmp_path / "a.mp3"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("libmp3lame", rate=16_000, layout="mono")
        cover = container.add_stream("png", rate=1)
        cover.width = cover.height = 32
        cover.pix_fmt = "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        samples = np.zeros((1, 16_000), np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = 16_000
        picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux(cover.encode(picture))
        container.mux(cover.encode(None))
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    assert media.probe(path) is None
    assert media.to_flac(path, tmp_path / "a.flac").video is None


def test_flac_that_is_there_is_not_decoded_again(tmp_path):
    """An interrupted prepare goes on where it was: finished files are kept."""
    path = write_clip(tmp_path / "a.mp4", numbered_frames(25), beep(1.0, 0.5))
    first = media.to_flac(path, tmp_path / "a.flac")
    stamp = (tmp_path / "a.flac").stat().st_mtime_ns
    assert media.to_flac(path, tmp_path / "a.flac") == first
    assert (tmp_path / "a.flac").stat().st_mtime_ns == stamp


def test_real_grid_clip_has_75_frames_and_3_seconds(shared, tmp_path):
    path = shared / "data" / "grid" / "s1" / "bgia4p.mpg"
    made = media.to_flac(path, tmp_path / "a.flac")
    video = made.video
    assert (video.num_frames, video.fps, video.frame_width, video.frame_height) == (75, 25.0, 360, 288)
    assert made.num_samples == 48_000
    frames = list(media.read_frames(path, grey=True))
    assert len(frames) == 75 and frames[0].shape == (288, 360)
    assert len({frame.tobytes() for frame in frames}) == 75
