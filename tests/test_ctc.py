"""CTC search against a literal one with a dictionary of prefixes, and against the sum over all alignments."""

import itertools
import math
from collections import defaultdict

import pytest
import torch

from mmspeech.decoding.ctc import greedy, prefix_beam_search
from mmspeech.errors import UserError
from mmspeech.finetuning.ctc import CTCSearchConfig


def random_frames(n: int, num_frames: int, vocab_size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(n, num_frames, vocab_size, generator=generator)).log_softmax(-1)


def collapse(alignment: tuple[int, ...], blank: int) -> tuple[int, ...]:
    """Repeated tokens once, then without blanks."""
    return tuple(token for token, _ in itertools.groupby(alignment) if token != blank)


def literal_search(frames: torch.Tensor, blank: int, beam: int) -> list[tuple[float, tuple[int, ...]]]:
    """The textbook's search over a dictionary: prefix -> (probability ending in blank, in its last token)."""
    prefixes = {(): (1.0, 0.0)}
    for probabilities in frames.exp().tolist():
        following = defaultdict(lambda: [0.0, 0.0])
        for prefix, (ends_blank, ends_token) in prefixes.items():
            for token, p in enumerate(probabilities):
                if token == blank:
                    following[prefix][0] += p * (ends_blank + ends_token)
                elif prefix and token == prefix[-1]:
                    following[prefix][1] += p * ends_token
                    following[(*prefix, token)][1] += p * ends_blank
                else:
                    following[(*prefix, token)][1] += p * (ends_blank + ends_token)
        best = sorted(following.items(), key=lambda item: -sum(item[1]))[:beam]
        prefixes = {prefix: tuple(both) for prefix, both in best if sum(both) > 0}
    return sorted(((math.log(sum(both)), prefix) for prefix, both in prefixes.items()), reverse=True)


def assert_same(found, wanted):
    assert [tuple(hypothesis.ids) for hypothesis in found] == [prefix for _, prefix in wanted]
    for hypothesis, (score, _) in zip(found, wanted, strict=True):
        assert hypothesis.score == pytest.approx(score, abs=1e-3)


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("beam", [1, 3, 8, 40])
def test_prefix_search_equals_the_literal_one(blank, beam):
    """All utterances at once, padded, against each alone with a dictionary."""
    frames, lengths = random_frames(6, 14, 5, seed=beam), torch.tensor([14, 1, 9, 0, 13, 14])
    found = prefix_beam_search(frames, lengths, blank, beam=beam, nbest=min(beam, 4))
    for i in range(6):
        assert_same(found[i], literal_search(frames[i, : lengths[i]], blank, beam)[: min(beam, 4)])


def test_wide_search_sums_over_all_alignments():
    """V = 3, T = 5: the probability of every text is that of its 243 alignments, added up."""
    frames = random_frames(2, 5, 3, seed=7)
    found = prefix_beam_search(frames, torch.tensor([5, 4]), 0, beam=200, nbest=6)
    for i, num_frames in enumerate((5, 4)):
        total = defaultdict(float)
        for alignment in itertools.product(range(3), repeat=num_frames):
            log_prob = sum(frames[i, t, token].item() for t, token in enumerate(alignment))
            total[collapse(alignment, 0)] += math.exp(log_prob)
        best = sorted(((math.log(p), text) for text, p in total.items()), reverse=True)[:6]
        assert_same(found[i], best)


def test_greedy_takes_the_best_token_of_each_frame():
    """Repeated tokens are one, unless a blank stands between; padded frames count for nothing."""
    path = torch.tensor([[1, 1, 0, 1, 2, 2], [3, 0, 0, 3, 1, 1]])
    frames = torch.full((2, 6, 4), -5.0).scatter(2, path[:, :, None], -0.5)
    first, second = greedy(frames, torch.tensor([6, 4]), 0)
    assert first.ids == [1, 1, 2] and first.score == pytest.approx(-3.0)
    assert second.ids == [3, 3] and second.score == pytest.approx(-2.0)
    assert second.token_scores == pytest.approx([-0.5, -0.5])


def test_padding_changes_nothing():
    frames, lengths = random_frames(3, 12, 6), torch.tensor([12, 5, 8])
    poisoned = frames.clone()
    poisoned[1, 5:], poisoned[2, 8:] = torch.nan, 0.0
    wanted = prefix_beam_search(frames, lengths, 0, beam=4)
    assert prefix_beam_search(poisoned, lengths, 0, beam=4) == wanted
    assert greedy(poisoned, lengths, 0) == greedy(frames, lengths, 0)


@pytest.mark.parametrize("setting", [{"nbest": 2}, {"beam": 4, "nbest": 5}, {"beam": 4, "nbest": 0}])
def test_a_search_that_cannot_be_is_refused(setting):
    """As with the attention decoder: 1 <= nbest <= beam."""
    with pytest.raises(UserError, match="expected 1 <= nbest <= beam"):
        CTCSearchConfig(**setting)
    with pytest.raises(UserError, match=r"^beam: 0; expected a width of 1 or more"):
        CTCSearchConfig(beam=0)
    assert CTCSearchConfig(beam=4, nbest=4).nbest == 4
