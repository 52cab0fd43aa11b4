"""Word and character error rates of a decoded set, with the alignment of every utterance.

    EXP/decode/<set>-<modality>-<noise>/   decode.json  ref.jsonl  hyp.jsonl      what `mmspeech decode` wrote
                                           wer.txt  utterances.jsonl  score.json  what is added here

Texts are compared as they stand, split at white space: case and punctuation count. All rates are in percent.
"""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import kaldialign
import numpy as np

from mmspeech import files
from mmspeech.console import say
from mmspeech.errors import UserError
from mmspeech.scoring import bootstrap, table
from mmspeech.scoring.bootstrap import Interval

GAP = "\0"  # stands for no word; cannot be part of a text


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """One decoded set: texts in the order of the references, and what decode.json says about the run."""

    folder: Path
    ids: list[str]
    references: list[str]
    hypotheses: list[str]
    info: dict[str, object]


class Errors(NamedTuple):
    """The counts of one utterance, or their sums."""

    substitutions: int
    deletions: int
    insertions: int
    length: int  # words or characters of the reference

    @property
    def total(self) -> int:
        return self.substitutions + self.deletions + self.insertions


class Pair(NamedTuple):
    """One column of an alignment: a reference word, a hypothesis word ("" where there is none), and C, S, D or I."""

    reference: str
    hypothesis: str
    operation: str


def score_folder(folder: Path, *, seed: int = 0, resamples: int = bootstrap.RESAMPLES) -> dict[str, object]:
    """Score a decode folder: writes wer.txt, utterances.jsonl and score.json beside the texts; returns the last.

    Does nothing if score.json is current. Raises UserError if texts are missing, broken, or do not belong together.
    """
    stage = decode_stage(folder, {"metric": "wer", "seed": seed, "resamples": resamples})
    if not stage.is_current():
        decoded = read_decoded(folder)
        words = [count(words_of(r), words_of(h)) for r, h in zip(decoded.references, decoded.hypotheses, strict=True)]
        score = summary(decoded.references, decoded.hypotheses, words, seed=seed, resamples=resamples)
        with files.replacing(folder / "wer.txt") as path:
            path.write_text(aligned_text(decoded, score), encoding="utf-8")
        with files.replacing(folder / "utterances.jsonl") as path:
            path.write_text("".join(_utterance_lines(decoded, words)), encoding="utf-8")
        with stage.writing_file() as path:
            path.write_text(json.dumps(decoded.info | score, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return json.loads((folder / "score.json").read_text(encoding="utf-8"))


def decode_stage(folder: Path, settings: dict[str, object]) -> files.Stage:
    """The stage that makes a folder's score.json from its texts.

    Raises UserError if it is no decode folder, or one that was scored by another metric.
    """
    check_is_decoded(folder)
    before = folder / "score.json"
    if before.exists() and (metric := json.loads(before.read_text(encoding="utf-8"))["metric"]) != settings["metric"]:
        raise UserError(f"{before}: is {metric.upper()}, which {settings['metric']} would replace; remove it to do so")
    inputs = [folder / name for name in ("ref.jsonl", "hyp.jsonl", "decode.json")]
    return files.Stage(folder / "score.json", inputs, settings)


def check_is_decoded(folder: Path) -> None:
    """Raise UserError if it is no decode folder."""
    for name in ("ref.jsonl", "hyp.jsonl", "decode.json"):
        if not (folder / name).is_file():
            inner = min(folder.glob(f"*/{name}"), default=None)
            advice = f"give its folders, as {inner.parent}" if inner else "give a folder that `mmspeech decode` wrote"
            if folder.exists():
                raise UserError(f"{folder}: no {name} in there; {advice}")
            beside = [path.parent.name for path in folder.parent.glob(f"*/{name}")]
            if near := difflib.get_close_matches(folder.name, beside, n=1):
                advice = f"did you mean {folder.with_name(near[0])}?"
            raise UserError(f"{folder}: no such folder; {advice}")


def summary(
    references: Sequence[str], hypotheses: Sequence[str], words: Sequence[Errors], *, seed: int, resamples: int
) -> dict[str, object]:
    """What score.json says of the texts, given the word counts of each utterance: rates in percent, and counts."""
    total = sum_errors(words)
    if total.length == 0:
        raise UserError(f"{len(references)} references without a single word; score a transcribed set")
    characters = sum_errors(
        count(" ".join(words_of(r)), " ".join(words_of(h))) for r, h in zip(references, hypotheses, strict=True)
    )
    low, high = rate_interval(words, seed=seed, resamples=resamples)
    return {
        "metric": "wer",
        "wer": 100 * total.total / total.length,
        "wer_low": low,
        "wer_high": high,
        "cer": 100 * characters.total / max(characters.length, 1),
        "substitutions": total.substitutions,
        "deletions": total.deletions,
        "insertions": total.insertions,
        "words": total.length,
        "sentences": len(references),
        "sentences_with_errors": sum(errors.total > 0 for errors in words),
        "interval": f"{100 * bootstrap.LEVEL:g} %, {resamples} resamples of utterances, seed {seed}",
    }


def rate_interval(counts: Sequence[Errors], *, seed: int = 0, resamples: int = bootstrap.RESAMPLES) -> Interval:
    """The interval of the error rate in percent."""
    rows = np.array([[errors.total, errors.length] for errors in counts])
    return bootstrap.interval(rows, rates, seed=seed, resamples=resamples)


def rates(sums: np.ndarray) -> np.ndarray:
    """Error rates in percent of sums of errors and words, nan without a word: (R, 2) -> (R,)."""
    return 100 * np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] > 0)


