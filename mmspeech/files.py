"""Files that are never half-written, stages that know whether their output is current, and items set aside.

A stage writes to a temporary name, renames it, and leaves `stage.json` beside or inside its output: the digests of
what it read and the settings it ran with. Run again with the same, it says so and does nothing.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from mmspeech import __version__
from mmspeech.console import progress, say
from mmspeech.errors import BadItem, UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextlib.contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Turn the error of a full disk, in the block, into a UserError that names what is written there."""
    try:
        yield
    except OSError as error:
        if error.errno in (28, 27, 122):  # ENOSPC, EFBIG, EDQUOT
            raise UserError(f"{path}: could not be written ({error.strerror}); make room and run again") from error
        raise


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes that ask for the same out of a folder, until the block or this process ends.

    Raises UserError if another process is in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as held:
        try:
            fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # children do not inherit it, NFS knows it
        except (BlockingIOError, PermissionError):
            raise UserError(
                f"{folder}: another process is at work in it; wait until it has ended, or give another folder"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other process is in such a block of the folder; where the file system has no locks, do not."""
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; it becomes `path` when the block ends well, else it vanishes.

    The suffixes stay (writers look at them). Raises UserError when the disk is full: nothing that was there is lost.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        with room_for(path):
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Force a file's bytes to disk, so that the rename that follows never names an empty file after a crash."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def digest(path: Path) -> str:
    """What identifies an input: a file's content; what a folder's stage was made from, else the names and sizes in it.

    Raises UserError if nothing is there.
    """
    if path.is_dir():
        if (record := _read(path / "stage.json")) is not None:
            return hashlib.sha256(json.dumps(_identity(record)).encode()).hexdigest()
        listing = sorted(
            f"{entry.relative_to(path)} {entry.stat().st_size}" for entry in path.rglob("*") if entry.is_file()
        )
        return hashlib.sha256("\n".join(listing).encode()).hexdigest()
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder; give the output of the stage before, or run that stage first")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Stage:
    """One output (a folder or a file), the inputs it is made from and the settings it is made with.

    Args:
        anew: made with other settings it is replaced; without, that is refused, before any work is done.
    """

    def __init__(
        self,
        output: Path,
        inputs: Sequence[Path] = (),
        settings: Mapping[str, object] | None = None,
        *,
        anew: bool = False,
    ) -> None:
        self.output, self.anew = output, anew
        self.inputs = {str(path): digest(path) for path in inputs}
        self.settings = json.loads(json.dumps(dict(settings or {}), default=str))

    def is_current(self) -> bool:
        """Whether the output is there and was made from these inputs with these settings; says so if it is.

        Raises UserError if what is there must not be replaced: now, rather than when hours of work are to be written.
        """
        if not self.output.exists() or not self._is_mine(_read(self._record())):
            self._check_place()
            return False
        say(f"{self.output}: current, nothing to do")
        return True

    @contextlib.contextmanager
    def writing(self) -> Iterator[Path]:
        """Yield an empty folder that takes the output's place, with its record, when the block ends well."""
        self._check_place()
        place = self.output.absolute()
        temporary = place.with_name(f".{os.getpid()}.{place.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            with room_for(self.output):
                yield temporary
                write_json(temporary / "stage.json", self._content())
                replace_folder(temporary, place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @contextlib.contextmanager
    def resuming(self, is_whole: Callable[[], bool] = lambda: True) -> Iterator[Path]:
        """Yield the output folder itself, for long jobs that write many files, each by `replacing`.

        What an interrupted run with the same inputs left there is kept; what was made from others is removed first.
        The record that makes the output current is written last.

        Args:
            is_whole: asked at the end; False leaves the record to whichever of several jobs that write here ends last.
        """
        with _one_at_a_time(self.output.parent):  # of jobs that start together one removes what is old
            self._check_place()
            self._record().unlink(missing_ok=True)
            if self.output.exists() and not self._is_mine(_read(self.output / BEGUN)):
                shutil.rmtree(self.output)
            self._begin()
        with room_for(self.output):
            yield self.output
        if is_whole():
            write_json(self._record(), self._content())

    def _begin(self) -> None:
        """Make the folder, with its note in it from the first moment: jobs that start together must not clear it."""
        if self.output.exists():
            return
        temporary = self.output.with_name(f".{os.getpid()}.begun.{self.output.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        write_json(temporary / BEGUN, self._content())
        try:
            os.rename(temporary, self.output)
        except OSError:  # another job has made it meanwhile
            if not self._is_mine(_read(self.output / BEGUN)):
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @contextlib.contextmanager
    def writing_file(self) -> Iterator[Path]:
        """Yield a temporary path that becomes the output file; the record goes beside it."""
        self._record().unlink(missing_ok=True)
        with replacing(self.output) as temporary:
            yield temporary
        write_json(self._record(), self._content())

    def _record(self) -> Path:
        if self.output.is_dir() or not self.output.suffix:
            return self.output / "stage.json"
        return self.output.with_name(f"{self.output.name}.stage.json")

    def _content(self) -> dict[str, Any]:
        return {"version": __version__, "inputs": self.inputs, "settings": self.settings}

    def _is_mine(self, record: dict[str, Any] | None) -> bool:
        return record is not None and _identity(record) == _identity(self._content())

    def _check_place(self) -> None:
        """Raise UserError if the output's folder holds an input, or anything but what this stage may replace.

        That is what a stage with these settings made of whatever inputs: an output of other settings is another one.
        """
        if not self.output.is_dir():
            return
        for path in self.inputs:
            if Path(path).resolve().is_relative_to(self.output.resolve()):
                raise UserError(f"{self.output}: holds {path}, which is read; give another folder to write to")
        records = [one for one in (_read(self._record()), _read(self.output / BEGUN)) if one]
        record = next((one for one in records if one["settings"].keys() == self.settings.keys()), None)
        if record is None:
            if any(self.output.iterdir()):
                made = ""
                if records:  # say one setting that only one of the two has
                    key = min(records[0]["settings"].keys() ^ self.settings.keys())
                    made = f", made without `{key}`" if key in self.settings else f", made with `{key}`"
                raise UserError(f"{self.output}: holds files of another origin{made}; give an empty or a new folder")
            return
        for key, there in record["settings"].items():
            if there != self.settings[key] and not self.anew:
                found = f"{_short(there)}, now {_short(self.settings[key])}"
                raise UserError(
                    f"{self.output}: was made with another `{key}` ({found}); give another folder, or remove this one"
                )


BEGUN = "begun.json"  # in the folder of a stage that may be resumed


def _read(record: Path) -> dict[str, Any] | None:
    """What a stage left, or None if that is not there, or not a stage's."""
    try:
        content = json.loads(record.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.keys() == {"version", "inputs", "settings"} else None


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _identity(record: dict[str, Any]) -> list[object]:
    """What makes two records the same: not how the paths of the inputs are spelt, and folders may move."""
    return [record["version"], sorted(record["inputs"].values()), sorted(record["settings"].items())]


def replace_folder(new: Path, place: Path) -> None:
    """Put the folder `new` where `place` is; the old one is moved away first and removed last."""
    place.parent.mkdir(parents=True, exist_ok=True)
    old = place.with_name(f".{os.getpid()}.old.{place.name}")
    if place.is_symlink():
        place.unlink()
    elif place.exists():
        os.replace(place, old)
    os.replace(new, place)
    shutil.rmtree(old, ignore_errors=True)


class Rejects:
    """The report of items set aside: one JSON line each, `{"item": ..., "reason": ...}`.

    With `strict` the first one stops the command instead.
    """

    def __init__(self, path: Path, strict: bool = False) -> None:
        self.path, self.strict, self.count = path, strict, 0

    def __enter__(self) -> "Rejects":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "w", encoding="utf-8")
        return self

    def add(self, item: str, reason: str) -> None:
        """Set an item aside. Raises UserError when strict."""
        if self.strict:
            raise UserError(f"{reason} (--strict stops here)")
        self.count += 1
        self._file.write(json.dumps({"item": item, "reason": reason}, ensure_ascii=False) + "\n")
        self._file.flush()
        if self.count <= 3:
            say(f"set aside: {reason}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self.count:
            say(f"{self.count} item(s) set aside; reasons in {self.path}")


def parallel_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    jobs: int,
    rejects: Rejects,
    title: str,
    total: int | None = None,
) -> Iterator[Result]:
    """Apply a picklable function in `jobs` processes; yields results in order, in bounded memory, under a bar.

    An item whose call raises BadItem goes to `rejects` and yields nothing. jobs=1 stays in this process.
    """
    caught = functools.partial(_catch, function)
    if total is None and isinstance(items, Sequence):
        total = len(items)
    if jobs <= 1:
        outcomes: Iterator[tuple[str, Result | None, str | None]] = map(caught, items)
        yield from _keep(progress(outcomes, title, total), rejects)
        return
    # "spawn": a forked child of a process that already runs threads (torch, OpenMP) may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker) as pool:
        yield from _keep(progress(_bounded(pool, caught, items, ahead=8 * jobs), title, total), rejects)


def _bounded(pool: ProcessPoolExecutor, function: Callable, items: Iterable, ahead: int) -> Iterator:
    """Results in order with at most `ahead` calls in flight: `pool.map` would read all items first."""
    waiting = []
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()
    finally:
        for future in waiting:
            future.cancel()


def _keep(outcomes: Iterable[tuple[str, Result | None, str | None]], rejects: Rejects) -> Iterator[Result]:
    for item, result, reason in outcomes:
        if reason is not None:
            rejects.add(item, reason)
        else:
            yield result  # type: ignore[misc]


def _catch(function: Callable[[Item], Result], item: Item) -> tuple[str, Result | None, str | None]:
    try:
        return "", function(item), None
    except BadItem as error:
        return str(getattr(item, "id", item)), None, str(error)


def _start_worker() -> None:
    """Workers leave Ctrl-C to the parent and use one thread each: they are already one per core."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(1)
