"""CTC prefix scores against all alignments there are, and the joint search against a literal one that uses them."""

import dataclasses
import itertools
import math
from collections import defaultdict

import pytest
import torch
from test_beam import MAX_LENGTH, assert_same, gains_after, random_decoder, random_memory
from test_ctc import collapse, random_frames
from test_seq2seq import small_batch, small_objective

from mmspeech.decoding import beam
from mmspeech.decoding.beam import BeamConfig, beam_search
from mmspeech.decoding.ctc import prefix_beam_search
from mmspeech.decoding.prefix_score import PrefixScores
from mmspeech.errors import UserError
from mmspeech.models.decoder import END, PAD

BLANK = 0
Text = tuple[int, ...]


class Spelled:
    """Every text that frames (T, V) may spell: log probabilities of texts and, summed, of their beginnings."""

    def __init__(self, frames: torch.Tensor) -> None:
        self.texts: dict[Text, float] = defaultdict(float)
        self.prefixes: dict[Text, float] = defaultdict(float)
        rows = frames.exp().double().tolist()
        for alignment in itertools.product(range(frames.shape[1]), repeat=len(frames)):
            p = math.prod(row[token] for row, token in zip(rows, alignment, strict=True))
            self.texts[collapse(alignment, BLANK)] += p
        for text, p in self.texts.items():
            for size in range(len(text) + 1):
                self.prefixes[text[:size]] += p

    def log_text(self, text: Text) -> float:
        return math.log(self.texts[text]) if text in self.texts else -math.inf

    def log_prefix(self, prefix: Text) -> float:
        return math.log(self.prefixes[prefix]) if prefix in self.prefixes else -math.inf


def test_prefix_scores_sum_over_all_alignments():
    """V = 6, T = 4, 2 and 1: every prefix of up to three tokens, repeated tokens too, with every token behind it."""
    log_probs, lengths = random_frames(3, 4, 6, seed=2), torch.tensor([4, 2, 1])
    spelled = [Spelled(log_probs[i, : lengths[i]]) for i in range(3)]
    log_probs[1, 2:], log_probs[2, 1:] = torch.nan, 0.0  # padding is not looked at
    scores = PrefixScores(log_probs, lengths, BLANK)
    prefixes: list[tuple[int, ...]] = [()]
    for _ in range(4):
        psi = scores.total[:, :, None] + scores.gains()  # (3, B, V)
        assert psi.shape == (3, len(prefixes), 6) and (psi[:, :, BLANK] == -math.inf).all()
        for i, (b, prefix) in itertools.product(range(3), enumerate(prefixes)):
            for token in (3, 4, 5):
                wanted = spelled[i].log_prefix((*prefix, token))
                assert psi[i, b, token].item() == pytest.approx(wanted, abs=1e-5)
            assert psi[i, b, END].item() == pytest.approx(spelled[i].log_text(prefix), abs=1e-5)
        parents = torch.arange(len(prefixes)).repeat_interleave(3).expand(3, -1)
        tokens = torch.tensor([3, 4, 5]).repeat(len(prefixes)).expand(3, -1)
        scores.choose(parents, tokens)
        prefixes = [(*prefix, token) for prefix in prefixes for token in (3, 4, 5)]


def test_prefix_scores_of_long_utterances_stay_exact():
    """1000 frames of 200 tokens: the text's score equals torch's CTC loss, and no gain is above 0."""
    generator = torch.Generator().manual_seed(0)
    log_probs = (6 * torch.randn(1, 1000, 12, generator=generator)).log_softmax(-1)
    text = torch.randint(3, 12, (1, 200), generator=generator)
    scores = PrefixScores(log_probs, torch.tensor([1000]), BLANK)
    for token in text[0]:
        assert scores.gains().max() < 1e-9
        scores.choose(torch.zeros(1, 1, dtype=torch.int64), token[None, None])
    found = (scores.total + scores.gains()[:, :, END]).item()
    loss = torch.nn.functional.ctc_loss(
        log_probs.double().transpose(0, 1), text, torch.tensor([1000]), torch.tensor([200]), BLANK, reduction="sum"
    )
    assert found == pytest.approx(-loss.item(), rel=1e-9)


def literal_search(decoder, memory, spelled, config, max_length):
    """(score, tokens) of the n best of one utterance, psi from the list of all texts; to the maximum length."""
    live, ended, weight = [(0.0, ())], [], config.ctc_weight
    for step in range(max_length + 1):
        candidates = []
        for total, prefix in live:
            for token, gain in enumerate(gains_after(decoder, memory, list(prefix), config)):
                if token == END:
                    allowed = step >= config.min_length or step == max_length
                else:
                    allowed = token not in (PAD, BLANK) and step < max_length
                after = spelled.log_text(prefix) if token == END else spelled.log_prefix((*prefix, token))
                if allowed and after > -math.inf:
                    gain = (1 - weight) * gain + weight * (after - spelled.log_prefix(prefix))
                    candidates.append((total + gain, (*prefix, token)))
        candidates = sorted(candidates, reverse=True)[: 2 * config.beam]
        for total, tokens in candidates[: config.beam]:
            if tokens[-1] == END:
                ended.append((total / len(tokens) ** config.length_penalty, list(tokens[:-1])))
        live = [(total, tokens) for total, tokens in candidates if tokens[-1] != END][: config.beam]
    return sorted(ended, reverse=True)[: config.nbest]


