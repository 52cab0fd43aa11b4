"""Cuts on disk -> groups of batches, one group per update, in an order that ranks and workers cannot change.

One lazy bucketing sampler goes through a pass over the sources (sources.py), the same on every rank; its batches are
dealt: update u owns the next B of them, rank r loads every W-th of these. B follows from the seconds per update over
all ranks and the seconds that one pass may hold; from the number of ranks only if there would be too few for them.
Workers only load. The position that is saved is that of the last batch trained, so a resumed run, on any number of
ranks, goes on with the very next batch.
"""

import dataclasses
import heapq
import itertools
import math
import os
import signal
import threading
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset.sampling import DynamicBucketingSampler
from lhotse.dataset.sampling.base import TimeConstraint
from lhotse.dataset.sampling.dynamic_bucketing import estimate_duration_buckets
from torch.utils.data import DataLoader, Dataset

from mmspeech import dist
from mmspeech.batch import Batch
from mmspeech.console import say_here
from mmspeech.data import cutfiles
from mmspeech.data.frozen_noise import FrozenNoise
from mmspeech.data.noise import NoiseConfig, NoisePool, training_noises
from mmspeech.data.reading import (
    FRAMES_PER_S,
    Reading,
    check_streams,
    collate,
    read_item,
    repeat_item,
    streams_given,
    times_given,
)
from mmspeech.data.sources import Mixture, Source, Span
from mmspeech.data.text import TRANSCRIPT
from mmspeech.errors import BadItem, UserError

