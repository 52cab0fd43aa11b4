"""Mouth tracks: what is stored is what is read, span by span; crops and flips are those of the public AV-HuBERT."""

import io

import numpy as np
import pytest
import torch
from lhotse import CutSet, Recording

from mmspeech.data import video
from mmspeech.errors import BadItem, UserError

RNG = np.random.default_rng(0)


def steps(num_frames):
    """Frames (T, 96, 96) of one grey value each, 2 t: JPEG keeps it, so a frame tells its own number."""
    return np.broadcast_to(2 * np.arange(num_frames, dtype=np.uint8)[:, None, None], (num_frames, 96, 96)).copy()


def numbers(frames):
    return [round(value / 2) for value in frames.mean(axis=(1, 2))]


@pytest.fixture
def cut(tmp_path):
    """Four seconds with a track of 100 frames, behind another track in the same shard."""
    with video.MouthWriter(tmp_path / "shard-00000.jpgs") as writer:
        writer.write("first", steps(7))
        key = writer.write("second", steps(100))
    recording = Recording("clip", [], sampling_rate=16000, num_samples=64000, duration=4.0, channel_ids=[0])
    cut = recording.to_cut()
    cut.mouth = video.track_manifest(tmp_path / "shard-00000.jpgs", key)
    return cut


def test_any_span_equals_the_same_slice_of_the_whole(cut):
    reader, key = video.MouthReader(cut.mouth.array.storage_path), cut.mouth.array.storage_key
    whole = reader.read(key)
    assert numbers(whole) == list(range(100))
    for left, right in [(0, 1), (0, 100), (37, 62), (99, 100), (50, None)]:
        np.testing.assert_array_equal(reader.read(key, left, right), whole[left:right])


def test_a_span_touches_no_other_frame(cut):
    """With all bytes after the wanted frames overwritten the span still reads, and the rest is refused."""
    path, key = cut.mouth.array.storage_path, cut.mouth.array.storage_key
    position, size = int(key.split(":")[0]), 4 * 101
    data = bytearray(open(path, "rb").read())
    offsets = np.frombuffer(data, "<u4", 101, position)
    data[position + size + offsets[30] :] = bytes(len(data) - position - size - int(offsets[30]))
    open(path, "wb").write(data)
    assert numbers(video.MouthReader(path).read(key, 10, 30)) == list(range(10, 30))
    with pytest.raises(BadItem, match="frame 30 of track"):
        video.MouthReader(path).read(key, 10, 31)


@pytest.mark.parametrize(
    "start, duration", [(0.0, 4.0), (1.0, 0.5), (1.23, 1.11), (2.02, 1.98), (3.99, 0.01), (0.5, 3.5)]
)
def test_truncated_cut_gives_round_duration_times_25_frames(cut, start, duration, tmp_path):
    """Frame k of a segment is frame round(25 start) + k of the recording, also after a round trip through JSONL."""
    CutSet.from_cuts([cut.truncate(offset=start, duration=duration)]).to_file(tmp_path / "cuts.jsonl.gz")
    segment = next(iter(CutSet.from_jsonl_lazy(tmp_path / "cuts.jsonl.gz")))
    found = numbers(video.read_mouth(segment))
    first = int(start * 25 + 0.5)
    expected = [min(first + k, 99) for k in range(int(segment.duration * 25 + 0.5))]
    assert found == expected


def test_a_short_read_shard_or_missing_track_is_one_clear_line(cut, tmp_path):
    with pytest.raises(BadItem, match="extract mouth"):
        video.read_mouth(Recording("x", [], 16000, 16000, 1.0, [0]).to_cut())
    path = tmp_path / "shard-00000.jpgs"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadItem, match=f"^{cut.id}: .*ends before"):
        video.read_mouth(cut)
    path.unlink()
    video.forget_open_shards()
    with pytest.raises(BadItem, match=f"^{cut.id}: {path}: no such file"):
        video.read_mouth(cut)


def test_shard_tells_what_is_in_it():
    shard = io.BytesIO()
    video.append_track(shard, video.encode(steps(3)))
    assert video.append_track(shard, []).endswith(":0")
    video.end_shard(shard, [{"id": "é"}])
    assert shard.getvalue().endswith((len(b'[{"id": "\\u00e9"}]')).to_bytes(8, "little"))


def test_crops_and_flips_equal_the_public_ones(shared):
    """Cropping bytes and normalising on the device gives what normalising first gives."""
    vectors = torch.load(shared / "reference" / "avhubert" / "video_transform.pt", weights_only=True)
    for clip in vectors["clips"]:
        ours = video.augment(clip["frames"].numpy(), RNG, crop=88, train=False)
        torch.testing.assert_close(normalise(ours), clip["video"], atol=1e-6, rtol=0)
    for clip in vectors["augmented"]:
        ours = video.crop_and_flip(clip["frames"].numpy(), clip["top"], clip["left"], 88, clip["flipped"])
        torch.testing.assert_close(normalise(ours), clip["video"], atol=1e-6, rtol=0)


def normalise(frames):
    return (torch.from_numpy(frames).double() / 255 - 0.421).div(0.165).float()


def test_training_crop_is_one_offset_and_one_flip_per_clip():
    """All frames move together, all 81 offsets and both directions occur, and the same key draws the same crop."""
    rows, columns = np.mgrid[:96, :96].astype(np.uint8)
    frames = np.stack([rows, columns, columns])
    drawn = set()
    for seed in range(600):
        top, left, again = video.augment(frames, np.random.default_rng(seed))
        np.testing.assert_array_equal(left, again)
        flipped = bool(left[0, 0] > left[0, -1])
        drawn.add((int(top.min()), int(left.min()), flipped))
    assert {(top, left) for top, left, _ in drawn} == {(top, left) for top in range(9) for left in range(9)}
    assert len({flip for _, _, flip in drawn}) == 2
    first, second = (video.augment(frames, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_small_models_get_frames_scaled_down_before_the_crop():
    frames = steps(4)
    frames[:, :, 48:] = 200
    small = video.augment(frames, RNG, crop=44, size=48, train=False)
    assert small.shape == (4, 44, 44)
    np.testing.assert_array_equal(small[3], np.repeat([[6] * 22 + [200] * 22], 44, axis=0))
    with pytest.raises(UserError, match="too small for a crop of 88"):
        video.augment(frames, RNG, crop=88, size=48, train=False)
