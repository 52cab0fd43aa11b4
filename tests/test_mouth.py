"""From landmarks to mouth tracks: the geometry, faces over time, the command on small clips, real clips of GRID."""

import json
import sys
from unittest import mock

import av
import cv2
import numpy as np
import pytest
import soundfile
from lhotse import CutSet, Recording, SupervisionSegment

from mmspeech import media
from mmspeech.data import landmarks, mouth, mouth_shards, video
from mmspeech.errors import BadItem, UserError


def face(centre=(112.0, 100.0), scale=0.8, angle=0.0):
    """A rough face of 68 points (68, 2): the mean face's anchors, and lips on two ellipses, somewhere in a picture."""
    points = np.full((68, 2), 128.0)
    points[list(mouth.ANCHORS)] = mouth.MEAN_FACE
    for part, width, height in [(slice(48, 60), 25, 12), (slice(60, 68), 18, 4)]:
        turn = np.linspace(0, 2 * np.pi, part.stop - part.start, endpoint=False)
        points[part] = np.stack([128 - width * np.cos(turn), 190 - height * np.sin(turn)], axis=1)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return ((points - 128) @ rotation * scale + centre).astype(np.float32)


def moving_face(num_frames=30):
    return np.stack([face((110 + t / 4, 105 - t / 8), 0.8 + t / 500, t / 200) for t in range(num_frames)])


def one_point_face(num_frames):
    """Lips and jaw in their places, but the anchors of the alignment all in one."""
    points = moving_face(num_frames)
    points[:, mouth.ANCHORS] = 50.0
    return points


def test_alignment_takes_any_face_to_the_mean_face():
    """For a similar copy of the mean face the anchors land on it exactly; the lips land where it has them."""
    points = np.stack([face((90, 140), 0.6, 0.3)] * 20)
    aligned = mouth.apply(mouth.align(points), points)
    np.testing.assert_allclose(aligned[:, mouth.ANCHORS], np.stack([mouth.MEAN_FACE] * 20), atol=1e-3)
    np.testing.assert_allclose(aligned[:, mouth.MOUTH].mean(axis=(0, 1)), [128, 190], atol=1e-3)


def test_transform_uses_the_mean_of_this_frame_and_the_next_eleven():
    """T_t = fit(mean(x_t .. x_{t+11})); the last 11 frames reuse the last one, short clips have a single one."""
    points = moving_face() + np.random.default_rng(0).normal(0, 1, (30, 68, 2))
    transforms = mouth.align(points)
    for t in (0, 7, 18):
        alone = mouth.similarity(points[None, t : t + 12, mouth.ANCHORS].mean(axis=1), mouth.MEAN_FACE)[0]
        np.testing.assert_allclose(transforms[t], alone, atol=1e-6)
    assert (transforms[18:] == transforms[18]).all() and len(transforms) == 30
    short = mouth.align(points[:5])
    assert short.shape == (5, 2, 3) and (short == short[0]).all()


def test_missed_frames_are_interpolated_linearly():
    points = moving_face(10)
    gaps = points.copy()
    gaps[[0, 4, 5, 9]] = np.nan
    filled = mouth.interpolate(gaps)
    np.testing.assert_allclose(filled[4], points[3] + (points[6] - points[3]) / 3, atol=1e-4)
    np.testing.assert_array_equal(filled[0], points[1])
    np.testing.assert_array_equal(filled[9], points[8])
    with pytest.raises(BadItem, match="expected a face"):
        mouth.interpolate(np.full_like(points, np.nan))


def test_crop_equals_warping_to_the_whole_face_and_cutting():
    """Warping straight to 96x96 gives the pixels of warping to 256x256 and cutting 96x96 around the frame's mouth."""
    frames = np.random.default_rng(0).integers(0, 256, (3, 224, 224), dtype=np.uint8)
    points = moving_face(3)
    for frame, transform, own, crop in zip(
        frames, mouth.align(points), points, mouth.crop_mouths(frames, points), strict=True
    ):
        whole = cv2.warpAffine(frame, transform, (256, 256))
        x, y = np.rint(mouth.apply(transform[None], own[None, 48:68])[0].mean(axis=0)).astype(int) - 48
        difference = np.abs(whole[y : y + 96, x : x + 96].astype(int) - crop)
        assert difference.mean() < 0.1  # OpenCV rounds coordinates to 1/32 pixel


def test_crop_stays_inside_the_aligned_face():
    points = moving_face(3)
    points[:, 48:68] += 500
    assert (mouth.corners(mouth.align(points), points) == 256 - 96).all()


