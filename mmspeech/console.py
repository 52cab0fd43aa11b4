"""What people see while a command runs: plain lines and progress bars, on stderr, from the first rank only."""

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")

console = Console(stderr=True, highlight=False, soft_wrap=True)


def is_first_process() -> bool:
    """Whether this process speaks to the user; torchrun numbers its processes in RANK."""
    return int(os.environ.get("RANK", "0")) == 0


def say(line: str) -> None:
    """One line for the user, from the first rank only; square brackets are not markup."""
    if is_first_process():
        console.print(line, markup=False)


def say_here(line: str) -> None:
    """One line from whichever rank it concerns; those but the first are named in it."""
    console.print(line if is_first_process() else f"rank {os.environ['RANK']}: {line}", markup=False)


def bar(*extra_columns: TextColumn) -> Progress:
    """A progress bar with count, elapsed and remaining time; silent where nobody looks (no terminal, other ranks)."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        *extra_columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not (is_first_process() and sys.stderr.isatty()),
    )


def progress(items: Iterable[Item], title: str, total: int | None = None) -> Iterator[Item]:
    """Yield `items` under a bar; without a terminal one line at the end says how many there were."""
    count = 0
    with bar() as shown:
        task = shown.add_task(title, total=total)
        for item in items:
            yield item
            count += 1
            shown.advance(task)
    if not sys.stderr.isatty():
        say(f"{title}: {count}")
