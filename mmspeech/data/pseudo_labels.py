"""Self-training: what a recognizer heard becomes the transcript of cuts that have none (VATLM Sec. V-B).

    cuts + hypotheses ──▶ long enough? said anything? as fast as people speak? sure enough? ──▶ cuts with transcripts

The paper drops clips under 2 s, which lip reading does not profit from; the other rules are ours, against what
recognizers write when they are lost: nothing at all, or the same words over and over.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from lhotse import SupervisionSegment
from lhotse.cut import Cut

from mmspeech.data.text import TRANSCRIPT
from mmspeech.errors import UserError

FIELD = "pseudo_label"  # in `supervision.custom`: where the transcript comes from


class Heard(NamedTuple):
    """What a recognizer made of a cut."""

    text: str
    score: float | None  # what its search ranked by
    confidence: float | None  # mean log probability of a token; None where the search found nothing


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Which hypotheses become transcripts."""

    min_s: float = 2.0  # seconds of the shortest cut; Sec. V-B
    min_confidence: float | None = None  # mean log probability of a token
    min_rate: float = 2.0  # characters per second; not stated, ours: read English has about 14
    max_rate: float = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_rate <= self.max_rate:
            raise UserError(
                f"--min-rate {self.min_rate:g}, --max-rate {self.max_rate:g}: expected 0 or more, the lower bound first"
            )

    def against(self, cut: Cut, heard: Heard | None) -> str | None:
        """The rule that a cut breaks, or None."""
        if heard is None:
            return "not decoded"
        if cut.duration < self.min_s:
            return f"shorter than {self.min_s:g} s"
        if not heard.text or heard.confidence is None:
            return "nothing heard"
        rate = len(heard.text) / cut.duration
        if rate < self.min_rate:
            return f"less than {self.min_rate:g} characters per second"
        if rate > self.max_rate:
            return f"more than {self.max_rate:g} characters per second"
        if self.min_confidence is not None and heard.confidence < self.min_confidence:
            return f"confidence below {self.min_confidence:g}"
        return None


@dataclass
class Report:
    """How many cuts, and seconds of them, were kept, or dropped for which reason."""

    kept: int = 0
    kept_s: float = 0.0
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_s: Counter[str] = field(default_factory=Counter)

    def add(self, cut: Cut, broken: str | None) -> None:
        if broken is None:
            self.kept, self.kept_s = self.kept + 1, self.kept_s + cut.duration
        else:
            self.dropped[broken] += 1
            self.dropped_s[broken] += cut.duration

    @property
    def facts(self) -> dict[str, object]:
        """For report.json."""
        return {
            "kept": self.kept,
            "kept_s": round(self.kept_s, 3),
            "dropped": dict(self.dropped.most_common()),
            "dropped_s": {why: round(self.dropped_s[why], 3) for why, _ in self.dropped.most_common()},
        }

    @property
    def lines(self) -> list[str]:
        """For people: what was kept, then a line for each reason, the most frequent first."""
        total = self.kept + self.dropped.total()
        lines = [f"{self.kept} of {total} cuts have a transcript now, {self.kept_s / 3600:.2f} h"]
        return lines + [
            f"dropped {number}, {self.dropped_s[why] / 3600:.2f} h: {why}" for why, number in self.dropped.most_common()
        ]


def read_heard(decoded: Path) -> dict[str, Heard]:
    """The hypotheses of a folder of `mmspeech decode`, by cut. Raises UserError if it is none, or of translations."""
    facts = read_facts(decoded)
    if facts.get("text", TRANSCRIPT) != TRANSCRIPT:
        raise UserError(f"{decoded}: holds texts of kind {facts['text']}; give one with transcripts")
    return dict(_read_lines(decoded / "hyp.jsonl"))


def read_facts(decoded: Path) -> dict[str, Any]:
    """What decode.json says. Raises UserError if there is none."""
    try:
        return json.loads((decoded / "decode.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        inner = min(decoded.glob("*/decode.json"), default=None) if decoded.is_dir() else None
        advice = (
            f"give one of its folders, as {inner.parent}" if inner else "give a folder that `mmspeech decode` wrote"
        )
        raise UserError(f"{decoded}: expected decode.json and hyp.jsonl; {advice}") from None


def _read_lines(path: Path) -> Iterator[tuple[str, Heard]]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; decode these cuts again")
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                one = json.loads(line)
                yield str(one["id"]), Heard(str(one["text"]), one["score"], one["confidence"])
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"{path}:{number}: expected id, text, score and confidence, found {line[:60]!r}; decode these cuts "
                    "again"
                ) from None


def with_label(cut: Cut, heard: Heard, origin: Mapping[str, object]) -> Cut:
    """Give the cut what was heard as its only transcript, and where that comes from; returns it.

    Args:
        origin: the same for all: model, its digest, the streams it had.
    """
    known = cut.supervisions[0] if cut.supervisions else None
    if known is None:
        known = SupervisionSegment(cut.id, getattr(cut, "recording_id", cut.id), 0.0, cut.duration)
    # What there may be of a true transcript goes: nobody is to learn from it.
    custom = {key: value for key, value in (known.custom or {}).items() if key != "translation"}
    custom[FIELD] = {**origin, "score": heard.score, "confidence": heard.confidence}
    cut.supervisions = [
        replace(known, start=0.0, duration=cut.duration, text=heard.text, custom=custom, alignment=None)
    ]
    return cut
