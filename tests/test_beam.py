"""Beam search against a literal one, hypothesis by hypothesis, and against all sequences there are."""

import itertools

import pytest
import torch

from mmspeech.decoding import beam
from mmspeech.decoding.beam import BeamConfig, beam_search
from mmspeech.errors import UserError
from mmspeech.models.decoder import END, PAD, Decoder, DecoderConfig

MAX_LENGTH = torch.tensor([6, 9, 4, 8, 7])


def random_decoder(vocab_size: int, seed: int) -> Decoder:
    torch.manual_seed(seed)
    decoder = Decoder(vocab_size, 8, DecoderConfig(num_layers=2, dim=16, ffn_dim=16, heads=2)).eval()
    with torch.no_grad():
        decoder.embedding.weight.mul_(4)  # probabilities far from equal
        decoder.embedding.weight[END] *= 0.6
    return decoder


def random_memory(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(5, 10, 8, generator=generator), torch.tensor([10, 7, 9, 1, 10])


@torch.no_grad()
def gains_after(decoder: Decoder, memory: torch.Tensor, prefix: list[int], config: BeamConfig) -> list[float]:
    """Log probabilities of the next token of one hypothesis of one utterance, its whole prefix fed anew."""
    logits = decoder(torch.tensor([[END, *prefix]]), memory[None], torch.tensor([len(memory)]))[0, -1]
    gains = (logits / config.temperature).log_softmax(0)
    gains[3] -= config.unk_penalty
    return gains.tolist()


def literal_search(decoder: Decoder, memory: torch.Tensor, config: BeamConfig, max_length: int):
    """(score, tokens) of the n best of one utterance; without `public_stop` it never stops before the maximum."""
    beam = min(config.beam, decoder.vocab_size - 1) if config.public_stop else config.beam
    live, ended = [(0.0, [])], []
    for step in range(max_length + 1):
        candidates = []
        for total, prefix in live:
            for token, gain in enumerate(gains_after(decoder, memory, prefix, config)):
                too_soon = token == END and step < config.min_length and step < max_length
                if token != PAD and not too_soon and (step < max_length or token == END):
                    candidates.append((total + gain, [*prefix, token]))
        candidates = sorted(candidates, reverse=True)[: 2 * beam]
        for total, tokens in candidates[:beam]:
            if tokens[-1] == END and not (config.public_stop and len(ended) == beam):
                ended.append((total / len(tokens) ** config.length_penalty, tokens[:-1]))
        live = [(total, tokens) for total, tokens in candidates if tokens[-1] != END][:beam]
        if config.public_stop and len(ended) == beam:
            break
    return sorted(ended, reverse=True)[: config.nbest]


def assert_same(found, wanted):
    assert [hypothesis.ids for hypothesis in found] == [tokens for _, tokens in wanted]
    for hypothesis, (score, tokens) in zip(found, wanted, strict=True):
        assert hypothesis.score == pytest.approx(score, abs=1e-4)
        assert len(hypothesis.token_scores) == len(tokens) + 1


@pytest.mark.parametrize(
    "options",
    [
        {"beam": 1},
        {"beam": 4, "nbest": 4},
        {"beam": 4, "nbest": 2, "length_penalty": 0.0},
        {"beam": 3, "nbest": 3, "length_penalty": -0.5},
        {"beam": 5, "nbest": 1, "length_penalty": 2.0, "min_length": 3},
        {"beam": 3, "nbest": 3, "temperature": 1.7, "unk_penalty": 1.5},
        {"beam": 4, "nbest": 4, "public_stop": True},
        {"beam": 50, "nbest": 8, "public_stop": True},
        {"beam": 20, "nbest": 20},
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", [0, 1])
def test_search_equals_the_literal_one(options, seed):
    """All utterances at once, with caches and an early end, against each alone, to the maximum length, without."""
    config = BeamConfig(**options)
    decoder, (memory, lengths) = random_decoder(9, seed), random_memory(seed)
    found = beam_search(decoder, memory, lengths, config, MAX_LENGTH)
    for i in range(5):
        wanted = literal_search(decoder, memory[i, : lengths[i]], config, int(MAX_LENGTH[i]))
        assert_same(found[i], wanted)


@pytest.mark.parametrize("penalty", [-1.0, -0.3, 0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    "options", [{}, {"min_length": 3}, {"unk_penalty": 2.0}, {"temperature": 0.4}, {"temperature": 3.0}], ids=str
)
def test_early_end_changes_nothing(penalty, options, monkeypatch):
    """What is found is what a search to the maximum length finds: a bound out of reach for all keeps it going."""
    saved = 0
    for seed in range(4):
        config = BeamConfig(beam=3 + seed, nbest=1 + seed // 2, length_penalty=penalty, **options)
        decoder, (memory, lengths) = random_decoder(12, seed), random_memory(seed)
        with torch.no_grad():
            decoder.norm.bias.copy_(decoder.embedding.weight[END] * (0.0, 0.2, 0.5, 2.0)[seed])  # ends seldom to often
        steps = []
        decoder.norm.register_forward_hook(lambda *call, steps=steps: steps.append(1))
        found = beam_search(decoder, memory, lengths, config, 2 * MAX_LENGTH)
        early = len(steps)
        with monkeypatch.context() as patch:
            patch.setattr(beam, "_reachable", lambda best_sum, *rest: torch.full_like(best_sum, torch.inf))
            whole = beam_search(decoder, memory, lengths, config, 2 * MAX_LENGTH)
        assert len(steps) - early == 2 * int(MAX_LENGTH.max()) + 1
        saved += len(steps) - 2 * early
        for some, every in zip(found, whole, strict=True):
            assert_same(some, [(hypothesis.score, hypothesis.ids) for hypothesis in every])
    assert saved > 0 or penalty > 0.5


@pytest.mark.parametrize("penalty", [-0.5, 0.0, 1.0, 1.5])
@pytest.mark.parametrize("options", [{}, {"min_length": 2, "unk_penalty": 1.0, "temperature": 1.5}], ids=str)
def test_wide_beam_finds_the_best_of_all_sequences(penalty, options):
    """V = 6, up to 3 tokens: every sequence is scored."""
    decoder, (memory, lengths) = random_decoder(6, 3), random_memory(3)
    config = BeamConfig(beam=300, nbest=5, length_penalty=penalty, **options)
    found = beam_search(decoder, memory, lengths, config, torch.full((5,), 3))
    tokens = [token for token in range(6) if token not in (PAD, END)]
    for i in range(2):
        scored = []
        for length in range(config.min_length, 4):
            for prefix in itertools.product(tokens, repeat=length):
                gains = [
                    gains_after(decoder, memory[i, : lengths[i]], list(prefix[:u]), config)[token]
                    for u, token in enumerate((*prefix, END))
                ]
                scored.append((sum(gains) / (length + 1) ** penalty, list(prefix)))
        assert_same(found[i], sorted(scored, reverse=True)[:5])


def test_batch_equals_its_utterances_one_by_one():
    """Neither the neighbours nor the padding of an utterance change its hypotheses; nan in the padding neither."""
    decoder, (memory, lengths) = random_decoder(20, 5), random_memory(5)
    config = BeamConfig(beam=6, nbest=3)
    padded = torch.cat([memory, torch.full((5, 4, 8), 1e4)], dim=1)
    together = beam_search(decoder, padded, lengths, config)
    for i in range(5):
        alone = beam_search(decoder, memory[i : i + 1, : lengths[i]], lengths[i : i + 1], config)[0]
        assert_same(together[i], [(hypothesis.score, hypothesis.ids) for hypothesis in alone])


def test_token_scores_add_up_to_the_score():
    decoder, (memory, lengths) = random_decoder(20, 6), random_memory(6)
    for best, *_ in beam_search(decoder, memory, lengths, BeamConfig(beam=3, length_penalty=0.0)):
        assert sum(best.token_scores) == pytest.approx(best.score, abs=1e-4)


def test_early_end_saves_steps():
    """A model that is sure of its end is not asked for the tokens up to the maximum length."""
    decoder, (memory, lengths) = random_decoder(9, 0), random_memory(0)
    with torch.no_grad():
        decoder.norm.bias.copy_(decoder.embedding.weight[END] * 2)
    steps = []
    decoder.norm.register_forward_hook(lambda *call: steps.append(1))
    beam_search(decoder, memory, lengths, BeamConfig(beam=3, length_penalty=0.0), torch.full((5,), 60))
    assert len(steps) < 10


def test_scores_that_are_no_numbers_give_no_hypothesis():
    decoder, (memory, lengths) = random_decoder(9, 0), random_memory(0)
    memory[2] = torch.nan
    found = beam_search(decoder, memory, lengths, BeamConfig(beam=3))
    assert [len(hypotheses) for hypotheses in found] == [1, 1, 0, 1, 1]


def test_length_limit_counts_frames():
    assert BeamConfig(max_length_ratio=0.5, max_length_extra=2).max_length(torch.tensor([10, 1])).tolist() == [7, 2]


def test_more_hypotheses_than_the_beam_holds_are_refused():
    with pytest.raises(UserError, match="nbest: 3 of a beam of 2"):
        BeamConfig(beam=2, nbest=3)
