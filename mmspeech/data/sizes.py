"""How much files of cuts hold, noted beside them: who mixes sources need not read the names of all their cuts first.

A pass shares out seconds, and those of 600 M sentences take hours to add up. Who writes files of cuts leaves
FOLDER/sizes.json: how many cuts of each duration are in each file, and its bytes, by which a stale note is told. From
durations follows what any bounds and trims leave, to the last bit what the cuts themselves would give.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmspeech.data import cutfiles
from mmspeech.files import write_json

NAME = "sizes.json"
Durations = Counter[float]  # seconds -> cuts


def write_note(folder: Path, found: Mapping[str, Mapping[float, int]]) -> None:
    """Note the durations of the files of a folder, by their names."""
    notes = {
        name: {"bytes": (folder / name).stat().st_size, "durations": {str(s): n for s, n in sorted(durations.items())}}
        for name, durations in found.items()
    }
    write_json(folder / NAME, notes)


def durations_of(paths: Sequence[Path]) -> dict[Path, Durations]:
    """Of the cuts in each file: noted ones, else those of the cuts, one by one. Raises UserError for a missing file."""
    notes = {folder: _read(folder / NAME) for folder in dict.fromkeys(path.parent for path in paths)}
    found: dict[Path, Durations] = {}
    for path in paths:
        note = notes[path.parent].get(path.name)
        if note and path.exists() and path.stat().st_size == note["bytes"]:
            found[path] = Counter({float(seconds): count for seconds, count in note["durations"].items()})
        else:
            empty = cutfiles.is_empty(path)
            found[path] = Counter() if empty else Counter(cut.duration for cut in cutfiles.open_cuts(path))
    return found


def _read(path: Path) -> dict[str, dict]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
