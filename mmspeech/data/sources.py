"""Sources of training cuts, mixed into passes: audio-visual ones, sound alone, lips alone, in any proportion.

    source ── cuts of allowed length ── whole, or from where the pass before ended ──┐
    source ── ...                                                                    ├── spread evenly ──▶ a pass
    source ── ...                                                                    ┘

Without weights a pass holds every cut of every source once. With weights, the seconds of a pass are shared as the
weights are, and a pass is as long as the sources are together, at most LONGEST_PASS_S: each source goes on where it
stopped in the pass before, and begins anew at its end. A cut of a source is given as often as any other of it, or once
more; never is its end left out for its beginning. Where a pass begins follows from its number and the sizes of the
files, so that nobody who resumes reads what hundreds of millions of earlier cuts were.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.cut.data import DataCut
from lhotse.lazy import LazyJsonlIterator
from lhotse.serialization import deserialize_item

from mmspeech.console import say
from mmspeech.data import cutfiles
from mmspeech.data.reading import mark_given
from mmspeech.data.sizes import durations_of
from mmspeech.data.units import made_from
from mmspeech.errors import UserError
from mmspeech.seeds import numpy_rng

# Of passes of sources with weights: a run that resumes goes through the names of its pass up to where it stopped, some
# seven thousand cuts a second.
LONGEST_PASS_S = 1000 * 3600.0


@dataclass(frozen=True, kw_only=True)
class Source:
    """Cuts that are trained on, and how much and what of them."""

    cuts: list[Path]  # files of cuts, or folders: all cuts_*.jsonl.gz in them
    weight: float | None = (
        None  # share of the seconds of a pass, beside the other sources' weights; all or none have one
    )
    streams: list[str] = field(default_factory=list)  # that are taken of its cuts; empty: all that they have

    def __post_init__(self) -> None:
        if not self.cuts:
            raise UserError("cuts: names no file of cuts; give some, e.g. [exp/iter1/units/cuts_pretrain.jsonl.gz]")
        if self.weight is not None and self.weight <= 0:
            raise UserError(f"weight: {self.weight}; expected more than 0, or leave the source out")

    @property
    def name(self) -> str:
        """For messages: its files."""
        return ", ".join(map(str, self.cuts))


class Size(NamedTuple):
    """How much a source has."""

    cuts: int
    seconds: float  # that are read of them: long cuts are trimmed


@dataclass(frozen=True, kw_only=True)
class Span:
    """Which cuts are used, and how much is read of one."""

    min_s: float
    max_s: float
    trim_s: float | None = None
    first: int | None = None  # only so many cuts of a source

    def holds(self, cut: Cut) -> bool:
        return self.min_s <= cut.duration <= self.max_s

    def read_s(self, cut: Cut) -> float:
        return cut.duration if self.trim_s is None else min(cut.duration, self.trim_s)

    def size_of(self, durations: Mapping[float, int]) -> Size:
        """What is used of so many cuts of each duration; the same, to the last bit, in whichever order they came."""
        used = {seconds: count for seconds, count in durations.items() if self.min_s <= seconds <= self.max_s}
        most = math.inf if self.trim_s is None else self.trim_s
        return Size(sum(used.values()), math.fsum(min(seconds, most) * count for seconds, count in used.items()))


class Mixture:
    """The training cuts, pass by pass: they follow from the seed and the pass alone, so every rank has the same."""

    def __init__(self, sources: Sequence[Source], span: Span, *, units: str | None = None, seed: int = 0) -> None:
        """`units` is the name of those that are predicted: a source must give what its own were made from."""
        if not sources:
            raise UserError("data.cuts: names no cuts to train on; give files of cuts, or data.sources")
        self.sources, self.span, self.units, self.seed = list(sources), span, units, seed

    def one_pass(self, number: int) -> CutSet:
        """The cuts of a pass, lazily, in an order that spreads the sources evenly over it.

        Raises UserError for a source that has none, or whose units were made from streams that it does not give.
        """
        parts: list[CutSet] = []
        expected: list[Size] = []
        for place, (source, size, rate) in enumerate(zip(self.sources, self.sizes, self.rates, strict=True)):
            if rate == 1.0:
                parts.append(self.run(source, number))
            else:
                # The same expression for the end of a pass and the beginning of the next: no cut falls between them.
                start, end = (n * rate * size.seconds for n in (number, number + 1))
                parts.append(CutSet(_Stretch(self._files[place], self.span, source, self.units, start, end)))
            expected.append(Size(round(size.cuts * rate), size.seconds * rate))
        return parts[0] if len(parts) == 1 else CutSet(_Even(parts, expected, self.span, (self.seed, "mix", number)))

    def run(self, source: Source, number: int = 0) -> CutSet:
        """All cuts of a source, given for the `number`-th time."""
        cuts = cutfiles.open_cuts(cutfiles.files_in(source.cuts))
        if self.span.first is not None:
            cuts = cuts.subset(first=self.span.first)
        cuts = cuts.filter(self.span.holds)
        if next(iter(cuts), None) is None:
            low, high = self.span.min_s, self.span.max_s
            raise UserError(f"{source.name}: no cut has {low} to {high} s; check data.min_s and data.max_s")
        if source.streams or source.weight is not None:
            cuts = cuts.map(_Give(source, self.units, number))
        return cuts

    def first_cuts(self, count: int) -> Iterator[Cut]:
        """Up to `count` cuts of each source: a look at all kinds of them."""
        return itertools.chain.from_iterable(itertools.islice(self.run(source), count) for source in self.sources)

    @functools.cached_property
    def sizes(self) -> list[Size]:
        """Of each source. Nobody asks how big a single one is; of several, what is not noted is read, once."""
        if len(self.sources) == 1:
            return [Size(1, 1.0)]
        for source in self.sources:
            self.run(source)  # tells of one that has nothing
        return [Size(*map(sum, zip(*files.values(), strict=True))) for files in self._files]

    @functools.cached_property
    def _files(self) -> list[dict[Path, Size]]:
        """Of each source: its files, and how much is used of each."""
        noted = [durations_of(cutfiles.files_in(source.cuts)) for source in self.sources]
        return [{path: self.span.size_of(durations) for path, durations in files.items()} for files in noted]

    @functools.cached_property
    def rates(self) -> list[float]:
        """How often, on average, a pass gives each cut of each source; says so where there are several."""
        seconds = [size.seconds for size in self.sizes]
        weights = [source.weight for source in self.sources]
        shares = [(own if weight is None else weight) for weight, own in zip(weights, seconds, strict=True)]
        whole = min(sum(seconds), LONGEST_PASS_S)
        rates = [
            1.0 if weight is None else share / sum(shares) * whole / own
            for weight, share, own in zip(weights, shares, seconds, strict=True)
        ]
        if len(self.sources) > 1:
            for source, size, share, rate in zip(self.sources, self.sizes, shares, rates, strict=True):
                taken = f", {'+'.join(source.streams)} alone" if source.streams else ""
                say(
                    f"{source.name}: {size.cuts} cuts, {size.seconds / 3600:.2f} h{taken}; {share / sum(shares):.1%} "
                    f"of a pass, each cut {rate:.3g} times"
                )
        return rates


@dataclass(frozen=True)
class _Even:
    """Cuts of several sources, one after the other such that their seconds grow in proportion: the next one comes from
    the source that is furthest behind. Drawn at random, the shares of a thousand batches would be off by percents."""

    parts: Sequence[CutSet]
    expected: Sequence[Size]  # of each in a pass
    span: Span
    key: tuple  # of the draw that decides where they begin

    def __iter__(self) -> Iterator[Cut]:
        waiting = {number: iter(part) for number, part in enumerate(self.parts)}
        rng = numpy_rng(*self.key)
        given = [rng.random() / max(size.cuts, 1) for size in self.expected]  # shares of what is expected
        while waiting:
            number = min(waiting, key=given.__getitem__)
            cut = next(waiting[number], None)
            if cut is None:
                del waiting[number]
                continue
            given[number] += self.span.read_s(cut) / self.expected[number].seconds
            yield cut


@dataclass(frozen=True)
class _Stretch:
    """The cuts of a source that begin within a stretch of its seconds, which are counted from the first pass on and go
    round: those before it are stepped over, whole files unread."""

    files: Mapping[Path, Size]  # in order
    span: Span
    source: Source
    units: str | None
    start: float
    end: float

    def __iter__(self) -> Iterator[Cut]:
        around = sum(size.seconds for size in self.files.values())
        # A turn early: at its border, rounding may put the start on either side.
        for turn in itertools.count(max(0, math.floor(self.start / around) - 1)):
            # Numbered by turns: a cut that comes a second time gets other masks, crops and noise.
            give = _Give(self.source, self.units, turn)
            reached = turn * around
            for path, size in self.files.items():
                at, reached = reached, reached + size.seconds
                if reached <= self.start or not size.cuts:
                    continue
                for line in LazyJsonlIterator(path):  # not cuts: those before the start need not be made
                    if "duration" not in line:
                        raise _mixed(self.source, line.get("id", "a cut"))
                    own = self.span.size_of({line["duration"]: 1})
                    if at >= self.end:
                        return
                    if own.cuts and at >= self.start:
                        yield give(deserialize_item(line))
                    at += own.seconds


@dataclass(frozen=True)
class _Give:
    """Picklable: marks a cut with what its source gives of it, and for which time."""

    source: Source
    units: str | None
    number: int

    def __call__(self, cut: Cut) -> Cut:
        if not isinstance(cut, DataCut):
            raise _mixed(self.source, cut.id)
        streams = self.source.streams
        used = made_from(cut, self.units) if streams and self.units else []
        if missing := [name for name in used if name not in streams]:
            raise UserError(
                f"{self.source.name}: {cut.id}: its units `{self.units}` were made from {'+'.join(used)}, but this "
                f"source gives no {', '.join(missing)}. The first units are those of the anchor, sound; speech without "
                "it is used from the iteration after the one that has learnt its streams (u-HuBERT Sec. 3.2, 5): label "
                f"it with `mmspeech extract features --encoder DIR --modalities {'+'.join(streams)}`"
            )
        return mark_given(cut, streams, self.number)


def _mixed(source: Source, name: str) -> UserError:
    """Lhotse's MixedCut cannot carry a mark, and a file does not say how long it is."""
    return UserError(
        f"{source.name}: {name} is put together from several cuts; a source with a weight or streams takes cuts of one "
        "recording: write the sound of these with lhotse's `CutSet.save_audios`"
    )
