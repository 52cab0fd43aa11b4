"""VoxCeleb2: interviews with celebrities, cut to clips of a face; picture and sound lie in trees of their own.

    CORPUS/{dev,test}/mp4/SPEAKER/VIDEO/CLIP.mp4    the picture, 25 frames per second
    CORPUS/{dev,test}/aac/SPEAKER/VIDEO/CLIP.m4a    the sound
    (or mp4/ and aac/ right below CORPUS)

There are no transcripts, and many languages. AV-HuBERT and u-HuBERT pre-train on 1,326 h of English clips (VC2-En),
which a list names; u-HuBERT's Figure 4 takes their sound alone.

Chung, Nagrani, Zisserman: VoxCeleb2, deep speaker recognition, 2018.
"""

import functools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from lhotse import MonoCut

from mmspeech.console import say
from mmspeech.corpora.splits import Clip, check_places, not_there, supervise, to_cut, write_splits
from mmspeech.corpora.transcripts import read_lines
from mmspeech.errors import UserError
from mmspeech.files import Stage

LAYOUT = "dev/ and test/, each with mp4/SPEAKER/VIDEO/CLIP.mp4 and aac/SPEAKER/VIDEO/CLIP.m4a"
ABOUT = (
    "VoxCeleb2 (interviews from YouTube, 1.1 million clips, given out on request by Oxford's Visual Geometry Group, "
    f"robots.ox.ac.uk/~vgg/data/voxceleb) is a folder with {LAYOUT}"
)


def prepare(
    corpus: Path,
    out: Path,
    ids: Path | None = None,
    audio_only: bool = False,
    jobs: int = 4,
    strict: bool = False,
) -> None:
    """VoxCeleb2, in its own layout -> cuts without transcripts, for pre-training.

    CORPUS holds dev/ and test/, each with mp4/SPEAKER/VIDEO/CLIP.mp4 and aac/SPEAKER/VIDEO/CLIP.m4a. OUT receives
    cuts_pretrain.jsonl.gz (the other three files stay empty), the sound as FLAC, as long as the picture, and
    rejected.jsonl with every clip that was set aside and the reason: one of its two files is missing, cut off, or of
    another length. Does nothing if the output is current.

    Example: `mmspeech prepare voxceleb2 /data/voxceleb2 exp/vox/data --ids vox-en.id`

    Args:
        corpus: The folder that holds dev and test.
        out: Folder to write.
        ids: File with the clips to take, one SPEAKER/VIDEO/CLIP per line, with or without its ending: the English ones.
        audio_only: Take the sound alone; the mp4 trees need not be there.
        jobs: Processes that decode clips.
        strict: Stop at the first clip that cannot be used.
    """
    clips, left_out = find_clips(corpus, read_ids(ids) if ids else None, audio_only)
    check_places(corpus, out)
    stage = Stage(out, [corpus, *([ids] if ids else [])], {"audio_only": audio_only})
    if stage.is_current():
        return
    if ids is None:
        say(f"{corpus}: clips of all languages; --ids takes a list of the English ones")
    read = functools.partial(read_clip, need_video=not audio_only, language="en" if ids else None)
    write_splits(stage, clips, read, jobs=jobs, strict=strict, title="voxceleb2", left_out=left_out)


def find_clips(corpus: Path, wanted: set[str] | None, audio_only: bool) -> tuple[list[Clip], list[tuple[str, str]]]:
    """All clips, or the wanted ones; and (item, reason) of pictures without sound and sound without a picture.

    Raises UserError if the corpus, or one of its trees, is not there, or none of the wanted clips is.
    """
    parts = [part for part in (corpus / "dev", corpus / "test", corpus) if (part / "aac").is_dir()]
    if not parts:
        raise not_there(corpus, "VoxCeleb2", "no folder aac is there", ABOUT, lambda place: any(place.glob("*/aac")))
    blind = [part for part in parts if not audio_only and not (part / "mp4").is_dir()]
    if blind:
        raise UserError(
            f"{blind[0]}: has aac, but no mp4; give the pictures too, or --audio-only to take the sound alone"
        )
    clips, left_out, seen = [], [], set()
    for part in parts:
        sounds = set(_keys(part / "aac", ".m4a", wanted))
        pictures = sounds if audio_only else set(_keys(part / "mp4", ".mp4", wanted))
        for key in sorted(sounds & pictures):
            speaker, video, name = key.split("/")
            sound, picture = part / "aac" / f"{key}.m4a", part / "mp4" / f"{key}.mp4"
            clip = Clip(split="pretrain", speaker=speaker, name=f"{video}-{name}", media=sound)
            clips.append(clip if audio_only else replace(clip, media=picture, sound=sound))
        for key in sorted(pictures - sounds):
            left_out.append((key, f"{part / 'mp4' / key}.mp4: a picture without its sound aac/{key}.m4a; left out"))
        for key in sorted(sounds - pictures):
            left_out.append((key, f"{part / 'aac' / key}.m4a: a sound without its picture mp4/{key}.mp4; left out"))
        seen |= sounds | pictures
    if not clips:
        which = "none of the clips of the list" if wanted else "no clip"
        raise UserError(f"{corpus}: {which} is there with all its files; expected {LAYOUT}")
    if wanted and (absent := len(wanted - seen)):
        say(f"{corpus}: {absent} of {len(wanted)} clips of the list are not there, such as {min(wanted - seen)}")
    return clips, left_out


def read_ids(path: Path) -> set[str]:
    """SPEAKER/VIDEO/CLIP of every line, which may have more before and an ending. Raises UserError for other lines."""
    if not path.is_file():
        raise UserError(f"{path}: no such list of clips; mend the path of --ids")
    keys = set()
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        parts = Path(line.split()[0]).with_suffix("").parts
        if len(parts) < 3:
            raise UserError(f"{path}:{number}: expected SPEAKER/VIDEO/CLIP, found {line.strip()}; mend the list")
        keys.add("/".join(parts[-3:]))
    if not keys:
        raise UserError(f"{path}: names no clip; expected lines like id00017/01dfn2spqyE/00001")
    return keys


def read_clip(clip: Clip, audio: Path, need_video: bool, language: str | None) -> list[MonoCut]:
    """One clip as a cut without text; BadItem if it cannot be used."""
    return [supervise(to_cut(clip, audio, need_video=need_video), clip.speaker, None, language)]


def _keys(tree: Path, ending: str, wanted: set[str] | None) -> Iterable[str]:
    """SPEAKER/VIDEO/CLIP of every file of the tree that is wanted."""
    for path in tree.glob(f"*/*/*{ending}"):
        key = "/".join((*path.parts[-3:-1], path.stem))
        if wanted is None or key in wanted:
            yield key
