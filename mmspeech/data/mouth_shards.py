"""Cuts -> the same cuts with mouth tracks: shards of tracks made in parallel, a report and a picture to look at.

A recording is processed once, however many cuts share it, and every cut gets the whole track: lhotse reads the part
that the cut's start and duration name. A shard holds the tracks of 32 recordings, appears when it is complete, and
tells what became of each of them; so a run that was stopped goes on with the shards that are missing.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from lhotse import CutSet
from lhotse.cut import Cut

from mmspeech import files, media
from mmspeech.console import say
from mmspeech.data import landmarks, mouth, video
from mmspeech.data.cutfiles import is_empty, open_cuts, writing_cuts
from mmspeech.errors import BadItem, UserError

CLIPS_PER_SHARD = 32
CENTRED_PX = 10  # how near to the crop's centre the inner lips should lie


@dataclass(frozen=True)
class Clip:
    """One recording with video."""

    id: str
    video: str  # path of the container
    num_frames: int  # at 25 Hz, over the recording's whole duration


@dataclass(frozen=True)
class Shard:
    """The recordings that one file will hold."""

    path: Path
    clips: tuple[Clip, ...]


@dataclass
class Report:
    """What `report.json` says."""

    clips: int = 0  # recordings with video
    tracks: int = 0  # of these, with a mouth track
    without_face: int = 0
    set_aside: int = 0  # all that have no track: no face, unreadable video, no landmarks
    frames: int = 0  # of the tracks
    interpolated_frames: int = 0  # no face there: landmarks taken from the neighbours
    centred_frames: int = 0  # inner lips within 10 pixels of the crop's centre
    several_faces: int = 0  # clips that show more than one; the largest was taken
    several_faces_clips: list[str] = field(default_factory=list)  # the first hundred of them
    cuts: int = 0
    cuts_without_track: int = 0  # left out with their recording
    cuts_without_video: int = 0  # passed through unchanged

    def add(self, clip: Mapping) -> None:
        """Count one entry of a shard's summary."""
        self.clips += 1
        self.without_face += clip["faces"] == 0
        self.set_aside += clip["key"] is None
        if clip["key"] is not None:
            self.tracks += 1
            self.frames += clip["frames"]
            self.interpolated_frames += clip["interpolated"]
            self.centred_frames += clip["centred"]
        if clip["faces"] > 1:
            self.several_faces += 1
            self.several_faces_clips = [*self.several_faces_clips, clip["id"]][:100]

    def line(self) -> str:
        """The report in one line."""
        frames = max(self.frames, 1)
        return (
            f"mouth tracks of {self.tracks} of {self.clips} clips ({self.without_face} without a face, "
            f"{self.several_faces} with several), {self.frames} frames, {self.interpolated_frames / frames:.1%} "
            f"interpolated, lips centred in {self.centred_frames / frames:.1%}"
        )


def extract(
    cuts_files: Sequence[Path], out: Path, landmark_files: Path | None, jobs: int, rejects: files.Rejects
) -> Report:
    """Write shards, cuts with mouth tracks, `report.json` and `contact-sheet.jpg` into `out`; shards there are kept.

    Raises UserError if there are clips with video and none of them gives a track.
    """
    report, tracks = Report(), {}
    # The plan and the tracks' keys stay in memory, under 1 KB a recording: cuts of any file may share any recording.
    shards = list(plan(cuts_files, out / "mouth", need_detector=landmark_files is None))
    make = functools.partial(make_shard, landmark_files=landmark_files)
    for shard, summary in files.parallel_map(make, shards, jobs=jobs, rejects=rejects, title="shards of mouth tracks"):
        for clip in summary:
            report.add(clip)
            if clip["key"] is None:
                rejects.add(clip["id"], clip["reason"])
            else:
                tracks[clip["id"]] = (shard.path, clip["key"])
    if report.clips and not tracks:
        raise UserError(f"{out}: none of {report.clips} clips gave a mouth track; the reasons are in {rejects.path}")
    for path in cuts_files:
        with writing_cuts(out / path.name) as writer:
            for cut in _with_tracks(path, tracks, report):
                writer.write(cut)
    if not report.cuts:
        raise UserError(f"{', '.join(map(str, cuts_files))}: no cuts in there; run `mmspeech prepare` on a full corpus")
    if report.cuts_without_video:
        say(f"{report.cuts_without_video} of {report.cuts} cuts have no video: passed through without lips")
    files.write_json(out / "report.json", vars(report))
    if tracks:
        with files.replacing(out / "contact-sheet.jpg") as path:
            cv2.imwrite(str(path), contact_sheet(tracks))
    return report


