"""What a run tells: log.txt for people, metrics.jsonl for programs, TensorBoard for curves, a bar for the impatient."""

import datetime
import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from rich.progress import TextColumn

from mmspeech import console, dist, files


class Log:
    """The logs of one run in its folder; only the first rank writes. Use in a `with` block.

    metrics.jsonl has one line per report: {"update": n, "kind": "train" or "valid", "loss": ..., ...}.
    """

    def __init__(self, folder: Path, update: int, updates: int) -> None:
        self.folder, self.update, self.updates = folder, update, updates
        self._last_said = 0.0
        self._began = (time.monotonic(), update)

    def __enter__(self) -> "Log":
        self._bar = console.bar(TextColumn("{task.fields[status]}"))
        if dist.is_first():
            # Slow to import, so only where it is used.
            from torch.utils.tensorboard import SummaryWriter

            self.folder.mkdir(parents=True, exist_ok=True)
            self._forget_later_lines()
            self._text = open(self.folder / "log.txt", "a", encoding="utf-8")
            self._metrics = open(self.folder / "metrics.jsonl", "a", encoding="utf-8")
            with files.room_for(self.folder / "tensorboard"):
                self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.update + 1)
        self._bar.start()
        self._task = self._bar.add_task("training", total=self.updates, completed=self.update, status="")
        return self

    def advance(self) -> None:
        """One more update is done."""
        self._bar.advance(self._task)

    def line(self, text: str, *, quiet: bool = False) -> None:
        """A line in log.txt, and on the screen unless quiet."""
        if dist.is_first():
            with files.room_for(self.folder / "log.txt"):
                self._text.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
                self._text.flush()
            if not quiet:
                console.say(text)

    def report(self, update: int, kind: str, figures: Mapping[str, float]) -> None:
        """Figures after `update` finished updates, everywhere; on a screen without a bar at most every 20 seconds."""
        text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        if kind == "train":
            self._bar.update(self._task, status=_status(figures))
        if not dist.is_first():
            return
        hurried = kind == "train" and (_has_bar() or time.monotonic() - self._last_said < 20)
        left = f"  {self._left(update)} left" if kind == "train" else ""
        self.line(f"update {update}/{self.updates} {kind}: {text}{left}", quiet=hurried)
        self._last_said = self._last_said if hurried else time.monotonic()
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        with files.room_for(self.folder / "metrics.jsonl"):
            self._metrics.write(json.dumps({"update": update, "kind": kind, **finite}) + "\n")
            self._metrics.flush()
        with files.room_for(self.folder / "tensorboard"):
            for name, value in figures.items():
                self._board.add_scalar(f"{kind}/{name}", value, update)

    def _left(self, update: int) -> str:
        """How long the rest takes at the pace so far, as in 0:12:30."""
        began, first = self._began
        seconds = (time.monotonic() - began) / max(update - first, 1) * (self.updates - update)
        return str(datetime.timedelta(seconds=round(seconds)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if dist.is_first():
            with files.room_for(self.folder):
                if error is not None:
                    self.line(f"stopped: {type(error).__name__}: {error}", quiet=True)
                self._text.close()
                self._metrics.close()
                self._board.close()

    def _forget_later_lines(self) -> None:
        """Remove the figures of updates after the one that we go on from: they will come again."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return
        lines = path.read_text().splitlines(keepends=True)
        # The last line may be cut off where a process was killed.
        past = [line for line in lines if line.endswith("}\n") and json.loads(line)["update"] <= self.update]
        with files.replacing(path) as temporary:
            temporary.write_text("".join(past))


def _status(figures: Mapping[str, float]) -> str:
    loss = figures.get("loss", math.nan)  # nothing but skipped updates have none
    return f"loss {loss:.4g}  lr {figures['lr']:.2e}  {figures['frames_per_s']:.0f} frames/s  {figures['hours']:.2f} h"


def _has_bar() -> bool:
    return sys.stderr.isatty()