@pytest.mark.parametrize(
    "options",
    [
        {"ctc_weight": 0.3, "length_penalty": 1.0, "beam": 4, "nbest": 3},
        {"ctc_weight": 0.7, "length_penalty": 0.0, "beam": 2, "nbest": 2},
        {"ctc_weight": 1.0, "length_penalty": 0.5, "beam": 5, "nbest": 4, "min_length": 2},
        {"ctc_weight": 0.1, "length_penalty": -0.5, "beam": 3, "temperature": 1.5},
    ],
    ids=str,
)
def test_joint_search_equals_the_literal_one(options):
    """Batched over utterances of other lengths, with an early end; five frames for up to four tokens."""
    config = BeamConfig(**options)
    decoder, (memory, _) = random_decoder(6, 1), random_memory(1)
    log_probs, frames = random_frames(5, 5, 6, seed=1), torch.tensor([5, 4, 3, 5, 2])
    max_length = torch.tensor([4, 3, 3, 4, 2])
    found = beam_search(decoder, memory, torch.full((5,), 10), config, max_length, PrefixScores(log_probs, frames, 0))
    for i in range(5):
        spelled = Spelled(log_probs[i, : frames[i]])
        assert_same(found[i], literal_search(decoder, memory[i], spelled, config, int(max_length[i])))


def test_ctc_alone_ranks_as_a_prefix_search_that_keeps_all():
    """Weight 1, no penalty, a beam that holds everything: the order and the probabilities of the texts."""
    log_probs = random_frames(2, 5, 6, seed=4)
    log_probs[:, :, [PAD, END]] = -100.0  # of which the attention search never makes a text
    config = BeamConfig(beam=400, nbest=12, ctc_weight=1.0, length_penalty=0.0, min_length=0)
    decoder, (memory, lengths) = random_decoder(6, 0), random_memory(0)
    frames = torch.tensor([5, 4])
    found = beam_search(decoder, memory[:2], lengths[:2], config, frames, PrefixScores(log_probs, frames, BLANK))
    for ours, theirs in zip(found, prefix_beam_search(log_probs, frames, BLANK, beam=600, nbest=12), strict=True):
        assert [one.ids for one in ours] == [one.ids for one in theirs]
        assert [one.score for one in ours] == pytest.approx([one.score for one in theirs], abs=1e-4)


def test_almost_no_weight_changes_nothing():
    """With frames enough for every text; blank is <pad> here, which no attention search takes for a token."""
    decoder, (memory, lengths) = random_decoder(12, 2), random_memory(2)
    log_probs, frames = random_frames(5, 30, 12), torch.full((5,), 30)
    plain = beam_search(decoder, memory, lengths, BeamConfig(beam=4, nbest=4), MAX_LENGTH)
    config = BeamConfig(beam=4, nbest=4, ctc_weight=1e-6)
    joint = beam_search(decoder, memory, lengths, config, MAX_LENGTH, PrefixScores(log_probs, frames, blank=PAD))
    for ours, wanted in zip(joint, plain, strict=True):
        assert [one.ids for one in ours] == [one.ids for one in wanted]
        assert [one.score for one in ours] == pytest.approx([one.score for one in wanted], abs=1e-4)


@pytest.mark.parametrize("penalty", [-0.5, 0.0, 1.0])
def test_early_end_of_a_joint_search_changes_nothing(penalty, monkeypatch):
    decoder, (memory, lengths) = random_decoder(12, 3), random_memory(3)
    log_probs, frames = random_frames(5, 20, 12, seed=3), torch.tensor([20, 13, 17, 20, 9])
    config = BeamConfig(beam=5, nbest=3, ctc_weight=0.4, length_penalty=penalty)
    found = beam_search(decoder, memory, lengths, config, 2 * MAX_LENGTH, PrefixScores(log_probs, frames, BLANK))
    monkeypatch.setattr(beam, "_reachable", lambda best_sum, *rest: torch.full_like(best_sum, torch.inf))
    whole = beam_search(decoder, memory, lengths, config, 2 * MAX_LENGTH, PrefixScores(log_probs, frames, BLANK))
    for some, every in zip(found, whole, strict=True):
        assert_same(some, [(hypothesis.score, hypothesis.ids) for hypothesis in every])


def test_frames_too_few_for_a_text_give_none():
    """Two tokens at least, one frame: CTC has no alignment; nothing is made up."""
    decoder, (memory, lengths) = random_decoder(12, 2), random_memory(2)
    config = BeamConfig(beam=4, ctc_weight=0.5, min_length=2)
    frames = torch.tensor([1, 8, 8, 8, 8])
    scores = PrefixScores(random_frames(5, 8, 12), frames, BLANK)
    found = beam_search(decoder, memory, lengths, config, torch.full((5,), 4), scores)
    assert [len(hypotheses) for hypotheses in found] == [0, 1, 1, 1, 1]


def test_a_model_with_both_heads_searches_jointly_and_one_without_says_so():
    """A batch equals its items one by one; the setting is named where there is no CTC head."""
    objective = small_objective(ctc_weight=0.25).eval()
    batch, search = small_batch(), BeamConfig(beam=3, nbest=2, ctc_weight=0.3)
    joint = objective.generate(batch, search)
    assert joint != objective.generate(batch, BeamConfig(beam=3, nbest=2))
    encoded = objective.encoded(batch)
    one = dataclasses.replace(encoded, frames=encoded.frames[1:2, :9], lengths=encoded.lengths[1:2])
    assert_same(joint[1], [(best.score, best.ids) for best in objective.search(one, search)[0]])
    with pytest.raises(UserError, match=r"ctc_weight: 0\.3, but this model has no CTC head"):
        small_objective().eval().generate(batch, search)
    with pytest.raises(UserError, match=r"ctc_weight: 1\.5; expected a share"):
        BeamConfig(ctc_weight=1.5)
