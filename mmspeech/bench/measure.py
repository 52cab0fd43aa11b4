"""Ours and its peers, timed in turns, each in a process of its own: nobody's memory is counted as another's.

    set up all sides at once -> their answers must agree -> ours, peer, ours, peer, ... -> medians, ratios, peaks

Repetition by repetition the sides take turns and do the same work, so what slows the machine down for a while slows
them all; a ratio is the median of the repetitions' ratios.
"""

import multiprocessing
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmspeech.errors import UserError

Work = Mapping[str, float]  # what one repetition does: {"frames": 1600, "speech_s": 64}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every side is told."""

    size: str  # of models: a key of training.RECIPES
    quick: bool  # least work that still measures something
    seed: int
    device: str  # cpu or cuda


@dataclass(frozen=True)
class Ready:
    """A side that is set up."""

    run: Callable[[int], object]  # repetition number k: what is timed
    answer: Callable[[], Any]  # what all sides must agree on; asked once, before any repetition
    work: Work
    facts: Mapping[str, float] = field(default_factory=dict)  # what else is worth a figure, by unit


Builder = Callable[[Settings, Path], Ready]  # the folder is the side's own, for files


@dataclass(frozen=True)
class Row:
    """One thing that is measured."""

    title: str
    ours: tuple[str, Builder]
    peers: Mapping[str, Builder]  # by name; builders are functions of a module: processes import them
    units: tuple[str, ...]  # keys of UNITS
    difference: Callable[[Any, Any], tuple[float, float]]  # answers of ours and a peer -> (difference, most allowed)
    needs: tuple[str, ...] = ()  # modules of the `dev` extra
    is_cost: bool = False  # ours does more than the peer: the ratio is what that costs


UNITS: dict[str, Callable[[Work, float], float]] = {
    "frames/s": lambda work, seconds: work["frames"] / seconds,
    "s of speech/s": lambda work, seconds: work["speech_s"] / seconds,
    "phones/s": lambda work, seconds: work["phones"] / seconds,
    "x real time": lambda work, seconds: work["speech_s"] / seconds,
    "real-time factor": lambda work, seconds: seconds / work["speech_s"],  # the only one where less is better
}


def measure(row: Row, settings: Settings, repetitions: int, folder: Path) -> dict[str, Any]:
    """Time a row; returns what the JSON file says of it.

    Raises UserError if a side dies, does other work than ours, or disagrees.
    """
    builders = {row.ours[0]: row.ours[1], **row.peers}
    sides = [_Side(name, builder, settings, folder / str(i)) for i, (name, builder) in enumerate(builders.items())]
    try:
        work, facts, answer = sides[0].receive()
        differences, all_facts = [0.0], [facts]
        for peer in sides[1:]:
            their_work, facts, their_answer = peer.receive()
            if their_work != work:
                raise UserError(f"{row.title}: {peer.name} does {their_work}, ours {work}; mend the bench")
            difference, allowed = row.difference(answer, their_answer)
            if not difference <= allowed:
                raise UserError(f"{row.title}: {peer.name} differs from ours by {difference:.3g}, not {allowed:g}")
            differences.append(difference)
            all_facts.append(facts)
        seconds: list[list[float]] = [[] for _ in sides]
        for number in range(repetitions):
            for side, times in zip(sides, seconds, strict=True):
                side.connection.send(number)
                times.append(side.receive())
        entries = []
        for side, times, difference, facts in zip(sides, seconds, differences, all_facts, strict=True):
            side.connection.send(None)
            middle = statistics.median(times)
            entry = {
                "name": side.name,
                "figures": {unit: UNITS[unit](work, middle) for unit in row.units} | dict(facts),
                "seconds": times,
                "memory": side.receive(),
            }
            if side is not sides[0]:
                ratios = [theirs / ours for ours, theirs in zip(seconds[0], times, strict=True)]
                entry |= {"ours_is_times_faster": statistics.median(ratios), "difference_from_ours": difference}
            entries.append(entry)
    finally:
        for side in sides:
            side.stop()
    return {
        "title": row.title,
        "is_cost": row.is_cost,
        "work_per_repetition": work,
        "ours": entries[0],
        "peers": entries[1:],
    }


class _Side:
    """A process that is set up, and then waits for its turns."""

    def __init__(self, name: str, builder: Builder, settings: Settings, folder: Path) -> None:
        self.name = name
        folder.mkdir(parents=True)
        context = multiprocessing.get_context("spawn")  # a forked one would inherit our memory
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, builder, settings, folder), daemon=True)
        self.process.start()
        theirs.close()

    def receive(self) -> Any:
        try:
            return self.connection.recv()
        except EOFError:
            self.process.join()
            code = self.process.exitcode
            reason = "probably for want of memory: lower --size" if code == -9 else "its traceback stands above"
            raise UserError(f"{self.name}: the process ended with code {code}, {reason}") from None

    def stop(self) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.join()


def _serve(connection: Connection, builder: Builder, settings: Settings, folder: Path) -> None:
    """A side's process: set up, answer, take turns until told to stop, tell the memory."""
    libraries = peak_mib()
    ready = builder(settings, folder)
    connection.send((ready.work, ready.facts, ready.answer()))
    while (number := connection.recv()) is not None:
        _wait_for_device(settings)
        start = time.perf_counter()
        ready.run(number)
        _wait_for_device(settings)
        connection.send(time.perf_counter() - start)
    memory = {"peak_mib": peak_mib(), "above_libraries_mib": peak_mib() - libraries}
    if settings.device == "cuda":
        memory["device_peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
    connection.send(memory)


def peak_mib() -> float:
    """The most memory that this process ever held."""
    status = Path("/proc/self/status")
    if status.exists():
        # Linux: ru_maxrss starts at what the parent held when it made this process; this starts at nothing.
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) / 2**10  # type: ignore[index]
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _wait_for_device(settings: Settings) -> None:
    if settings.device == "cuda":
        torch.cuda.synchronize()


def draw_durations(rng: np.random.Generator, count: int) -> np.ndarray:
    """Lengths of utterances in seconds, whole frames of 25 Hz: log-normal around 4 s, from 1 to 16, as in LRS3."""
    return np.exp(rng.normal(np.log(4), 0.6, count)).clip(1, 16).round(1) // 0.04 * 0.04
