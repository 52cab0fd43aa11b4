"""Opening and writing files of cuts: lazily, a million cuts in constant memory."""

import contextlib
import gzip
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from lhotse import CutSet
from lhotse.serialization import SequentialJsonlWriter

from mmspeech.errors import UserError
from mmspeech.files import replacing


def open_cuts(paths: Path | Sequence[Path]) -> CutSet:
    """One lazy CutSet over the files, in order; empty files count for nothing.

    Raises UserError if a file is missing, is no gzipped JSONL, or all of them are empty.
    """
    paths = [paths] if isinstance(paths, Path) else list(paths)
    if not paths:
        raise UserError(
            'data.cuts: names no cuts; give some, e.g. --set "data.cuts=[exp/iter1/units/cuts_pretrain.jsonl.gz]"'
        )
    full = [path for path in paths if not is_empty(path)]
    if not full:
        raise UserError(
            f"{', '.join(map(str, paths))}: no cuts in there; see rejected.jsonl of the stage that wrote it"
        )
    cuts = CutSet.from_jsonl_lazy(full[0])
    for path in full[1:]:
        cuts = cuts + CutSet.from_jsonl_lazy(path)
    return cuts


def files_in(paths: Sequence[Path]) -> list[Path]:
    """The files of cuts that are meant: of a folder all its cuts_*.jsonl.gz, in order. Raises UserError if it has
    none, and for a file that is named twice.

    A folder of text has thousands of them, more than fit into one argument of a command.
    """
    found: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("cuts_*.jsonl.gz")) if path.is_dir() else [path]
        if not inside:
            raise UserError(
                f"{path}: no file cuts_*.jsonl.gz in there; run the stage that writes them, or mend the path"
            )
        found += inside
    if twice := [path for path, count in Counter(path.resolve() for path in found).items() if count > 1]:
        raise UserError(f"{twice[0]}: named twice; name it once, a source with more weight is given more often")
    return found


def is_empty(path: Path) -> bool:
    """Whether a file of cuts holds none. Raises UserError if it is missing or unreadable."""
    try:
        with gzip.open(path, "rt") as file:
            return not file.readline().strip()
    except IsADirectoryError:
        raise UserError(f"{path}: a folder; expected a file of cuts in it, e.g. {path}/cuts_test.jsonl.gz") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file of cuts; run the stage that writes it, or mend the path") from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected gzipped JSON lines of cuts ({error}); write it again") from None


@contextlib.contextmanager
def writing_cuts(path: Path) -> Iterator[SequentialJsonlWriter]:
    """A writer with `.write(cut)`; the file appears, complete, when the block ends well. No cut: an empty file."""
    with replacing(path) as temporary:
        with CutSet.open_writer(temporary) as writer:
            yield writer
        if not temporary.exists() or temporary.stat().st_size == 0:
            with gzip.open(temporary, "wt"):
                pass