BUCKETS_FROM = 10_000  # cuts whose durations say where buckets begin, as lhotse has it
MAX_BAD = 100  # cuts that are tried until one can be read
MAX_BAD_UPDATES = 10  # in a row, of which a rank has no cut that can be read


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, how it is read, and how much of it makes an update."""

    cuts: list[Path] = field(default_factory=list)  # files of cuts to train on: all of them, once per pass
    sources: list[Source] = field(default_factory=list)  # instead: several sources, each with its weight and streams
    valid_cuts: list[Path] = field(default_factory=list)  # files of cuts to validate on
    valid_noise: list[Path] = field(default_factory=list)  # frozen noise of these: validated under each; empty: clean
    streams: dict[str, dict[str, Any]] = field(  # name -> reader and its settings
        default_factory=lambda: {"audio": {"reader": "logmel"}, "video": {"reader": "mouth"}}
    )
    units: str | None = None  # pre-training: name of the units to predict
    batch_s: float = 1280.0  # seconds of speech per update, over all ranks: 32 GPUs x 40 s
    max_batch_s: float = 40.0  # seconds, padding included, that one forward pass of one rank holds
    min_s: float = 0.2  # shorter cuts are left out (5 frames)
    max_s: float = 80.0  # longer cuts are left out (2000 frames)
    trim_s: float | None = None  # longer cuts are trimmed to a random span of this length
    buckets: int = 20  # of cuts of similar length
    shuffle_cuts: int = 20000  # cuts among which the next batch is picked
    max_items: int | None = None  # only the first so many training cuts, e.g. a budget of labels
    workers: int = 4  # loading processes per rank; 0 loads in the training process
    noise: NoiseConfig = field(default_factory=lambda: NoiseConfig(probability=0.0))  # in training

    def __post_init__(self) -> None:
        for name, least in (("buckets", 1), ("shuffle_cuts", 1), ("max_items", 1), ("workers", 0)):
            if (value := getattr(self, name)) is not None and value < least:
                raise UserError(f"{name}: {value}; expected {least} or more")
        if self.sources and (self.cuts or self.max_items):
            both = "cuts" if self.cuts else "max_items"
            raise UserError(f"sources: and {both} are both set; give the cuts as sources, or as `cuts` alone")
        if len({source.weight is None for source in self.sources}) > 1:
            raise UserError("sources: some have a weight and some do not; give each of them one, or none")
        for number, source in enumerate(self.sources):
            if unknown := [name for name in source.streams if name not in self.streams]:
                known = ", ".join(self.streams)
                raise UserError(f"sources[{number}].streams: `{unknown[0]}` is not read; data.streams has {known}")
        if self.max_batch_s <= 0:
            raise UserError(f"max_batch_s: {self.max_batch_s}; expected seconds above 0")
        if self.max_batch_s > self.batch_s:
            raise UserError(f"max_batch_s: {self.max_batch_s} is more than batch_s {self.batch_s}; lower it")
        if not 0 <= self.min_s <= self.max_s:
            raise UserError(f"min_s: {self.min_s}, max_s {self.max_s}; expected 0 or more, and the lower bound first")
        if self.trim_s is not None and self.trim_s < 1 / FRAMES_PER_S:
            raise UserError(f"trim_s: {self.trim_s}; expected at least one frame, {1 / FRAMES_PER_S} s")

    def files(self) -> list[Path]:
        """What is read besides media: cuts, and the lists of noises for training."""
        return [*self.train_files, *self.valid_cuts, *self.valid_noise, *training_noises(self.noise)]

    @property
    def train_files(self) -> list[Path]:
        """All files of cuts that are trained on."""
        return [*self.cuts, *(path for source in self.sources for path in source.cuts)]

    def mixture(self, seed: int = 0) -> Mixture:
        """What is trained on, pass by pass."""
        sources = self.sources or ([Source(cuts=self.cuts)] if self.cuts else [])
        span = Span(min_s=self.min_s, max_s=self.max_s, trim_s=self.trim_s, first=self.max_items)
        return Mixture(sources, span, units=self.units, seed=seed)


def make_reading(
    config: DataConfig,
    *,
    seed: int,
    train: bool,
    encode_text: Callable[[str], list[int]] | None = None,
    text: str = TRANSCRIPT,
) -> Reading:
    """How the items of a run are read; noise, trims, crops and flips in training only.

    Raises UserError for a reader nobody knows.
    """
    check_streams(config.streams)
    if config.trim_s and train and encode_text:
        raise UserError("data.trim_s: trims sound and lips, but no transcripts; leave it out, or set data.max_s")
    noise = NoisePool(config.noise, seed=seed) if config.noise.probability > 0 and train else None
    return Reading(
        streams=config.streams,
        train=train,
        seed=seed,
        units=config.units,
        encode_text=encode_text,
        text=text,
        trim_s=config.trim_s if train else None,
        mix_noise=noise,
    )


@dataclass
class Loaded:
    """What a worker hands over: a batch, or the reason why there is none."""

    batch: Batch | None
    bad: list[str]  # one line per cut that was set aside

    def pin_memory(self) -> "Loaded":
        """Called by torch's loader when it pins."""
        return Loaded(self.batch.pin_memory(), self.bad) if self.batch else self


