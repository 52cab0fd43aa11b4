"""Forced alignments from files: Praat's TextGrid (one per clip) and NIST's CTM (all clips in one file).

`find` only notes where each clip's part lies; the worker that makes the cut reads it.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lhotse.supervision import AlignmentItem

from mmspeech.errors import BadItem, UserError

TIERS = {"phone": "phone", "phones": "phone", "word": "word", "words": "word"}
SILENCE = "sil"  # what an empty phone interval becomes; empty words are left out
# Both forms of TextGrid are the same sequence of strings, numbers and flags; the long form also names them.
TOKEN = re.compile(r'"((?:[^"]|"")*)"|(<exists>)|(?<![\w\[.])([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)(?![\w\]])')


@dataclass(frozen=True)
class Place:
    """Where the alignment of one clip lies: a TextGrid, or a span of bytes of a CTM file."""

    path: Path
    offset: int = 0
    size: int | None = None  # None: the whole file, a TextGrid
    tier: str = "phone"  # of a CTM file


def find(place: Path) -> dict[str, tuple[Place, ...]]:
    """Name of a clip -> where its alignment lies.

    The name is the path under the folder (or the first column of a CTM file), without its ending and with - for /:
    SPLIT-SPEAKER-CLIP or SPEAKER-CLIP.

    Raises UserError if there is neither a TextGrid nor a CTM file.
    """
    grids = sorted(place.rglob("*.TextGrid")) if place.is_dir() else []
    ctms = sorted(place.rglob("*.ctm")) if place.is_dir() else [place] if place.suffix == ".ctm" else []
    if not grids and not ctms:
        raise UserError(f"{place}: expected a folder of .TextGrid or .ctm files, or one .ctm file; found none")
    found: dict[str, tuple[Place, ...]] = {
        "-".join(grid.relative_to(place).with_suffix("").parts): (Place(grid),) for grid in grids
    }
    for ctm in ctms:
        for name, span in _spans(ctm).items():
            found[name] = (*found.get(name, ()), span)
    return found


def read(places: tuple[Place, ...]) -> dict[str, list[AlignmentItem]]:
    """{"phone": ..., "word": ...}: what the files have of it, times in seconds of the clip. Raises BadItem."""
    tiers: dict[str, list[AlignmentItem]] = {}
    for place in places:
        tiers |= _read_textgrid(place.path) if place.size is None else {place.tier: _read_ctm(place)}
    return tiers


def _spans(ctm: Path) -> dict[str, Place]:
    """The bytes of each clip in a CTM file; words if the file is called so, else phones."""
    tier = "word" if "word" in ctm.stem else "phone"
    spans: dict[str, Place] = {}
    offset = 0
    with open(ctm, "rb") as file:
        for name, lines in itertools.groupby(file, key=lambda line: line.split(maxsplit=1)[:1]):
            size = sum(map(len, lines))
            if name and not name[0].startswith(b";;"):
                key = name[0].decode(errors="replace").replace("/", "-")
                if key in spans:
                    raise UserError(f"{ctm}: the lines of {key} are not together; sort the file by its first column")
                spans[key] = Place(ctm, offset, size, tier)
            offset += size
    return spans


def _read_ctm(place: Place) -> list[AlignmentItem]:
    with open(place.path, "rb") as file:
        file.seek(place.offset)
        lines = file.read(place.size).decode(errors="replace").splitlines()
    try:
        rows = [line.split() for line in lines]
        return [AlignmentItem(row[4], float(row[2]), float(row[3])) for row in rows]
    except (ValueError, IndexError):
        raise BadItem(f"{place.path}: expected `clip channel start duration symbol`, found {lines[0]!r}") from None


def _read_textgrid(path: Path) -> dict[str, list[AlignmentItem]]:
    data = path.read_bytes()
    text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", errors="replace")
    tokens = (match[1] if match[1] is not None else match[2] or float(match[3]) for match in TOKEN.finditer(text))
    tiers: dict[str, list[AlignmentItem]] = {}
    try:
        while next(tokens) != "<exists>":
            pass
        for _ in range(int(next(tokens))):  # number of tiers
            kind, name = next(tokens), str(next(tokens))
            next(tokens), next(tokens)  # the tier's start and end
            rows = [_row(tokens, kind) for _ in range(int(next(tokens)))]
            tier = TIERS.get(name.lower().split()[-1] if name.split() else "")
            if tier and kind == "IntervalTier":
                tiers.setdefault(tier, []).extend(_items(rows, tier))
    except (StopIteration, ValueError, TypeError):
        raise BadItem(f"{path}: not a complete TextGrid; the clip is left out, or make the alignment again") from None
    return tiers


def _row(tokens: Iterator, kind: object) -> list:
    """(start, end, label) of an interval; (time, label) of a point."""
    return [next(tokens) for _ in range(3 if kind == "IntervalTier" else 2)]


def _items(rows: list[list], tier: str) -> list[AlignmentItem]:
    labelled = [(str(label).strip(), start, end) for start, end, label in rows]
    if tier == "word":
        return [AlignmentItem(label.lower(), start, end - start) for label, start, end in labelled if label]
    return [AlignmentItem(label or SILENCE, start, end - start) for label, start, end in labelled]
