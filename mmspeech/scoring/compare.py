"""Whether two systems differ: decoded sets of the same utterances, resampled together.

    difference of two           contrast([a, b], [-1, 1])                       b - a
    does a gap grow?            contrast([a10, av10, a0, av0], [-1, 1, 1, -1])  (a0 - av0) - (a10 - av10)

Utterances are drawn once for all systems (paired bootstrap; Koehn, 2004, for BLEU).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmspeech.errors import UserError
from mmspeech.scoring import bleu, bootstrap, table, wer
from mmspeech.scoring.bootstrap import Estimate
from mmspeech.scoring.wer import Decoded

Rows = Callable[[Sequence[str], Sequence[str]], np.ndarray]
# metric -> what each utterance adds to its sums, and the scores of sums
METRICS: dict[str, tuple[Rows, Callable[[np.ndarray], np.ndarray]]] = {
    "wer": (wer.utterance_rows, wer.rates),
    "bleu": (bleu.sentence_rows, bleu.corpus_scores),
}
SMALL_IS_GOOD = {"wer": True, "bleu": False}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two systems on one set and condition; all scores in percent, or BLEU points."""

    metric: str
    set: str
    condition: str  # `AV babble 0 dB`, or two of them
    a: str
    b: str
    score_a: float
    score_b: float
    difference: float  # b - a
    low: float
    high: float
    p: float
    better: str | None  # a, b, or None where the interval holds 0
    sentences: int
    interval: str

    @property
    def line(self) -> str:
        """The difference, for people."""
        verdict = {"a": f"{self.a} is better", "b": f"{self.b} is better", None: "no difference is shown"}[self.better]
        return f"{self.difference:+.2f} [{self.low:+.2f}, {self.high:+.2f}], p = {self.p:.2g}: {verdict}"


def compare(
    a: Path, b: Path, metric: str | None = None, *, seed: int = 0, resamples: int = bootstrap.RESAMPLES
) -> Comparison:
    """Compare two decode folders of one test set under the same noise.

    Args:
        metric: wer or bleu; None: what the folders were scored by, else wer.

    Raises UserError if they hold other utterances or references, or other noise.
    """
    metric = metric or _scored_by([a, b])
    decoded = [wer.read_decoded(folder) for folder in (a, b)]
    _check_noise(*decoded)
    names = [str(one.info["label"]) for one in decoded]
    if names[0] == names[1]:
        names = [f"{name} ({folder})" for name, folder in zip(names, (a, b), strict=True)]
    conditions = [
        table.heading((str(one.info.get("modality") or table.ANY), str(one.info.get("noise") or "clean")))
        for one in decoded
    ]
    found = _contrast(decoded, [-1.0, 1.0], metric, seed=seed, resamples=resamples)
    rows_of, score = METRICS[metric]
    score_a, score_b = (
        float(score(rows_of(one.references, one.hypotheses).sum(axis=0, keepdims=True))[0]) for one in decoded
    )
    toward_b = -found.sign if SMALL_IS_GOOD[metric] else found.sign
    return Comparison(
        metric=metric,
        set=str(decoded[0].info.get("set") or "test"),
        condition=" and ".join(dict.fromkeys(conditions)) + wer.condition(decoded[0].info),
        a=names[0],
        b=names[1],
        score_a=score_a,
        score_b=score_b,
        difference=found.value,
        low=found.low,
        high=found.high,
        p=found.p,
        better={1: "b", -1: "a", 0: None}[toward_b],
        sentences=len(decoded[0].ids),
        interval=f"{100 * bootstrap.LEVEL:g} %, {resamples} paired resamples of utterances, seed {seed}",
    )


def contrast(
    folders: Sequence[Path],
    weights: Sequence[float],
    metric: str = "wer",
    *,
    seed: int = 0,
    resamples: int = bootstrap.RESAMPLES,
) -> Estimate:
    """A weighted sum of the scores of decode folders that hold the same utterances, under whatever conditions.

    Raises UserError if they hold others, or if their references differ.
    """
    return _contrast([wer.read_decoded(folder) for folder in folders], weights, metric, seed=seed, resamples=resamples)


def _contrast(
    decoded: Sequence[Decoded], weights: Sequence[float], metric: str, *, seed: int, resamples: int
) -> Estimate:
    if metric not in METRICS:
        raise UserError(f"--metric {metric}: expected one of {', '.join(METRICS)}")
    _check_utterances(decoded)
    rows_of, score = METRICS[metric]
    ids = sorted(decoded[0].ids)
    rows = []
    for one in decoded:
        place = {name: i for i, name in enumerate(one.ids)}
        rows.append(rows_of(one.references, one.hypotheses)[[place[name] for name in ids]])
    return bootstrap.contrast(rows, weights, score, seed=seed, resamples=resamples)


def _check_utterances(decoded: Sequence[Decoded]) -> None:
    first = decoded[0]
    said = dict(zip(first.ids, first.references, strict=True))
    for other in decoded[1:]:
        theirs = dict(zip(other.ids, other.references, strict=True))
        where = f"{first.folder} and {other.folder}"
        if alone := sorted(said.keys() ^ theirs.keys()):
            raise UserError(
                f"{where}: {len(alone)} utterance(s) are in one of them only, the first is {alone[0]}; "
                "decode both systems on the same cuts"
            )
        if different := [name for name in said if said[name] != theirs[name]]:
            raise UserError(
                f"{where}: {len(different)} reference(s) differ, the first is that of {different[0]}; "
                "decode both systems on the same cuts"
            )


def _check_noise(a: Decoded, b: Decoded) -> None:
    """Raise UserError unless both heard the same noise; what hears none is the same in all of them."""
    heard = [one for one in (a, b) if one.info.get("hears_noise", one.info.get("modality") not in table.LIPS)]
    noises = {(str(one.info.get("noise") or "clean"), one.info.get("noise_hash")) for one in heard}
    if len(noises) > 1:
        there = [f"{one.info.get('noise') or 'clean'} {table.hash_mark(one.info.get('noise_hash'))}" for one in (a, b)]  # type: ignore[arg-type]
        raise UserError(
            f"{a.folder} and {b.folder}: decoded with different noise ({there[0].strip()}, {there[1].strip()}); "
            "decode both with the same frozen noise"
        )


def _scored_by(folders: Sequence[Path]) -> str:
    metrics = set()
    for folder in folders:
        try:
            metrics.add(str(json.loads((folder / "score.json").read_text(encoding="utf-8"))["metric"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    if len(metrics) > 1:
        raise UserError(f"{folders[0]} and {folders[1]}: scored by {' and '.join(sorted(metrics))}; give --metric")
    return metrics.pop() if metrics else "wer"