def plan(cuts_files: Sequence[Path], folder: Path, need_detector: bool) -> Iterator[Shard]:
    """Deal the recordings with video, each once and in the order of the cuts, to shards in `folder`."""
    seen: set[str] = set()
    clips: list[Clip] = []
    count = 0
    for cut in (cut for path in cuts_files for cut in _cuts(path)):
        if not has_video(cut) or cut.recording.id in seen:
            continue
        if need_detector and not seen:
            landmarks.check_detector()
        seen.add(cut.recording.id)
        num_frames = round(cut.recording.duration * media.FRAMES_PER_S)
        clips.append(Clip(cut.recording.id, cut.source["path"], num_frames))
        if len(clips) == CLIPS_PER_SHARD:
            yield Shard(folder / f"shard-{count:05d}.jpgs", tuple(clips))
            clips, count = [], count + 1
    if clips:
        yield Shard(folder / f"shard-{count:05d}.jpgs", tuple(clips))


def make_shard(shard: Shard, landmark_files: Path | None) -> tuple[Shard, list[dict]]:
    """Write one shard unless it is there; returns what became of each of its clips."""
    if not shard.path.exists():
        cv2.setNumThreads(1)  # there is one process per core already
        with files.replacing(shard.path) as temporary, open(temporary, "wb") as file:
            summary = [_add_clip(file, clip, landmark_files) for clip in shard.clips]
            video.end_shard(file, summary)
    return shard, video.shard_summary(shard.path)


def _add_clip(file: IO[bytes], clip: Clip, landmark_files: Path | None) -> dict:
    """Append the track of one clip to an open shard; returns its entry in the summary."""
    entry = {"id": clip.id, "key": None, "frames": clip.num_frames, "interpolated": 0, "faces": 1, "centred": 0}
    try:
        face = find_face(clip, landmark_files)
        entry["faces"] = face.num_faces
        points = mouth.fit_length(face.points, clip.num_frames)
        entry["interpolated"] = int(np.isnan(points).any(axis=(1, 2)).sum())
        points = mouth.interpolate(points)
        jpegs = video.encode(mouth.crop_mouths(media.read_frames(Path(clip.video), grey=True), points))
        entry["centred"] = int((mouth.lip_distances(points) <= CENTRED_PX).sum())
    except BadItem as error:
        return entry | {"reason": f"{clip.id}: {error}"}
    return entry | {"key": video.append_track(file, jpegs)}


def find_face(clip: Clip, landmark_files: Path | None, piece: int | None = None) -> landmarks.Landmarks:
    """The landmarks of a clip: from the folder of files if there is one, else from the detector (there: `piece`)."""
    if landmark_files is not None:
        return landmarks.read_landmarks(landmark_files, clip.video)
    return landmarks.detect_landmarks(functools.partial(media.read_frames, Path(clip.video), grey=False), piece)


def has_video(cut: Cut) -> bool:
    """Whether the cut comes from a file with a picture."""
    return bool(cut.custom and cut.custom.get("source"))


def contact_sheet(tracks: Mapping[str, tuple[Path, str]], rows: int = 12, columns: int = 8) -> np.ndarray:
    """A picture of a few clips (evenly over all, one per row, with its id) and a few frames of each, grey uint8."""
    picked = np.unique(np.linspace(0, len(tracks) - 1, rows).round().astype(int))
    names = list(tracks)
    strips = []
    for name in (names[index] for index in picked):
        path, key = tracks[name]
        frames = video.track_manifest(path, key).load()
        shown = frames[np.linspace(0, len(frames) - 1, columns).round().astype(int)]
        caption = np.zeros((16, columns * video.SIZE), np.uint8)
        cv2.putText(caption, name, (2, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255,), 1, cv2.LINE_AA)
        strips += [caption, np.concatenate(list(shown), axis=1)]
    return np.concatenate(strips)


def _with_tracks(path: Path, tracks: Mapping[str, tuple[Path, str]], report: Report) -> Iterator[Cut]:
    """The cuts of a file with their tracks; those whose recording has none are left out."""
    for cut in _cuts(path):
        report.cuts += 1
        if not has_video(cut):
            report.cuts_without_video += 1
        elif cut.recording.id not in tracks:
            report.cuts_without_track += 1
            continue
        else:
            cut.mouth = video.track_manifest(*tracks[cut.recording.id])
        yield cut


def _cuts(path: Path) -> CutSet | tuple:
    return () if is_empty(path) else open_cuts(path)