class CutDataset(Dataset):
    """(pass, cuts) -> Loaded; lives in the workers."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading

    def __getitem__(self, wanted: tuple[int, CutSet]) -> Loaded | UserError:  # type: ignore[override]
        number, cuts = wanted
        items, times, bad = [], [], []
        try:
            for cut in cuts:
                try:
                    items.append(read_item(cut, self.reading, times_given(cut, number)))
                    times.append(times_given(cut, number))
                except BadItem as error:
                    bad.append(str(error))
        except UserError as error:  # a raised one would arrive as a traceback of the worker
            return error
        batch = collate(items, list(self.reading.streams), times) if items else None
        return Loaded(batch, bad)


@dataclass
class TrimmedTime(TimeConstraint):
    """Seconds in a batch, padding included, where every cut counts as at most `trim_s`: what will be read of it."""

    trim_s: float = math.inf

    def add(self, example: Cut) -> None:
        self.longest_seen: float = max(self.longest_seen, self.measure_length(example))
        self.num_cuts += 1

    def measure_length(self, example: Cut) -> float:
        return min(example.duration, self.trim_s)


def make_sampler(
    cuts: CutSet, config: DataConfig, *, seconds: float, train: bool, seed: int = 0
) -> DynamicBucketingSampler:
    """Batches of cuts of similar length, at most `seconds` with padding; the same sequence on every rank.

    They come once: who wants them again asks for another sampler.
    """
    constraint = TrimmedTime(max_duration=seconds, trim_s=(train and config.trim_s) or math.inf)
    # Buckets follow from the first cuts, which are not read twice: a pass may begin deep in a file.
    rest = iter(cuts)
    first = list(itertools.islice(rest, BUCKETS_FROM))
    buckets = max(2, min(config.buckets, len(first)))  # lhotse wants no more than cuts
    bins = estimate_duration_buckets(first, num_buckets=buckets, constraint=constraint) if len(first) > 1 else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice about buffer sizes that small corpora cannot follow
        return DynamicBucketingSampler(
            CutSet(itertools.chain(first, rest)),
            constraint=constraint,
            shuffle=train,
            drop_last=False,
            duration_bins=bins,
            buffer_size=config.shuffle_cuts,
            seed=seed,
            world_size=1,  # every rank reads the whole sequence of names and is dealt its own
            rank=0,
            sync_buckets=True,  # the other way loses cuts at the end of a pass (lhotse 1.33: an empty queue is truthy)
        )


class TrainingStream:
    """Endless groups of batches, dealt over ranks; knows which batch comes next for whoever resumes."""

    def __init__(self, config: DataConfig, reading: Reading, *, name: str = "main", seed: int = 0) -> None:
        """`name` is the objective that the batches are for."""
        self.config, self.name, self.seed = config, name, seed
        self.batches_per_update = max(dist.world_size(), math.ceil(config.batch_s / config.max_batch_s - 1e-9))
        self.dataset = CutDataset(reading)
        # Where training is: the pass over the cuts, its batches that are trained, how many of them make an update.
        self._position = (0, 0, self.batches_per_update)
        self._ahead: deque[tuple[int, int, int]] = deque()  # positions after the groups that were handed out
        self.mixture = config.mixture(seed)
        self._told: set[str] = set()  # cuts that were set aside in a pass before need no second line

    @property
    def seconds(self) -> float:
        """Of speech in a batch, at most, padding included."""
        return self.config.batch_s / self.batches_per_update

    def state_dict(self) -> dict[str, int]:
        """The position of the first batch that has not been trained, and how an update is cut into batches."""
        return dict(zip(("pass", "batches", "batches_per_update"), self._position, strict=True))

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on there, with updates of the same cuts.

        If they must be cut into more batches now (more ranks than an update had batches, or a lower `max_batch_s`),
        the cuts of every update that is left of the pass are dealt anew; from the next pass on batches are smaller.
        """
        number, batches, stored = (int(state[key]) for key in ("pass", "batches", "batches_per_update"))
        self.batches_per_update = max(stored, self.batches_per_update)
        self._position = (number, batches, stored if batches else self.batches_per_update)

    def trained(self) -> None:
        """The oldest group handed out is done: a checkpoint written now goes on behind it."""
        self._position = self._ahead.popleft()

    def __iter__(self) -> Iterator[list[tuple[str, Batch]]]:
        self._ahead.clear()
        ends: deque[tuple[int, int, int]] = deque()
        loaded = iter(make_loader(self.dataset, self._plan(ends), self.config.workers))
        mine = len(range(self.batches_per_update)[dist.rank() :: dist.world_size()])
        bad_updates = 0
        while True:
            group = [next(loaded) for _ in range(mine)]
            batches = [batch for batch in (check_loaded(one, self._told) for one in group) if batch is not None]
            bad_updates = bad_updates + 1 if not batches and any(isinstance(o, Loaded) and o.bad for o in group) else 0
            if bad_updates == MAX_BAD_UPDATES:
                raise UserError(
                    f"{self._names}: no cut of {bad_updates} updates could be used; mend what is said above"
                )
            if not batches:  # every rank must take part in every update: it gets a cut that does not count
                usable = self._first_usable(self.mixture.one_pass(0))
                if usable is None:
                    raise self._none_usable()
                batches = [dataclasses.replace(usable, idle=True)]
            self._ahead.append(ends.popleft())
            yield [(self.name, batch) for batch in batches]

    def longest(self) -> Iterator[tuple[str, Batch]]:
        """The biggest batch that may come of each set of streams: as many copies as fit of the longest cut that has it.

        Sound with text may last longer than sound with lips and take less memory; a set is left out only where one with
        more streams is as long. Looked for among the first `shuffle_cuts` cuts of each source: reading the names of a
        million takes minutes.
        """
        found: dict[tuple[str, ...], list[tuple[float, int, Cut]]] = defaultdict(list)
        for number, cut in enumerate(self.mixture.first_cuts(self.config.shuffle_cuts)):
            heap = found[tuple(streams_given(cut, self.config.streams))]
            keep = heapq.heappush if len(heap) < MAX_BAD else heapq.heappushpop
            keep(heap, (self.mixture.span.read_s(cut), -number, cut))
        tried: list[tuple[tuple[str, ...], int]] = []
        for names in sorted(found, key=len, reverse=True):
            batch = self._first_usable(cut for *_, cut in sorted(found[names], reverse=True))
            if batch is None:
                continue
            frames = max(int(lengths.max()) for lengths in batch.lengths.values())
            if not any(set(names) < set(more) and frames <= most for more, most in tried):
                tried.append((names, frames))
                yield self.name, repeat_item(batch, max(1, int(self.seconds * FRAMES_PER_S / frames)))
        if not tried:
            raise self._none_usable()

    def streams(self) -> list[str]:
        """Those that some cut has, as far as the first `shuffle_cuts` cuts of each source tell."""
        found: set[str] = set()
        for cut in self.mixture.first_cuts(self.config.shuffle_cuts):
            found.update(streams_given(cut, self.config.streams))
            if len(found) == len(self.config.streams):
                break
        return [name for name in self.config.streams if name in found]

    def _first_usable(self, cuts: Iterable[Cut]) -> Batch | None:
        """The first of the cuts that can be read, alone; None if that is none of the first MAX_BAD."""
        for cut in itertools.islice(cuts, MAX_BAD):
            batch = check_loaded(self.dataset[0, CutSet.from_cuts([cut])], self._told)
            if batch is not None:
                return batch
        return None

    def _none_usable(self) -> UserError:
        return UserError(f"{self._names}: no cut could be used; mend what is said above")

    @property
    def _names(self) -> str:
        return ", ".join(map(str, self.config.train_files))

    def _plan(self, ends: deque[tuple[int, int, int]]) -> Iterator[tuple[int, CutSet]]:
        """What this rank loads, in order: (pass, cuts); notes in `ends` the position after each group."""
        number, skip, per_update = self._position
        group: list[tuple[int, CutSet]] = []
        while True:
            seconds = self.config.batch_s / per_update
            cuts = self.mixture.one_pass(number)
            sampler = make_sampler(cuts, self.config, seconds=seconds, train=True, seed=self.seed)
            sampler.set_epoch(number)
            for index, cuts in enumerate(sampler):
                if index < skip:
                    continue
                group.append((number, cuts))
                if len(group) == per_update:
                    ends.append((number, index + 1, per_update))
                    yield from self._dealt(group)
                    group = []
            # What is left of the pass waits for batches of the next one.
            number, skip, per_update = number + 1, 0, self.batches_per_update

    def _dealt(self, group: list[tuple[int, CutSet]]) -> list[tuple[int, CutSet]]:
        """This rank's batches of an update; an update of fewer batches than are wanted is cut into so many."""
        wanted = self.batches_per_update
        if len(group) < wanted:
            number, cuts = group[-1][0], [cut for _, batch in group for cut in batch]
            ends = [len(cuts) * part // wanted for part in range(wanted + 1)]
            group = [(number, CutSet.from_cuts(cuts[start:end])) for start, end in itertools.pairwise(ends)]
        return group[dist.rank() :: dist.world_size()]


def validation_batches(config: DataConfig, reading: Reading, *, name: str = "main") -> "Validation | EachNoise":
    """The validation cuts in batches, dealt over ranks; may be iterated again and again, always the same."""
    if not config.valid_noise:
        return Validation(config, CutDataset(reading), name)
    heard = [dataclasses.replace(reading, mix_noise=FrozenNoise(path)) for path in config.valid_noise]
    return EachNoise([Validation(config, CutDataset(one), name) for one in heard])


@dataclass
class Validation:
    """Iterates over (objective name, batch) pairs of this rank."""

    config: DataConfig
    dataset: CutDataset
    name: str
    bad: list[str] = field(default_factory=list)  # reasons of the cuts that were set aside, of this rank, each once

    def __iter__(self) -> Iterator[tuple[str, Batch]]:
        for _, batch in self.numbered():
            if batch is not None:
                yield self.name, batch

    def numbered(self, done: Collection[int] = ()) -> Iterator[tuple[int, Batch | None]]:
        """This rank's share of the batches that are not `done`, each with its number; None where no cut was usable.

        Numbers do not depend on the ranks.
        """
        cuts = cutfiles.open_cuts(self.config.valid_cuts)
        sampler = make_sampler(cuts, self.config, seconds=self.config.max_batch_s, train=False)
        left = ((number, cuts) for number, cuts in enumerate(sampler) if number not in done)
        numbers: deque[int] = deque()

        def plan() -> Iterator[tuple[int, CutSet]]:
            for number, cuts in itertools.islice(left, dist.rank(), None, dist.world_size()):
                numbers.append(number)
                yield 0, cuts

        for loaded in make_loader(self.dataset, plan(), min(self.config.workers, 1)):
            told = set(self.bad)
            batch = check_loaded(loaded, told)
            self.bad = sorted(told)  # before the batch, so that who takes it may stop
            yield numbers.popleft(), batch


@dataclass
class EachNoise:
    """All validation cuts in one noise, then in the next: figures are means over all."""

    each: list[Validation]

    def __iter__(self) -> Iterator[tuple[str, Batch]]:
        for one in self.each:
            yield from one


def make_loader(dataset: CutDataset, plan: Iterator[tuple[int, CutSet]], workers: int) -> DataLoader:
    """Batches in the order of the plan, read by worker processes (0: by this one)."""
    return DataLoader(
        dataset,
        sampler=_Once(plan),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        # Without one of its own it draws from the global one when it starts, and a resumed run's dropout would differ.
        generator=torch.Generator(),
        worker_init_fn=_outlive_sigterm,
    )


def _outlive_sigterm(worker: int) -> None:
    """End at a SIGTERM from the parent only: Slurm sends it to every process, and the update in progress goes on."""
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # threads begun from here on inherit it
    threading.Thread(target=wait, daemon=True).start()


class _Once:
    """A plan as torch's loader wants it; it is endless, so it has no length."""

    def __init__(self, plan: Iterator[tuple[int, CutSet]]) -> None:
        self.plan = plan

    def __iter__(self) -> Iterator[tuple[int, CutSet]]:
        return self.plan


def check_loaded(loaded: Loaded | UserError, told: set[str]) -> Batch | None:
    """The batch that a worker read, None if all its cuts were set aside; says which were, and adds them to `told`.

    Raises its UserError.
    """
    if isinstance(loaded, UserError):
        raise loaded
    for reason in loaded.bad:
        if reason not in told:
            say_here(f"set aside: {reason}")
            told.add(reason)
    return loaded.batch
