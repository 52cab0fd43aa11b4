"""What a plan pre-trains on, iteration by iteration, and the rule that says from when on each source may be used.

The first targets are clusters of the anchor modality's own features, so iteration 1 takes sources that have the anchor.
Whatever a model has been trained on it can label: a modality N hops from the anchor, each hop a source that has both
modalities, is used alone from iteration N + 1 on (u-HuBERT Sec. 3.2, 5). Text alone is labelled by another model, from
phones to units, which learns from a source that has both text and sound: it may come with that (VATLM Sec. III-C).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from mmspeech.errors import UserError

COMPLETE = "complete"  # the input of a cut, all streams that its source gives
PHONE2UNIT = "phone2unit"  # in place of streams: units that no encoder makes
WRITTEN = {"text"}  # sources without sound and lips, whose units are made so
# Sources beside the corpus itself -> their corpora, and options of `mmspeech prepare` (VATLM takes the 3846 h of
# YouTube in GigaSpeech's XL). `-`: nothing is prepared, lines of text are read as they are.
EXTRA = {
    "vox": "voxceleb2",
    "tedlium": "tedlium3",
    "gigaspeech": "gigaspeech --subset XL --source youtube",
    "text": "-",
}
HAS = {"tedlium": {"audio"}, "gigaspeech": {"audio"}, "text": {"text"}}  # the others: sound and lips


@dataclass(frozen=True, kw_only=True)
class PlanSource:
    """Part of what is pre-trained on."""

    # Of --corpus; or --vox, --tedlium, --gigaspeech, --text.
    cuts: Literal["pretrain+trainval", "pretrain", "trainval", "vox", "tedlium", "gigaspeech", "text"]
    streams: list[str] = field(default_factory=list)  # that are taken of it, e.g. [audio]; empty: all that it has; of
    # sound with transcripts [audio, text] takes both
    weight: float | None = None  # share of the seconds of a pass, beside the others'; all or none; none: natural
    first_iteration: int = 1  # that uses it

    @property
    def gives(self) -> set[str]:
        """Its modalities."""
        return set(self.streams) or HAS.get(self.cuts, {"audio", "video"})


def check_sources(sources: Sequence[PlanSource], iterations: int, anchor: str, phone2unit: str = "") -> None:
    """Raise UserError unless every source has a share, if one has, and is used no sooner than there can be units."""
    if len({source.weight is None for source in sources}) > 1:
        raise UserError("sources: some have a weight and some do not; give each of them one, or none")
    named = [part for source in sources for part in source.cuts.split("+")]
    if twice := [part for part in named if named.count(part) > 1]:
        raise UserError(
            f"sources: `{twice[0]}` is in two of them; take it in one, e.g. pretrain here and trainval there"
        )
    if written := [source.cuts for source in sources if source.cuts in WRITTEN and not phone2unit]:
        raise UserError(
            f"sources: `{written[0]}` has neither sound nor lips to make units from; name the YAML of a model that "
            "makes them from phones, e.g. phone2unit: pretrain/phone2unit.yaml"
        )
    if anchor != "audio":
        raise UserError(f"anchor: {anchor}, but the first units are clusters of MFCC; expected audio")
    if iterations:  # else nothing is pre-trained
        check_hops(sources, iterations, anchor)


def check_hops(sources: Sequence[PlanSource], iterations: int, anchor: str) -> None:
    """Raise UserError if a source is used before there can be units for it."""
    for source in sources:
        earliest = first_possible(source, sources, anchor)
        if earliest is None:
            raise UserError(
                f"sources: `{source.cuts}` gives {'+'.join(sorted(source.gives))}, which no source ties to the anchor "
                f"{anchor}, neither at once nor through a third modality: there is no shared codebook for it (u-HuBERT "
                "Sec. 5); leave it out, or add a source that has both"
            )
        if source.first_iteration < earliest:
            raise UserError(
                f"sources: `{source.cuts}` gives {'+'.join(sorted(source.gives))} and is used in iteration "
                f"{source.first_iteration}, but has no units before iteration {earliest}: the first ones are of the "
                f"anchor, {anchor}; a modality N hops from it is used from iteration N + 1 on (u-HuBERT Sec. 3.2, 5). "
                f"Set first_iteration: {earliest}"
            )
        if source.first_iteration > iterations:
            raise UserError(
                f"sources: `{source.cuts}` is used from iteration {source.first_iteration} on, but there are "
                f"{iterations}; lower first_iteration, or add iterations"
            )


def first_possible(source: PlanSource, sources: Sequence[PlanSource], anchor: str) -> int | None:
    """The first iteration in which a model, or the anchor's own features, can label a source; None: never."""
    known = {anchor}
    for iteration in range(1, len(sources) + max(one.first_iteration for one in sources) + 1):
        usable = [one for one in sources if one.first_iteration <= iteration and one.gives & known]
        learnt = known.union(*(one.gives for one in usable))
        if source.gives & (learnt if source.cuts in WRITTEN else known):
            return iteration
        known = learnt
    return None


def source_lines(sources: Sequence[PlanSource], iteration: int, wanted: str, codebook: Sequence[str]) -> list[str]:
    """A line per source of an iteration, four fields with tabs between them, as run.sh reads them.

    Its cuts; the streams that its units are made from (`-`: all that a cut has; `phone2unit`: none, see PHONE2UNIT);
    what the codebook learns from it (`same`: from the frames that are labelled; `none`; or subsets of streams); what
    `data.sources` says besides cuts.
    """
    lines = []
    learnt_before = {name for source in sources if source.first_iteration < iteration for name in source.gives}
    for source in sources:
        if source.first_iteration > iteration:
            continue
        gives = "+".join(sorted(source.gives))
        subset, learnt = "-", "same"
        if source.cuts in WRITTEN:
            subset, learnt = PHONE2UNIT, "none"
        elif iteration > 1:
            chosen = wanted if _within(wanted, source) else COMPLETE
            # Complete is what the encoder has learnt: of sound and text, new in this iteration, sound (VATLM III-C).
            streams = [name for name in sorted(source.streams) if name in learnt_before]
            subset = "+".join(streams) or "-" if chosen == COMPLETE else chosen
            inputs = [one for one in codebook if _within(one, source)]
            if codebook and inputs != [gives if subset == "-" else subset]:
                learnt = ",".join(inputs) or "none"
        settings = f", streams: [{', '.join(source.streams)}]" if source.streams else ""
        settings += "" if source.weight is None else f", weight: {source.weight:g}"
        lines.append("\t".join((source.cuts, subset, learnt, settings)))
    return lines


def extra_lines(sources: Sequence[PlanSource]) -> list[str]:
    """A line per source that is not of the corpus itself: name, name of its corpus, options of `mmspeech prepare`.

    Where nothing is prepared the name of the corpus is `-`. A plan that takes sound alone of all sources (A-data2vec)
    has the cuts of those that it is compared with, pictures and all: rows share their folders.
    """
    seen = any("video" in source.gives for source in sources)
    options: dict[str, str] = {
        one.cuts: " --audio-only" for one in sources if one.cuts == "vox" and one.streams == ["audio"] and seen
    }
    return [f"{one.cuts} {EXTRA[one.cuts]}{options.get(one.cuts, '')}" for one in sources if one.cuts in EXTRA]


def _within(streams: str, source: PlanSource) -> bool:
    return set(streams.split("+")) <= source.gives
