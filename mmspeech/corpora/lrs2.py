"""LRS2: clips of faces from BBC television, LRS3's older sibling; its clips and transcripts are made as LRS3's are.

    CORPUS/mvlrs_v1/{pretrain,main}/BROADCAST/CLIP.mp4 and CLIP.txt
    CORPUS/{pretrain,train,val,test}.txt      lists of BROADCAST/CLIP, in test.txt with a mark behind it

Of `main` the lists say what is what; `pretrain` has the times of the words. VATLM fine-tunes on its 224 h (Table II).

Afouras, Chung, Senior, Vinyals, Zisserman: Deep audio-visual speech recognition, 2018.
"""

import functools
import math
from pathlib import Path

from mmspeech.console import say
from mmspeech.corpora.lrs3 import read_clip
from mmspeech.corpora.splits import Clip, check_places, not_there, with_alignments, write_splits
from mmspeech.corpora.transcripts import read_lines
from mmspeech.errors import UserError
from mmspeech.files import Stage
from mmspeech.media import FRAMES_PER_S

VIDEOS = "mvlrs_v1"
# List -> the folder of its clips, and which cuts they become.
LISTS = {
    "pretrain": ("pretrain", "pretrain"),
    "train": ("main", "trainval"),
    "val": ("main", "valid"),
    "test": ("main", "test"),
}
LAYOUT = f"{VIDEOS}/{{pretrain,main}}/BROADCAST/CLIP.mp4 and CLIP.txt, and beside it {{{','.join(LISTS)}}}.txt"
ABOUT = (
    "LRS2 (faces on BBC television, given out on request by Oxford's Visual Geometry Group, "
    f"robots.ox.ac.uk/~vgg/data/lip_reading/lrs2.html) is a folder with {LAYOUT}"
)


def prepare(
    corpus: Path,
    out: Path,
    max_s: float = 15.0,
    alignments: Path | None = None,
    jobs: int = 4,
    strict: bool = False,
) -> None:
    """LRS2, in its own layout -> cuts for pre-training, fine-tuning, validation and test.

    CORPUS holds mvlrs_v1/ and the four lists (which may lie in mvlrs_v1, too). OUT receives
    cuts_{pretrain,trainval,valid,test}.jsonl.gz, as the lists pretrain, train, val and test say, the sound as FLAC, and
    rejected.jsonl with every clip that was set aside and the reason. Long clips of pretrain are cut at pauses. Does
    nothing if the output is current.

    Example: `mmspeech prepare lrs2 /data/lrs2 exp/data`

    Args:
        corpus: The folder that holds mvlrs_v1 and the lists.
        out: Folder to write.
        max_s: Longest cut of pretrain, in seconds; longer clips are cut in the middle of pauses.
        alignments: Folder of TextGrid or CTM files with phones, named {pretrain,main}/BROADCAST/CLIP.
        jobs: Processes that decode clips.
        strict: Stop at the first clip that cannot be used.
    """
    clips, left_out = find_clips(corpus)
    check_places(corpus, out)
    stage = Stage(out, [corpus, *([alignments] if alignments else [])], {"max_s": max_s})
    if stage.is_current():
        return
    if alignments:
        # BROADCAST/CLIP alone would be a clip of pretrain and another one of main.
        clips = with_alignments(clips, alignments, {split: folder for folder, split in LISTS.values()})
    read = functools.partial(read_clip, max_frames=math.floor(max_s * FRAMES_PER_S))
    write_splits(stage, clips, read, jobs=jobs, strict=strict, title="lrs2", left_out=left_out)


def find_clips(corpus: Path) -> tuple[list[Clip], list[tuple[str, str]]]:
    """The clips that the lists name, and (item, reason) of those that are not there.

    Raises UserError if the corpus or its lists are not there, or if a clip is in two lists.
    """
    videos = corpus / VIDEOS if (corpus / VIDEOS).is_dir() else corpus
    places = [place / f"{name}.txt" for name in LISTS for place in (videos, corpus)]
    lists = {path.stem: path for path in places if path.is_file()}
    if not (videos / "main").is_dir() and not (videos / "pretrain").is_dir():
        raise not_there(corpus, "LRS2", f"no {VIDEOS} with main and pretrain is there", ABOUT, _holds)
    if not lists:
        raise not_there(corpus, "LRS2", "none of its lists of clips is there", ABOUT, _holds)
    if missing := [f"{name}.txt" for name in LISTS if name not in lists]:
        say(f"{corpus}: no {', no '.join(missing)}: the clips of these lists are left out")
    clips: list[Clip] = []
    left_out: list[tuple[str, str]] = []
    homes: dict[str, str] = {}  # of a clip: the list that names it
    for name, path in lists.items():
        folder, split = LISTS[name]
        for number, line in enumerate(read_lines(path), start=1):
            if not line.strip():
                continue
            key = line.split()[0]
            broadcast, _, clip = key.partition("/")
            if not clip or "/" in clip:
                raise UserError(f"{path}:{number}: expected BROADCAST/CLIP, found {line.strip()}; mend the list")
            if homes.setdefault(f"{folder}/{key}", name) != name:
                other = homes[f"{folder}/{key}"]
                raise UserError(f"{path}:{number}: {key} is in {other}.txt, too; get the lists as they were published")
            video = videos / folder / broadcast / f"{clip}.mp4"
            if video.exists():
                text = video.with_suffix(".txt")
                clips.append(Clip(split=split, speaker=broadcast, name=clip, media=video, transcript=text))
            else:
                left_out.append((key, f"{video}: no such clip, but {path} names it; left out"))
    if not clips:
        raise UserError(f"{corpus}: none of the clips of its lists is there; expected {LAYOUT}")
    return clips, left_out


def _holds(place: Path) -> bool:
    """Whether a folder looks like LRS2, with a list."""
    there = [(place / VIDEOS / name).is_dir() or (place / name).is_dir() for name in ("main", "pretrain")]
    return any(there) and any((part / f"{name}.txt").is_file() for part in (place, place / VIDEOS) for name in LISTS)