def test_large_faces_are_shrunk_before_they_are_sampled():
    """A fine checkerboard in a face 6 times too large comes out as its mean, not as an alias, and stays in place."""
    frame = ((np.indices((1400, 1400)).sum(axis=0) % 2) * 200).astype(np.uint8)
    points = np.stack([face((700, 600), 6.0)] * 12)
    marker = points[0, 60:68].mean(axis=0).astype(int)
    frame[marker[1] - 24 : marker[1] + 24, marker[0] - 24 : marker[0] + 24] = 255
    crop = next(mouth.crop_mouths([frame] * 12, points)).astype(float)
    assert abs(crop[:30].mean() - 100) < 2 and crop[:30].std() < 5
    rows, columns = np.nonzero(crop > 180)
    assert abs(rows.mean() - 48) < 1 and abs(columns.mean() - 48) < 1


def test_the_largest_face_is_followed_when_faces_swap_places_in_the_list():
    large, small = face((150, 110), 0.9), face((30, 50), 0.3)
    poster = face((60, 150), 1.2)  # larger, but there for one frame only
    found = landmarks.largest_face([[small, large], [large, small], [], [small], [large + 3, poster], [large + 6]])
    assert found.num_faces == 2
    assert np.isnan(found.points[[2, 3]]).all()
    np.testing.assert_array_equal(found.points[[0, 1, 4, 5]], np.stack([large, large, large + 3, large + 6]))


def test_in_pieces_every_shot_keeps_its_largest_face(monkeypatch):
    """Two shots that show a face in two places: one track follows the longer shot, pieces follow both."""
    near, far = face((150, 110), 0.9), face((30, 50), 0.3)
    monkeypatch.setattr(landmarks, "_mesh", lambda still, most: mock.Mock())
    monkeypatch.setattr(landmarks, "_faces", lambda mesh, frame: [near] if frame < 6 else [far] if frame < 9 else [])
    whole = landmarks.detect_landmarks(lambda: range(10))
    assert np.isfinite(whole.points).all(axis=(1, 2)).sum() == 6
    pieces = landmarks.detect_landmarks(lambda: range(10), piece=3)
    np.testing.assert_array_equal(pieces.points[:9], np.stack([near] * 6 + [far] * 3))
    assert np.isnan(pieces.points[9]).all() and pieces.num_faces == 1
    assert landmarks.detect_landmarks(lambda: range(0), piece=3).points.shape == (0, 68, 2)


def make_clip(folder, name, num_frames=50, silent_landmarks=False):
    """A clip with a bright mouth on a grey ground, its landmarks and its cut (two segments of one recording)."""
    path = folder / "videos" / "pretrain" / "spk1" / f"{name}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    points = moving_face(num_frames)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 224
        stream.pix_fmt = "yuv420p"
        for t in range(num_frames):
            picture = np.full((224, 224, 3), 80, np.uint8)
            cv2.fillPoly(picture, [np.rint(points[t, 60:68]).astype(np.int32)], (230, 230, 230))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
    if not silent_landmarks:
        file = folder / "landmarks" / "pretrain" / "spk1" / f"{name}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        points[3] = np.nan
        np.save(file, points)
    return make_cuts(folder, f"pretrain-spk1-{name}", num_frames / 25, str(path))


def make_cuts(folder, name, duration, source=None):
    audio = folder / "audio" / f"{name}.flac"
    audio.parent.mkdir(exist_ok=True)
    soundfile.write(audio, np.zeros(round(16000 * duration)), 16000)
    recording = Recording.from_file(audio, recording_id=name)
    cuts = []
    for k, (start, end) in enumerate([(0, 0.6 * duration), (0.6 * duration, duration)]):
        cut = recording.to_cut().truncate(offset=start, duration=end - start)
        cut.id = f"{name}-{k}"
        cut.supervisions = [SupervisionSegment(cut.id, name, 0, cut.duration, text="one")]
        if source:
            cut.custom = {"source": {"path": source}}
        cuts.append(cut)
    return cuts


@pytest.fixture
def corpus(tmp_path):
    """Three clips, one of them without landmarks, an audio-only recording and an empty file of cuts."""
    cuts = [cut for name in "ab" for cut in make_clip(tmp_path, name)]
    cuts += make_clip(tmp_path, "lost", silent_landmarks=True) + make_cuts(tmp_path, "pretrain-spk2-audio", 1.0)
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts_pretrain.jsonl.gz")
    (tmp_path / "cuts_valid.jsonl.gz").write_bytes(b"")
    CutSet.from_cuts(cuts[:2]).to_file(tmp_path / "cuts_test.jsonl.gz")
    return tmp_path


def extract(mmspeech, corpus, *options):
    names = [corpus / f"cuts_{part}.jsonl.gz" for part in ("pretrain", "valid", "test")]
    return mmspeech("extract", "mouth", *names, corpus / "lips", "--landmarks", corpus / "landmarks", *options)


