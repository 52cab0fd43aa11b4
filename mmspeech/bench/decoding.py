"""Beam search over a batch against one utterance and one hypothesis at a time: the same decoder, the same rules.

The peer is not made slow on purpose: every hypothesis keeps its own keys and values and copies them where it branches,
and it stops as early as ours does. The encoder, which is the same for both, is not measured.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mmspeech import seeds
from mmspeech.bench.measure import Ready, Row, Settings, draw_durations
from mmspeech.blocks.decoder_layer import KeyValues, Past
from mmspeech.decoding.beam import BeamConfig, beam_search
from mmspeech.models.decoder import END, PAD, Decoder, DecoderConfig, DecoderState

DECODERS = {
    "tiny": DecoderConfig(num_layers=1, dim=64, ffn_dim=256, heads=4),
    "small": DecoderConfig(num_layers=2, dim=256, ffn_dim=1024, heads=4),  # recipes/lrs3/conf/uhubert/finetune/synth-av
    "base": DecoderConfig(),
}
VOCAB = 1000
TOKENS_PER_FRAME = 0.15  # at most: 3.75 a second, as English has of such a vocabulary

Best = list[tuple[list[int], float]]  # of each utterance: tokens and score


class Task(NamedTuple):
    """What both search."""

    decoder: Decoder
    memory: Tensor  # (N, T, D)
    lengths: Tensor  # (N,)
    config: BeamConfig


def ours(settings: Settings, folder: Path) -> Ready:
    """All utterances and all hypotheses at once."""
    task = make_task(settings)

    def run(number: int) -> Best:
        return [(best.ids, best.score) for best, *_ in beam_search(*task)]

    return Ready(run, lambda: run(0), _work(task))


def one_by_one(settings: Settings, folder: Path) -> Ready:
    """A loop over utterances, tokens and hypotheses."""
    task = make_task(settings)

    def run(number: int) -> Best:
        limits = task.config.max_length(task.lengths).tolist()
        rows = zip(task.memory, task.lengths.tolist(), limits, strict=True)
        return [search_one(task, memory[None, :length], limit) for memory, length, limit in rows]

    return Ready(run, lambda: run(0), _work(task))


@dataclass
class Hypothesis:
    """One that goes on, with a cache of its own."""

    total: float
    tokens: list[int]
    state: DecoderState


@torch.inference_mode()
def search_one(task: Task, memory: Tensor, max_length: int) -> tuple[list[int], float]:
    """The best hypothesis for one utterance, memory (1, T, D)."""
    decoder, beam, penalty = task.decoder, task.config.beam, task.config.length_penalty
    live = [Hypothesis(0.0, [], decoder.start(memory, torch.tensor([memory.shape[1]], device=memory.device)))]
    best_score, best_tokens = float("-inf"), list[int]()
    for step in range(max_length + 1):
        candidates = []
        for hypothesis in live:
            last = hypothesis.tokens[-1] if hypothesis.tokens else END
            logits = decoder.step(torch.tensor([[last]], device=memory.device), hypothesis.state)[0, 0]
            gains = logits.float().log_softmax(-1)
            gains[PAD] = float("-inf")
            if step < task.config.min_length:
                gains[END] = float("-inf")
            if step == max_length:
                values, tokens = [float(gains[END])], [END]
            else:
                values, tokens = (part.tolist() for part in gains.topk(2 * beam))
            for value, token in zip(values, tokens, strict=True):
                candidates.append((hypothesis.total + value, token, hypothesis))
        candidates = sorted(candidates, key=lambda candidate: candidate[0], reverse=True)[: 2 * beam]
        for total, token, parent in candidates[:beam]:
            score = total / (step + 1) ** penalty
            if token == END and score > best_score:
                best_score, best_tokens = score, parent.tokens
        going = [candidate for candidate in candidates if candidate[1] != END][:beam]
        live = [Hypothesis(total, [*parent.tokens, token], branch(parent.state)) for total, token, parent in going]
        if not live or best_score >= live[0].total / (max_length + 1) ** penalty:  # out of reach for all that go on
            break
    return best_tokens, best_score


def branch(state: DecoderState) -> DecoderState:
    """A copy that can go on by itself; the encoder's keys and values are shared."""
    copies = []
    for past in state.past:
        copy = Past()
        copy.size, copy.memory = past.size, past.memory
        copy.room = KeyValues(past.room.keys.clone(), past.room.values.clone()) if past.room else None
        copies.append(copy)
    return DecoderState(state.memory, state.memory_valid, copies, state.ancestors)


def difference(a: Best, b: Best) -> tuple[float, float]:
    """Share of utterances with other tokens; none may have any, but for equally good ones."""
    wrong = [ours[0] != theirs[0] and abs(ours[1] - theirs[1]) > 1e-3 for ours, theirs in zip(a, b, strict=True)]
    return sum(wrong) / len(wrong), 0.0


def rows() -> dict[str, Row]:
    peer = {"one utterance, one hypothesis at a time, own caches": one_by_one}
    mine = ("decoding.beam, batched and cached", ours)
    return {"decoding": Row("beam search", mine, peer, ("real-time factor",), difference)}


def make_task(settings: Settings) -> Task:
    """A decoder with random weights, sharp enough to have opinions, and random frames of ragged lengths."""
    torch.manual_seed(settings.seed)
    config = DECODERS[settings.size]
    decoder = Decoder(VOCAB, config.dim, config).eval()
    with torch.no_grad():
        decoder.embedding.weight.mul_(3)
    durations = draw_durations(seeds.numpy_rng(settings.seed, "searched"), 4 if settings.quick else 16)
    lengths = torch.from_numpy(durations * 25).round().long()
    memory = torch.randn(len(lengths), int(lengths.max()), config.dim)
    beam = BeamConfig(beam=4 if settings.quick else 10, max_length_ratio=TOKENS_PER_FRAME)
    return Task(decoder.to(settings.device), memory.to(settings.device), lengths.to(settings.device), beam)


def _work(task: Task) -> dict[str, float]:
    return {"speech_s": int(task.lengths.sum()) / 25}
