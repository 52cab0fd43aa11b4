"""Figures of decoded validation cuts, and the width of the search that they choose.

AV-data2vec tries beams of 5, 10, 25, 50 and 100 and reports the best (Sec. 4.2), without saying on what; chosen on the
cuts that are reported, the figure would be better than the recognizer.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from mmspeech.cli.score import metric_of
from mmspeech.console import say
from mmspeech.scoring import bleu, wer

RESAMPLES = 200  # intervals are not what is chosen by


def figure(folder: Path) -> tuple[str, float]:
    """Metric and figure of a decode folder, whose score.json is written if it is not there."""
    metric = metric_of(json.loads((folder / "decode.json").read_text(encoding="utf-8"))["text"])
    score = {"wer": wer, "bleu": bleu}[metric].score_folder(folder, resamples=RESAMPLES)
    return metric, float(score[metric])  # type: ignore[arg-type]


def best(folders: Sequence[Path]) -> int:
    """The width with the best mean over the conditions that were decoded with it; of equal ones the narrowest."""
    figures: dict[int, list[float]] = {}
    metric = "wer"
    for folder in folders:
        metric, value = figure(folder)
        search = json.loads((folder / "decode.json").read_text(encoding="utf-8"))["search"]
        figures.setdefault(search["beam"], []).append(value)
    means = {beam: sum(values) / len(values) for beam, values in sorted(figures.items())}
    chosen = (max if metric == "bleu" else min)(means, key=means.__getitem__)
    told = ", ".join(f"{beam}: {mean:.2f}" for beam, mean in means.items())
    say(f"{folders[0].parent}: beam {chosen} is the best of {told} ({metric.upper()}, mean over the streams)")
    return chosen