def test_command_gives_every_cut_its_part_of_the_track(corpus, mmspeech):
    """Segments share the recording's track; audio-only cuts pass; a clip without landmarks is set aside."""
    done = extract(mmspeech, corpus, "--jobs", 2)
    assert done.returncode == 0, done.stderr
    assert "mouth tracks of 2 of 3 clips" in done.stderr and "2 of 10 cuts have no video" in done.stderr
    lips = corpus / "lips"
    cuts = list(CutSet.from_jsonl_lazy(lips / "cuts_pretrain.jsonl.gz"))
    assert [cut.id.split("-", 2)[2] for cut in cuts] == ["a-0", "a-1", "b-0", "b-1", "audio-0", "audio-1"]
    first, second = (video.read_mouth(cut) for cut in cuts[:2])
    assert first.shape == (30, 96, 96) and second.shape == (20, 96, 96)
    # The true mouth is the only bright thing: its centre must be the crop's.
    for frame in np.concatenate([first, second]):
        rows, columns = np.nonzero(frame > 160)
        assert np.hypot(rows.mean() - 47.5, columns.mean() - 47.5) < 2
    test_cut = next(iter(CutSet.from_jsonl_lazy(lips / "cuts_test.jsonl.gz")))
    assert test_cut.mouth == cuts[0].mouth and test_cut.supervisions == cuts[0].supervisions
    assert (lips / "cuts_valid.jsonl.gz").exists()
    report = json.loads((lips / "report.json").read_text())
    assert (report["clips"], report["tracks"], report["frames"], report["interpolated_frames"]) == (3, 2, 100, 2)
    assert report["centred_frames"] == 100 and report["cuts_without_track"] == 2
    assert "lost.npy: no landmarks" in json.loads((lips / "rejected.jsonl").read_text())["reason"]
    assert cv2.imread(str(lips / "contact-sheet.jpg")).shape == (2 * 112, 8 * 96, 3)
    again = extract(mmspeech, corpus, "--strict")
    assert "current, nothing to do" in again.stderr
    assert again.returncode == 2 and "set aside" in again.stderr


def test_stopped_extraction_keeps_finished_shards(corpus, monkeypatch):
    """Without the last record the run goes on: what is there is not made again, what is missing is."""
    monkeypatch.setattr(mouth_shards, "CLIPS_PER_SHARD", 1)
    from mmspeech.files import Rejects

    def run():
        with Rejects(corpus / "rejected.jsonl") as rejects:
            names = [corpus / "cuts_pretrain.jsonl.gz", corpus / "cuts_test.jsonl.gz"]
            return mouth_shards.extract(names, corpus / "lips", corpus / "landmarks", 1, rejects)

    first = run()
    shards = sorted((corpus / "lips" / "mouth").iterdir())
    assert [path.name for path in shards] == [f"shard-{k:05d}.jpgs" for k in range(3)]
    made, content = shards[0].stat().st_mtime_ns, shards[1].read_bytes()
    shards[1].unlink()
    assert run() == first
    assert shards[0].stat().st_mtime_ns == made and shards[1].read_bytes() == content


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda path: path.unlink(), "no landmarks"),
        (lambda path: np.save(path, np.zeros((50, 5, 2))), "expected numbers of shape (T, 68, 2)"),
        (lambda path: path.write_bytes(b"junk"), "expected an array of landmarks"),
        (lambda path: np.save(path, moving_face(20)), "expected landmarks of 50 frames"),
        (lambda path: np.save(path, np.full((50, 68, 2), np.nan)), "expected a face"),
        (lambda path: np.save(path, np.zeros((50, 68, 2), np.int32)), "expected a face"),
        (lambda path: np.save(path, np.full((50, 68, 2), 1e60)), "expected a face"),
        (lambda path: np.save(path, one_point_face(50)), "eyes and nose in one point"),
        (lambda path: np.save(path, 1e6 * moving_face(50)), "expected landmarks in a picture of 224x224 pixels"),
    ],
)
def test_bad_landmarks_set_their_clip_aside(corpus, spoil, message):
    spoil(corpus / "landmarks" / "pretrain" / "spk1" / "a.npy")
    clip = mouth_shards.Clip("id-a", str(corpus / "videos" / "pretrain" / "spk1" / "a.mp4"), 50)
    _, summary = mouth_shards.make_shard(mouth_shards.Shard(corpus / "s.jpgs", (clip,)), corpus / "landmarks")
    assert summary[0]["key"] is None and summary[0]["reason"].startswith("id-a: ")
    assert message in summary[0]["reason"]


