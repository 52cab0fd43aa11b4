"""Reading mouth tracks, whole or 25 frames from anywhere, against the same frames in H.264 files (one thread each)."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import cv2
import numpy as np

from mmspeech import seeds
from mmspeech.bench.measure import Ready, Row, Settings
from mmspeech.data import video

Read = Callable[[int, int, int], np.ndarray]  # (track, first frame, one behind the last) -> (T, 96, 96) uint8
SPAN = 25  # frames
# The luma of ordinary files goes from 16 to 235.
FULL_RANGE = ((np.arange(256) - 16) * 255 / 219).round().clip(0, 255).astype(np.uint8)


def ours(settings: Settings, folder: Path, spans: bool) -> Ready:
    """JPEG frames in a shard, through the manifest that a cut carries."""
    with video.MouthWriter(folder / "shard-00000.jpgs") as writer:
        keys = [writer.write(str(i), track) for i, track in enumerate(tracks(settings))]
    manifests = [video.track_manifest(folder / "shard-00000.jpgs", key) for key in keys]
    return _ready(
        settings, folder, spans, lambda i, left, right: manifests[i].load(start=left / 25, duration=(right - left) / 25)
    )


def y_plane(settings: Settings, folder: Path, spans: bool, keyframe_every: int = 250) -> Ready:
    """H.264 read well: the decoder's luma plane, stretched to the full range by a table."""

    def grey(frame: av.VideoFrame) -> np.ndarray:
        plane = frame.planes[0]
        luma = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        return FULL_RANGE[luma[: video.SIZE, : video.SIZE]]

    return _ready(settings, folder, spans, _h264(settings, folder, keyframe_every, grey))


def to_ndarray(settings: Settings, folder: Path, spans: bool) -> Ready:
    """H.264 read as PyAV's documentation shows."""
    return _ready(settings, folder, spans, _h264(settings, folder, 250, lambda frame: frame.to_ndarray(format="gray")))


def difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Mean difference in grey levels: both storages lose something."""
    return float(np.abs(a.astype(int) - b).mean()), 6.0


def rows() -> dict[str, Row]:
    found = {}
    for name, title, spans in (
        ("mouth", "mouth tracks, whole", False),
        ("mouth-spans", f"mouth tracks, {SPAN} frames from anywhere", True),
    ):
        peers = {
            "PyAV H.264 crf 18, Y plane": functools.partial(y_plane, spans=spans),
            'PyAV H.264 crf 18, to_ndarray("gray")': functools.partial(to_ndarray, spans=spans),
        }
        if spans:
            close = functools.partial(y_plane, spans=spans, keyframe_every=12)
            peers["PyAV H.264 crf 18, Y plane, keyframe every 12"] = close
        mine = ("shards of JPEG frames", functools.partial(ours, spans=spans))
        found[name] = Row(title, mine, peers, ("frames/s",), difference)
    return found


def tracks(settings: Settings) -> Iterator[np.ndarray]:
    """(T, 96, 96) uint8 each: a smooth face that moves a little, a mouth that opens and closes, sensor noise."""
    for number in range(_num_tracks(settings)):
        rng = seeds.numpy_rng(settings.seed, "track", number)
        face = 120 + 30 * cv2.resize(rng.standard_normal((10, 10)), (112, 112), interpolation=cv2.INTER_CUBIC)
        times = np.arange(_track_frames(settings)) / 25
        opening = 10 + 8 * np.sin(2 * np.pi * (4 * times + rng.random()))
        sway = 4 * np.sin(2 * np.pi * (0.5 * times[:, None] + rng.random(2)))
        frames = []
        for height, (x, y) in zip(opening, sway, strict=True):
            frame = face.copy()
            for grow, grey in ((6, 90.0), (0, 40.0)):
                cv2.ellipse(frame, (56, 60), (24 + grow, int(height) + grow), 0, 0, 360, (grey,), -1)
            moved = cv2.warpAffine(frame, np.array([[1, 0, x - 8], [0, 1, y - 8.0]]), (video.SIZE, video.SIZE))
            frames.append((moved + rng.normal(0, 2.5, moved.shape)).clip(0, 255).astype(np.uint8))
        yield np.stack(frames)


def _ready(settings: Settings, folder: Path, spans: bool, read: Read) -> Ready:
    cv2.setNumThreads(1)
    count, size = _num_tracks(settings), _track_frames(settings)
    num_spans = 10 if settings.quick else 100

    def run(number: int) -> None:
        if not spans:
            for track in range(count):
                read(track, 0, size)
            return
        rng = seeds.numpy_rng(settings.seed, "spans", number)
        for track, left in zip(
            rng.integers(count, size=num_spans), rng.integers(size - SPAN, size=num_spans), strict=True
        ):
            read(int(track), int(left), int(left) + SPAN)

    left = size // 2 + 3
    work = {"frames": num_spans * SPAN if spans else count * size}
    stored = sum(file.stat().st_size for file in folder.iterdir())
    return Ready(run, lambda: read(1, left, left + SPAN), work, {"bytes/frame": stored / (count * size)})


def _num_tracks(settings: Settings) -> int:
    return 2 if settings.quick else 6


def _track_frames(settings: Settings) -> int:
    return 75 if settings.quick else 250


def _h264(settings: Settings, folder: Path, keyframe_every: int, grey: Callable[[av.VideoFrame], np.ndarray]) -> Read:
    """Write the tracks as one file each; returns how to read them."""
    for i, track in enumerate(tracks(settings)):
        with av.open(str(folder / f"{i}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"crf": "18", "g": str(keyframe_every)})
            stream.width = stream.height = video.SIZE
            stream.pix_fmt = "yuv420p"
            for frame in track:
                luma = (16 + frame * (219 / 255)).round().astype(np.uint8)
                colourless = np.full((video.SIZE // 2, video.SIZE), 128, np.uint8)
                planes = av.VideoFrame.from_ndarray(np.concatenate([luma, colourless]), format="yuv420p")
                container.mux(stream.encode(planes))
            container.mux(stream.encode())

    def read(track: int, left: int, right: int) -> np.ndarray:
        frames = np.empty((right - left, video.SIZE, video.SIZE), np.uint8)
        with av.open(str(folder / f"{track}.mp4")) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            if left:
                container.seek(left * 40_000)  # microseconds; to the keyframe before it
            for frame in container.decode(stream):
                number = round(frame.time * 25)
                if left <= number < right:
                    frames[number - left] = grey(frame)
                if number >= right - 1:
                    break
        return frames

    return read
