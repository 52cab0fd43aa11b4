"""Beam search with an attention decoder: all utterances and all hypotheses at once, one loop over tokens.

Each step takes the best 2B continuations of an utterance's B hypotheses by summed log probability. An end symbol among
the first B of them ends a hypothesis; the best B of the others go on. A finished one is ranked by its sum divided by
length^penalty, the end symbol counted. An utterance is done when no live hypothesis can still reach the worst of those
kept, whatever it is continued with: the result is that of a search to the maximum length. `public_stop` ends it, as the
public AV-HuBERT code does, as soon as B hypotheses have ended, so that a wider beam may do worse than greedy search.

With `ctc_weight` w, a token adds (1 - w) of its log probability and w of what it does to the hypothesis's CTC prefix
score (Watanabe et al. 2017); neither can rise, so the same bound holds.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmspeech.decoding.hypothesis import Hypothesis
from mmspeech.decoding.prefix_score import NEVER, PrefixScores
from mmspeech.errors import UserError
from mmspeech.models.decoder import END, PAD, Decoder

UNK = 3


@dataclass(frozen=True, kw_only=True)
class BeamConfig:
    """How to search; the public decoding file has a beam of 50, a penalty of 1 and a length of up to the frames."""

    beam: int = 5
    length_penalty: float = 1.0  # exponent of the length that divides a sum; 0 leaves the sum
    min_length: int = 1  # tokens before the end symbol
    max_length_ratio: float = 1.0  # at most this x frames tokens before the end symbol ...
    max_length_extra: int = 0  # ... plus these
    nbest: int = 1
    temperature: float = 1.0  # divides the logits
    unk_penalty: float = 0.0  # taken from the log probability of <unk>
    ctc_weight: float = 0.0  # share of the CTC prefix score; needs a model that was tuned with such a head
    public_stop: bool = False  # stop at B ended hypotheses, as the public code does

    def __post_init__(self) -> None:
        if self.beam < 1:
            raise UserError(f"beam: {self.beam}; expected a width of 1 or more")
        if not 1 <= self.nbest <= self.beam:
            raise UserError(f"nbest: {self.nbest} of a beam of {self.beam}; expected 1 <= nbest <= beam")
        if self.temperature <= 0 or self.unk_penalty < 0:
            raise UserError(
                f"temperature {self.temperature}, unk_penalty {self.unk_penalty}: "
                "expected a temperature above 0 and a penalty of 0 or more"
            )
        if not 0 <= self.ctc_weight <= 1:
            raise UserError(
                f"ctc_weight: {self.ctc_weight}; expected a share from 0 (attention alone) to 1 (CTC alone)"
            )

    def max_length(self, num_frames: Tensor) -> Tensor:
        """The most tokens before the end symbol, (N,) int64, for utterances of `num_frames` (N,)."""
        longest = (num_frames.double() * self.max_length_ratio).long() + self.max_length_extra
        return longest.clamp(min=max(self.min_length, 1))


@torch.inference_mode()
def beam_search(
    decoder: Decoder,
    memory: Tensor,
    memory_lengths: Tensor,
    config: BeamConfig,
    max_length: Tensor | None = None,
    ctc: PrefixScores | None = None,
) -> list[list[Hypothesis]]:
    """Up to `nbest` hypotheses of each of N utterances, best first; none where the model gives no finite score.

    Args:
        memory: (N, T, D) the encoder's frames.
        memory_lengths: (N,) how many are real.
        max_length: (N,) the most tokens before the end symbol; by default what the config says of the frames.
        ctc: fresh prefix scores of the same utterances; `config.ctc_weight` needs them.
    """
    assert (ctc is not None) == (config.ctc_weight > 0), config.ctc_weight
    vocab_size = decoder.vocab_size
    beam = min(config.beam, vocab_size - 1) if config.public_stop else config.beam
    if max_length is None:
        max_length = config.max_length(memory_lengths)
    last_step = int(max_length.max())
    max_length = max_length.to(memory.device)
    # One table for scores and bound: a power rounded in two ways could put the bound below what it bounds.
    divisors = torch.arange(1, last_step + 2, dtype=torch.float64) ** config.length_penalty
    divisors = divisors.to(memory.device, torch.float32)
    # On a GPU a look at what is done makes the host wait for all that was queued; a few steps too many cost less.
    look_every = 1 if memory.device.type == "cpu" else 8

    state = decoder.start(memory, memory_lengths)
    live = _Live.start(len(memory), memory.device)
    kept = _Kept.start(len(memory), beam if config.public_stop else config.nbest, memory.device)
    leaving: list[tuple[Tensor, _Kept]] = []  # (utterances, what was kept of them), for those that left the batch
    utterances = torch.arange(len(memory), device=memory.device)  # (n,) those still in it
    done = torch.zeros(len(memory), dtype=torch.bool, device=memory.device)

    for step in range(last_step + 1):
        logits, prefix_gains = decoder.step(live.last, state), ctc.gains() if ctc else None
        scores = _continuations(logits, prefix_gains, live, config, step, forced=step >= max_length)
        total = scores.shape[1] * vocab_size
        num_candidates = min(2 * beam, total - 1 if config.public_stop else total)
        best, place = scores.flatten(1).topk(num_candidates)  # (n, 2B), sorted
        parents, tokens = place // vocab_size, place % vocab_size
        ends = (tokens == END) & (best > NEVER)

        ended = ends[:, :beam] & ~done[:, None]
        if config.public_stop:  # room for B in the order in which they end
            ended &= (ended.cumsum(1) + kept.count()[:, None]) <= beam
        normed = (best[:, :beam] / divisors[step]).masked_fill(~ended, NEVER)
        kept = kept.merge(normed, live.extended(parents[:, :beam], tokens[:, :beam], best[:, :beam]))

        _, order = best.masked_fill(ends, NEVER).topk(min(beam, num_candidates))
        parents, tokens = parents.gather(1, order), tokens.gather(1, order)
        live = live.extended(parents, tokens, best.masked_fill(ends, NEVER).gather(1, order))
        state.choose(parents)
        if ctc:
            ctc.choose(parents, tokens)

        done = done | (step >= max_length)
        if config.public_stop:
            done = done | (kept.count() >= beam)
        else:
            done = done | (kept.scores[:, -1] >= _reachable(live.scores[:, 0], step, max_length, divisors))
        if step == last_step or (step + 1) % look_every:
            continue
        going, gone = (~done).nonzero()[:, 0], done.nonzero()[:, 0]
        if len(going) == 0:
            break
        if len(gone) >= 0.1 * len(done):  # those that are done leave the batch, when they are worth the copies
            leaving.append((utterances[gone], kept.keep(gone)))
            utterances, done, max_length = utterances[going], done[going], max_length[going]
            live, kept = live.keep(going), kept.keep(going)
            state.keep(going)
            if ctc:
                ctc.keep(going)
    leaving.append((utterances, kept))
    return _collect(leaving, len(memory), config.nbest)


@dataclass
class _Live:
    """Hypotheses that go on: n utterances, B each, t tokens each."""

    scores: Tensor  # (n, B) summed log probabilities; -inf for one that is none
    tokens: Tensor  # (n, B, 1 + t) the tokens fed: </s> first
    sums: Tensor  # (n, B, 1 + t) the sum after each of them

    @classmethod
    def start(cls, n: int, device: torch.device) -> "_Live":
        return cls(
            scores=torch.zeros(n, 1, device=device),
            tokens=torch.full((n, 1, 1), END, device=device),
            sums=torch.zeros(n, 1, 1, device=device),
        )

    @property
    def last(self) -> Tensor:
        return self.tokens[:, :, -1]

    def extended(self, parents: Tensor, tokens: Tensor, scores: Tensor) -> "_Live":
        """Hypotheses `parents` (n, B'), each with one of `tokens` (n, B') behind it and then these sums."""
        index = parents[:, :, None].expand(-1, -1, self.tokens.shape[2])
        return _Live(
            scores=scores,
            tokens=torch.cat([self.tokens.gather(1, index), tokens[:, :, None]], dim=2),
            sums=torch.cat([self.sums.gather(1, index), scores[:, :, None]], dim=2),
        )

    def keep(self, utterances: Tensor) -> "_Live":
        return _Live(self.scores[utterances], self.tokens[utterances], self.sums[utterances])


@dataclass
class _Kept:
    """Ended hypotheses, best first: n utterances, up to K each."""

    scores: Tensor  # (n, K) normalised; -inf where there is none yet
    lengths: Tensor  # (n, K) tokens with the end symbol
    tokens: Tensor  # (n, K, 1 + t) as in _Live
    sums: Tensor  # (n, K, 1 + t)

    @classmethod
    def start(cls, n: int, size: int, device: torch.device) -> "_Kept":
        return cls(
            scores=torch.full((n, size), NEVER, device=device),
            lengths=torch.zeros(n, size, dtype=torch.int64, device=device),
            tokens=torch.full((n, size, 1), PAD, device=device),
            sums=torch.zeros(n, size, 1, device=device),
        )

    def count(self) -> Tensor:
        return (self.scores > NEVER).sum(1)

    def merge(self, scores: Tensor, ended: _Live) -> "_Kept":
        """The best K of those kept and `ended`, whose normalised scores are (n, B), -inf for those that did not end."""
        length = ended.tokens.shape[2] - 1
        order = torch.cat([self.scores, scores], dim=1)
        best, place = order.topk(self.scores.shape[1])
        index = place[:, :, None].expand(-1, -1, length + 1)

        def pick(kept: Tensor, new: Tensor) -> Tensor:
            wider = torch.cat([kept, kept.new_zeros(*kept.shape[:2], 1)], dim=2)
            return torch.cat([wider, new], dim=1).gather(1, index)

        lengths = torch.cat([self.lengths, torch.full_like(scores, length, dtype=torch.int64)], dim=1)
        return _Kept(best, lengths.gather(1, place), pick(self.tokens, ended.tokens), pick(self.sums, ended.sums))

    def keep(self, utterances: Tensor) -> "_Kept":
        return _Kept(*(part[utterances] for part in (self.scores, self.lengths, self.tokens, self.sums)))


def _continuations(
    logits: Tensor, prefix_gains: Tensor | None, live: _Live, config: BeamConfig, step: int, forced: Tensor
) -> Tensor:
    """Sums (n, B, V) of every hypothesis with every token behind it; -inf for what may not follow.

    Args:
        prefix_gains: (n, B, V) what each token adds to the CTC prefix score, in a joint search.
        forced: (n,) bool, utterances at their maximum length, where only the end symbol may follow.
    """
    gains = torch.log_softmax(logits.float() / config.temperature, dim=-1)
    if prefix_gains is not None:
        joint = (1 - config.ctc_weight) * gains + config.ctc_weight * prefix_gains.float()
        gains = joint.clamp(max=0.0)  # rounded, a prefix score may seem to rise
    gains = gains.masked_fill(gains.isnan(), NEVER)
    gains[:, :, PAD] = NEVER
    if config.unk_penalty:
        gains[:, :, UNK] -= config.unk_penalty
    others = torch.arange(gains.shape[2], device=gains.device) != END  # (V,)
    gains = gains.masked_fill(forced[:, None, None] & others, NEVER)
    if step < config.min_length:
        gains[:, :, END] = gains[:, :, END].masked_fill(~forced[:, None], NEVER)
    return live.scores[:, :, None] + gains


def _reachable(best_sum: Tensor, step: int, max_length: Tensor, divisors: Tensor) -> Tensor:
    """(n,) the score that no hypothesis can exceed which goes on from a sum of at most `best_sum` (n,).

    Sums only fall. Dividing by a power of the length helps most at the greatest length if the exponent is positive,
    else at the next possible one, that of the end symbol right behind the step + 1 tokens so far.

    Args:
        divisors: (U,) the powers of the lengths 1, 2, ...
    """
    following = divisors[min(step + 1, len(divisors) - 1)]
    return best_sum / torch.maximum(divisors[max_length], following)


def _collect(leaving: list[tuple[Tensor, _Kept]], n: int, nbest: int) -> list[list[Hypothesis]]:
    """Move what was kept to the host, in the order of the batch."""
    found: list[list[Hypothesis]] = [[] for _ in range(n)]
    for utterances, kept in leaving:
        gains = kept.sums.diff(dim=2).tolist()
        rows = zip(
            utterances.tolist(), kept.scores.tolist(), kept.lengths.tolist(), kept.tokens.tolist(), gains, strict=True
        )
        for utterance, scores, lengths, tokens, row_gains in rows:
            found[utterance] = [
                Hypothesis(tokens[k][1 : lengths[k]], scores[k], row_gains[k][: lengths[k]])
                for k in range(min(nbest, len(scores)))
                if scores[k] > NEVER
            ]
    return found