def test_frames_where_the_detector_wrote_zeros_have_no_face(corpus):
    """Zeros, one point 68 times and inf are interpolated as nan is, and are counted; a clip of zeros shows no face."""
    path = corpus / "landmarks" / "pretrain" / "spk1" / "a.npy"
    points = moving_face(50)
    gaps = points.copy()
    gaps[4], gaps[5], gaps[6, 7, 1] = 0, 90.25, np.inf
    np.save(path, gaps)
    read = landmarks.read_landmarks(corpus / "landmarks", "a/pretrain/spk1/a.mp4")
    assert np.flatnonzero(np.isnan(read.points).all(axis=(1, 2))).tolist() == [4, 5, 6] and read.num_faces == 1
    np.testing.assert_allclose(mouth.interpolate(read.points), points, atol=0.05)
    clip = mouth_shards.Clip("id-a", str(corpus / "videos" / "pretrain" / "spk1" / "a.mp4"), 50)
    _, summary = mouth_shards.make_shard(mouth_shards.Shard(corpus / "s.jpgs", (clip,)), corpus / "landmarks")
    assert summary[0]["interpolated"] == 3 and summary[0]["key"] is not None
    np.save(path, np.zeros_like(points))
    assert landmarks.read_landmarks(corpus / "landmarks", "a/pretrain/spk1/a.mp4").num_faces == 0


def test_nothing_left_is_an_error(corpus, mmspeech):
    for path in (corpus / "landmarks" / "pretrain" / "spk1").iterdir():
        path.unlink()
    done = extract(mmspeech, corpus, "--jobs", 1)
    assert done.returncode == 2 and "none of 3 clips gave a mouth track" in done.stderr


def test_missing_detector_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(UserError, match=r"bin/setup synth video.*3\.11 or 3\.12.*--landmarks"):
        landmarks.check_detector()


@pytest.mark.parametrize("clip", ["s1/bbaf2n", "s4/lwbsza", "s20/brbk7n"])
def test_real_clip_gives_a_track_with_centred_lips(shared, clip):
    """The inner lips, found anew frame by frame (not by the tracking that cut the crop), lie within 10 pixels."""
    pytest.importorskip("mediapipe", reason="needs pip install mmspeech[video]")
    path = shared / "data" / "grid" / f"{clip}.mpg"

    def frames():
        return media.read_frames(path, grey=False)

    found = landmarks.detect_landmarks(frames)
    assert found.num_faces == 1 and np.isfinite(found.points).all() and len(found.points) == 75
    assert next(mouth.crop_mouths(media.read_frames(path, grey=True), found.points)).std() > 5
    with landmarks._quiet():
        again = [landmarks._faces(landmarks._mesh(True, 1), frame)[0] for frame in list(frames())[::5]]
    lips = np.stack(again)[:, mouth.INNER_LIPS].mean(axis=1)
    distances = mouth.lip_distances(found.points, np.repeat(lips, 5, axis=0))[::5]
    assert (distances < 10).mean() >= 0.95


def test_two_real_faces_give_the_larger_one(shared):
    """Beside a smaller face on the left, the track stays on the larger one, and both are counted."""
    pytest.importorskip("mediapipe", reason="needs pip install mmspeech[video]")
    grid = shared / "data" / "grid"
    large = list(media.read_frames(grid / "s1" / "bbaf2n.mpg", grey=False))[:10]
    small = list(media.read_frames(grid / "s4" / "lwbsza.mpg", grey=False))[:10]
    both = []
    for one, other in zip(large, small, strict=True):
        shrunk = cv2.resize(other, (270, 216))
        both.append(np.concatenate([np.pad(shrunk, ((0, 72), (0, 0), (0, 0))), one], axis=1))
    found = landmarks.detect_landmarks(lambda: both)
    assert found.num_faces == 2
    assert np.isfinite(found.points).all() and (found.points[:, 8, 0] > 270).all()
    nobody = landmarks.detect_landmarks(lambda: [np.full((288, 360, 3), 90, np.uint8)] * 5)
    assert nobody.num_faces == 0 and np.isnan(nobody.points).all()


def test_lips_of_the_embedded_corpus_are_centred_where_they_truly_are(tmp_path):
    """On a drawn face the crop's centre lies within 10 pixels of the true mouth, in 95 % of frames, by both ways."""
    pytest.importorskip("espeakng_loader", reason="needs pip install mmspeech[synth]")
    pytest.importorskip("mediapipe", reason="needs pip install mmspeech[video]")
    from mmspeech.corpora import synth

    clip = synth.plan_clips(0, "digits", 0.5, {"pretrain": 1, "trainval": 1, "test": 1}, speakers=3)[0]
    synth.make_clip(clip, tmp_path)
    path = next((tmp_path / "lrs3").rglob("*.mp4"))
    truth = landmarks.read_landmarks(tmp_path / "landmarks", str(path)).points
    detected = landmarks.detect_landmarks(lambda: media.read_frames(path, grey=False)).points
    lips = truth[:, mouth.INNER_LIPS].mean(axis=1)
    for points in (truth, mouth.interpolate(detected)):
        assert (mouth.lip_distances(points, lips) <= 10).mean() >= 0.95
