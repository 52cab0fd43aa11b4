"""Whether features tell which modality they come from: the less they do, the more the modalities share one space.

    FOLDER/modalities.json          accuracy of a linear classifier, chance, who is taken for whom, and what it rests on
           modalities.safetensors   `rows` (N, 3): right answers, bits and frames of each utterance
           modalities.md            the same for people
           tsne.json  tsne.png      some of the frames in two dimensions (VATLM, Figure 3)

The same frames of the same utterances are encoded from each input. A classifier is learnt from four fifths of the
utterances and asked about the rest, five times. Where it is nearly always right, the bits go on telling models apart:
the mean of -log2 of the probability that it gives to the right input, 0 if it is sure, log2 M if it knows nothing.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mmspeech import files
from mmspeech.errors import UserError
from mmspeech.scoring import bootstrap
from mmspeech.scoring.bootstrap import Estimate
from mmspeech.scoring.codebooks import shorts

FOLDS = 5
ITERATIONS = 300  # of the classifier's fit, at most


@dataclass(frozen=True, kw_only=True)
class Separability:
    """How well a linear classifier tells the inputs apart; accuracy and confusion in percent."""

    label: str  # of the model
    modalities: list[str]  # as in audio+video
    accuracy: float
    low: float
    high: float
    chance: float
    bits: float
    bits_low: float
    bits_high: float
    confusion: list[list[float]]  # (M, M): of the frames of an input, how many are taken for each
    frames: int  # of each input
    utterances: int
    utterances_hash: str  # of the frames: differences need the same ones
    layer: int
    seed: int
    encoder: str = ""
    corpus: str = ""
    interval: str = ""


class Answers(NamedTuple):
    """What the classifiers said."""

    rows: np.ndarray  # (N, 3) right answers, bits and answers of each utterance
    confusion: np.ndarray  # (M, M) counts


def classify(frames: np.ndarray, utterances: Sequence[str]) -> Answers:
    """Ask linear classifiers, learnt from other utterances, which input each frame comes from.

    Args:
        frames: (N frames, M, D), the same frames under each of M inputs.
        utterances: of each frame.

    Raises UserError for fewer than two utterances.
    """
    # Here, because the report, which shows the figures, need not wait for it.
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    names, owner = np.unique(utterances, return_inverse=True)
    if len(names) < 2:
        raise UserError(f"modalities: frames of {len(names)} utterance; at least two are needed, one to be asked about")
    count, modalities, _ = frames.shape
    right = np.tile(np.arange(modalities), count)  # frame by frame, all its inputs
    said, bits = np.empty(count * modalities, int), np.empty(count * modalities)
    flat = frames.reshape(count * modalities, -1)
    for learnt, asked in GroupKFold(min(FOLDS, len(names))).split(flat, groups=np.repeat(owner, modalities)):
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=ITERATIONS))
        model.fit(flat[learnt], right[learnt])
        probabilities = model.predict_proba(flat[asked])
        said[asked] = probabilities.argmax(1)
        bits[asked] = -np.log2(np.maximum(probabilities[np.arange(len(asked)), right[asked]], 1e-12))
    confusion = np.bincount(right * modalities + said, minlength=modalities**2).reshape(modalities, modalities)
    columns = (said == right, bits, np.ones_like(bits))
    rows = np.stack([np.bincount(np.repeat(owner, modalities), one) for one in columns], axis=1)
    return Answers(rows, confusion)


def accuracies(sums: np.ndarray) -> np.ndarray:
    """Percent right, given sums (R, 3) -> (R,)."""
    return 100 * sums[:, 0] / sums[:, 2]


def mean_bits(sums: np.ndarray) -> np.ndarray:
    """Sums (R, 3) -> bits (R,)."""
    return sums[:, 1] / sums[:, 2]


def summary(answers: Answers, *, seed: int, resamples: int) -> dict[str, object]:
    """The figures that follow from the answers; intervals over utterances, with the classifiers as they are."""
    total = answers.rows.sum(axis=0, keepdims=True)
    found = [bootstrap.interval(answers.rows, one, seed=seed, resamples=resamples) for one in (accuracies, mean_bits)]
    confusion = 100 * answers.confusion / answers.confusion.sum(axis=1, keepdims=True)
    return {
        "accuracy": float(accuracies(total)[0]),
        "low": found[0].low,
        "high": found[0].high,
        "chance": 100 / len(confusion),
        "bits": float(mean_bits(total)[0]),
        "bits_low": found[1].low,
        "bits_high": found[1].high,
        "confusion": confusion.round(3).tolist(),
        "frames": int(answers.confusion[0].sum()),
        "utterances": len(answers.rows),
        "interval": f"{100 * bootstrap.LEVEL:g} %, {resamples} resamples of utterances, seed {seed}",
    }


def save(found: Separability, answers: Answers, folder: Path) -> None:
    """Write modalities.{json,safetensors,md}."""
    files.write_json(folder / "modalities.json", asdict(found))
    with files.replacing(folder / "modalities.safetensors") as path:
        save_file({"rows": np.ascontiguousarray(answers.rows)}, path)
    with files.replacing(folder / "modalities.md") as path:
        path.write_text(markdown(found), encoding="utf-8")


def load(path: Path) -> Separability:
    """One modalities.json. Raises UserError if it is none."""
    try:
        return Separability(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not figures of `mmspeech score modalities` ({error}); write them again") from None


def difference(a: Path, b: Path) -> Estimate:
    """b's accuracy minus a's, in points, with its interval, from paired resamples of the utterances.

    Raises UserError for folders of other frames or inputs.
    """
    found = [load(folder / "modalities.json") for folder in (a, b)]
    if len({(one.utterances_hash, tuple(one.modalities)) for one in found}) > 1:
        raise UserError(f"{a} and {b}: other frames or other inputs; run both on the same cuts with the same settings")
    rows = []
    for folder in (a, b):
        try:
            rows.append(load_file(folder / "modalities.safetensors")["rows"])
        except (OSError, KeyError, SafetensorError) as error:
            raise UserError(f"{folder / 'modalities.safetensors'}: {error}; run `mmspeech score modalities`") from None
    return bootstrap.contrast(rows, (-1.0, 1.0), accuracies, seed=found[0].seed)


def described(one: Separability) -> str:
    """The figures in a line."""
    names, most = ", ".join(shorts(one.modalities)), np.log2(len(one.modalities))
    rate = f"{one.accuracy:.1f} % [{one.low:.1f}, {one.high:.1f}] of frames (chance {one.chance:.1f} %)"
    return (
        f"{names} are told apart in {rate}, {one.bits:.3f} [{one.bits_low:.3f}, {one.bits_high:.3f}] bits of {most:.3f}"
    )


def basis(one: Separability) -> str:
    """What they rest on."""
    folds = min(FOLDS, one.utterances)
    return (
        f"{one.label}: layer {one.layer}, {one.frames} frames of {one.utterances} utterances under each input; linear "
        f"classifier, cross-validated {folds}-fold by utterance; in brackets {one.interval}."
    )


def markdown(one: Separability) -> str:
    """The figures, and who is taken for whom."""
    names = shorts(one.modalities)
    lines = [
        f"| features of, in % | {' | '.join(f'taken for {name}' for name in names)} |",
        "|---|" + "---:|" * len(names),
    ]
    for name, row in zip(names, one.confusion, strict=True):
        lines.append(f"| {name} | {' | '.join(f'{value:.1f}' for value in row)} |")
    return f"{described(one)}.\n\n" + "\n".join(lines) + f"\n\n{basis(one)}\n"
