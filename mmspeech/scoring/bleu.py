"""BLEU of a decoded translation, by sacrebleu, with a bootstrap interval; the same files as `wer` writes."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sacrebleu.metrics import BLEU

from mmspeech.console import say
from mmspeech.errors import UserError
from mmspeech.scoring import bootstrap
from mmspeech.scoring.wer import condition, decode_stage, read_decoded

ORDERS = 4  # n-grams up to this length


def score_folder(folder: Path, *, seed: int = 0, resamples: int = bootstrap.RESAMPLES) -> dict[str, object]:
    """Score a decode folder whose texts are translations: writes score.json; returns what it says.

    Does nothing if score.json is current. Raises UserError if texts are missing, broken, or do not belong together.
    """
    stage = decode_stage(folder, {"metric": "bleu", "seed": seed, "resamples": resamples})
    if not stage.is_current():
        decoded = read_decoded(folder)
        score = summary(decoded.references, decoded.hypotheses, seed=seed, resamples=resamples)
        with stage.writing_file() as path:
            path.write_text(json.dumps(decoded.info | score, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        say(f"{folder}: BLEU {score['bleu']:.2f} ({score['signature']}){condition(decoded.info)}")
    return json.loads((folder / "score.json").read_text(encoding="utf-8"))


def summary(
    references: Sequence[str], hypotheses: Sequence[str], *, seed: int = 0, resamples: int = bootstrap.RESAMPLES
) -> dict[str, object]:
    """Corpus BLEU in points (0 to 100), its interval, and sacrebleu's signature, which says how it was counted."""
    if not any(text.strip() for text in references):
        raise UserError(f"{len(references)} references without a single word; score a set that has translations")
    bleu = BLEU()
    corpus = bleu.corpus_score(list(hypotheses), [list(references)])
    rows = sentence_rows(references, hypotheses)
    low, high = bootstrap.interval(rows, corpus_scores, seed=seed, resamples=resamples)
    return {
        "metric": "bleu",
        "bleu": corpus.score,
        "bleu_low": low,
        "bleu_high": high,
        "sentences": len(references),
        "words": sum(len(text.split()) for text in references),
        "signature": str(bleu.get_signature()),
        "interval": f"{100 * bootstrap.LEVEL:g} %, {resamples} resamples of utterances, seed {seed}",
    }


def sentence_rows(references: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
    """What each sentence adds to corpus BLEU: matches and n-grams per order, both lengths; (N, 2 * ORDERS + 2)."""
    # The counts are the same with or without effective order; without, the library warns at every sentence.
    bleu = BLEU(effective_order=True)
    rows = []
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        score = bleu.sentence_score(hypothesis, [reference])
        rows.append([*score.counts, *score.totals, score.sys_len, score.ref_len])
    return np.array(rows)


def corpus_scores(sums: np.ndarray) -> np.ndarray:
    """BLEU of each row of sums, by the library's own formula: (R, 2 * ORDERS + 2) -> (R,)."""
    scores = []
    for row in sums.astype(int).tolist():
        counts, totals, (hypothesis_length, reference_length) = row[:ORDERS], row[ORDERS:-2], row[-2:]
        score = BLEU.compute_bleu(counts, totals, hypothesis_length, reference_length, smooth_method="exp")
        scores.append(score.score)
    return np.array(scores)