def utterance_rows(references: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
    """What each utterance adds to the word error rate: errors and words, (N, 2)."""
    counts = [count(words_of(r), words_of(h)) for r, h in zip(references, hypotheses, strict=True)]
    return np.array([[errors.total, errors.length] for errors in counts])


def count(reference: Sequence[str], hypothesis: Sequence[str]) -> Errors:
    """Fewest substitutions, deletions and insertions that turn one into the other: lists of words, or characters."""
    if not reference or not hypothesis:  # the library divides by the length
        return Errors(0, len(reference), len(hypothesis), len(reference))
    counts = kaldialign.edit_distance(reference, hypothesis)
    return Errors(counts["sub"], counts["del"], counts["ins"], len(reference))


def align(reference: Sequence[str], hypothesis: Sequence[str]) -> list[Pair]:
    """The words side by side."""
    pairs = []
    for ref, hyp in kaldialign.align(list(reference), list(hypothesis), GAP):
        operation = "I" if ref == GAP else "D" if hyp == GAP else "C" if ref == hyp else "S"
        pairs.append(Pair(ref.replace(GAP, ""), hyp.replace(GAP, ""), operation))
    return pairs


def sum_errors(counts: Iterable[Errors]) -> Errors:
    """The sums over utterances."""
    rows = list(counts)
    return Errors(*(sum(column) for column in zip(*rows, strict=True))) if rows else Errors(0, 0, 0, 0)


def words_of(text: str) -> list[str]:
    """The words of a text."""
    return text.split()


def described(score: dict[str, object]) -> str:
    """The rates in one line, for people; with what they are not comparable without."""
    interval = f"[{score['wer_low']:.2f}, {score['wer_high']:.2f}]"
    return f"WER {score['wer']:.2f} % {interval}, CER {score['cer']:.2f} %, {score['words']} words{condition(score)}"


def condition(info: Mapping[str, object]) -> str:
    """`, noise #8ff9740d, 2 cuts set aside`: which noise was added to a decoded set, and what is not in it."""
    noisy = info.get("noise") not in (None, "clean", table.ANY)
    noise = f", noise {table.hash_mark(str(info.get('noise_hash') or ''))}" if noisy else ""
    return noise + (f", {info['set_aside']} cut(s) set aside" if info.get("set_aside") else "")


def aligned_text(decoded: Decoded, score: dict[str, object]) -> str:
    """What wer.txt holds: the rate, then four lines per utterance in columns, words that differ in plain sight."""
    what = " ".join(str(decoded.info[key]) for key in ("set", "modality", "noise") if decoded.info.get(key))
    lines = [
        f"# {what}: {described(decoded.info | score)}",
        f"# {score['words']} words in {score['sentences']} sentences: {score['substitutions']} substitutions, "
        f"{score['deletions']} deletions, {score['insertions']} insertions",
        "# op: C correct, S substitution, D deletion, I insertion; csid: how many of each",
    ]
    if decoded.info.get("noise_hash"):
        lines.append(f"# sha256 of the frozen noise: {decoded.info['noise_hash']}")
    for name, reference, hypothesis in zip(decoded.ids, decoded.references, decoded.hypotheses, strict=True):
        pairs = align(words_of(reference), words_of(hypothesis))
        shown = [(pair.reference or "***", pair.hypothesis or "***", pair.operation) for pair in pairs]
        widths = [max(map(len, column)) for column in shown]
        rows = list(zip(*shown, strict=True)) if shown else [(), (), ()]
        lines.append("")
        for title, row in zip(("ref ", "hyp ", "op  "), rows, strict=True):
            cells = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            lines.append(f"{name} {title} {cells}".rstrip())
        operations = [pair.operation for pair in pairs]
        lines.append(f"{name} csid {' '.join(str(operations.count(operation)) for operation in 'CSID')}")
    return "\n".join(lines) + "\n"


def read_decoded(folder: Path) -> Decoded:
    """Read a decode folder; says how many references or hypotheses are empty. Raises UserError if it is unsound."""
    check_is_decoded(folder)
    references = read_texts(folder / "ref.jsonl")
    hypotheses = read_texts(folder / "hyp.jsonl")
    if missing := [key for key in references if key not in hypotheses]:
        raise UserError(
            f"{folder / 'hyp.jsonl'}: {len(missing)} of {len(references)} utterances of ref.jsonl are missing, "
            f"the first is {missing[0]}; decode this set again"
        )
    if unknown := [key for key in hypotheses if key not in references]:
        say(f"{folder}: {len(unknown)} of {len(hypotheses)} hypotheses have no reference ({unknown[0]}, ...); left out")
    if not references:
        raise UserError(f"{folder}: no utterances in ref.jsonl; decode a set that has transcripts")
    for what, texts, effect in (
        ("references", references, "their hypothesis words count as insertions"),
        ("hypotheses", hypotheses, "their reference words count as deletions"),
    ):
        if empty := [key for key in references if not texts[key].strip()]:
            say(f"{folder}: {len(empty)} of {len(references)} {what} are empty ({empty[0]}, ...); {effect}")
    try:
        info = json.loads((folder / "decode.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder / 'decode.json'}: not valid JSON ({error}); decode this set again") from None
    ids = list(references)
    return Decoded(
        folder=folder,
        ids=ids,
        references=[references[key] for key in ids],
        hypotheses=[hypotheses[key] for key in ids],
        info=info | {"label": info.get("label") or default_label(folder)},
    )


def default_label(folder: Path) -> str:
    """The name of the experiment that holds EXP/decode/<set>."""
    folder = folder.resolve()
    return folder.parent.parent.name if folder.parent.name == "decode" else folder.parent.name


def read_texts(path: Path) -> dict[str, str]:
    """The lines {"id", "text"} of a file, by id, in its order. Raises UserError if a line is none, or comes twice."""
    texts: dict[str, str] = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                item = json.loads(line)
                key, text = str(item["id"]), item["text"]
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f'{path}:{number}: expected {{"id": ..., "text": ...}}; decode this set again'
                ) from None
            if not isinstance(text, str):
                raise UserError(f"{path}:{number}: the text of {key} is {text!r}; expected words, or an empty text")
            if key in texts:
                raise UserError(f"{path}:{number}: a second line for {key}; ids must be unique, decode this set again")
            texts[key] = text
    return texts


def _utterance_lines(decoded: Decoded, words: Sequence[Errors]) -> Iterable[str]:
    for name, reference, hypothesis, errors in zip(
        decoded.ids, decoded.references, decoded.hypotheses, words, strict=True
    ):
        line = {"id": name, "ref": reference, "hyp": hypothesis, "errors": errors.total, **errors._asdict()}
        line["words"] = line.pop("length")
        yield json.dumps(line, ensure_ascii=False) + "\n"
