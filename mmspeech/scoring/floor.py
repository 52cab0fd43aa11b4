"""The floor: the score of answering the same words whatever the input, which any useful model must far surpass.

The constant answer is chosen on training texts alone, to have as few word errors as can be found: the best of all
transcripts seen there, of the most frequent word repeated 0, 1, 2 ... times, and of the words most frequent in each
position; then improved by exchanging, adding and removing single words as long as the errors become fewer. It is a
stronger guess than "no words at all" (100 %), because it knows the language of the corpus, but neither sound nor lips.
Of translations it is the one seen in training that has the highest BLEU there.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from mmspeech.errors import UserError
from mmspeech.scoring import bleu
from mmspeech.scoring.wer import count, words_of
from mmspeech.seeds import numpy_rng

LABEL = "floor (no input)"
SAMPLE = 500  # training texts on which a guess is tried
CANDIDATES = 300  # whole transcripts that are tried as guesses
TRANSLATIONS = 100  # of them are guesses, and on as many each is tried: BLEU takes longer to count
WORDS = 20  # the most frequent words, which are tried in every place


def best_constant(texts: Iterable[str], *, metric: Literal["wer", "bleu"] = "wer", seed: int = 0) -> str:
    """The constant answer with the fewest word errors, or the highest BLEU, on (a seeded sample of) training texts.

    Raises UserError if there is no word in them.
    """
    transcripts = [tuple(words_of(text)) for text in texts]
    transcripts = [words for words in transcripts if words]
    if not transcripts:
        raise UserError("no training cut has a transcript; the floor is a guess made from training texts")
    rng = numpy_rng(seed, "floor")
    if metric == "bleu":
        return _best_translation(transcripts, rng)
    sample = _sampled(transcripts, SAMPLE, rng)
    tried: dict[tuple[str, ...], int] = {}

    def errors(guess: tuple[str, ...]) -> int:
        if guess not in tried:
            tried[guess] = sum(count(words, guess).total for words in sample)
        return tried[guess]

    frequent = [word for word, _ in Counter(word for words in transcripts for word in words).most_common(WORDS)]
    guesses = [*_sampled(list(dict.fromkeys(transcripts)), CANDIDATES, rng), *_frequent_guesses(sample, frequent)]
    best = min(guesses, key=errors)  # the first of equals, so the choice is the same every time
    while True:
        nearby = min(_neighbours(best, frequent), key=errors)
        if errors(nearby) >= errors(best):
            return " ".join(best)
        best = nearby


def _best_translation(texts: list[tuple[str, ...]], rng: np.random.Generator) -> str:
    sample = [" ".join(words) for words in _sampled(texts, TRANSLATIONS, rng)]
    guesses = [" ".join(words) for words in _sampled(list(dict.fromkeys(texts)), TRANSLATIONS, rng)]

    def score(guess: str) -> float:
        rows = bleu.sentence_rows(sample, [guess] * len(sample))
        return bleu.corpus_scores(rows.sum(axis=0, keepdims=True))[0]

    return max(guesses, key=score)


def _frequent_guesses(sample: Sequence[tuple[str, ...]], frequent: Sequence[str]) -> list[tuple[str, ...]]:
    longest = max(map(len, sample))
    by_position = tuple(
        Counter(words[i] for words in sample if len(words) > i).most_common(1)[0][0] for i in range(longest)
    )
    repeated = [(frequent[0],) * length for length in range(longest + 1)]
    return repeated + [by_position[:length] for length in range(1, longest + 1)]


def _neighbours(guess: tuple[str, ...], words: Sequence[str]) -> list[tuple[str, ...]]:
    """Every guess that differs in one word: exchanged, added or removed."""
    near = [guess[:i] + guess[i + 1 :] for i in range(len(guess))]
    for word in words:
        near += [(*guess[:i], word, *guess[i + 1 :]) for i in range(len(guess))]
        near += [(*guess[:i], word, *guess[i:]) for i in range(len(guess) + 1)]
    return near


def _sampled(items: list[tuple[str, ...]], size: int, rng: np.random.Generator) -> list[tuple[str, ...]]:
    if len(items) <= size:
        return items
    return [items[i] for i in sorted(rng.choice(len(items), size, replace=False))]
