"""What every search returns: hypotheses, best first, for each utterance."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Hypothesis:
    """One reading of an utterance."""

    ids: list[int]  # tokens, without the end symbol
    score: float  # what the search ranks by: higher is better
    token_scores: list[float]  # log probability of each token and, in an attention search, of the end symbol

    @property
    def confidence(self) -> float:
        """Mean log probability of a token, the end counted, whatever length penalty the search ranks by.

        A CTC search knows only the sum, which is its score.
        """
        if self.token_scores:
            return sum(self.token_scores) / len(self.token_scores)
        return self.score / (len(self.ids) + 1)
