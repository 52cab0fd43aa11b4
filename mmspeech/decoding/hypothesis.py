"""What every search returns: hypotheses, best first, for each utterance."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Hypothesis:
    """One reading of an utterance."""

    ids: list[int]  # tokens, without the end symbol
    score: float  # what the search ranks by: higher is better
    token_scores: list[float]  # log probability of each token and, in an attention search, of the end symbol
