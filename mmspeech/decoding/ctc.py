"""Reading CTC's frames: the best token of each, or the best prefixes summed over their alignments.

Prefix beam search (Hannun et al. 2014) keeps for each prefix two probabilities, of its alignments so far that end in
blank and of those that do not. Per frame, a prefix stays (blank, or its last token again) or grows by a token; growing
may lead to a prefix that is in the beam already, and then the two are one. All utterances and prefixes are handled at
once; prefixes are told apart by a 64-bit hash of their tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmspeech.batch import valid_frames
from mmspeech.decoding.hypothesis import Hypothesis

NEVER = float("-inf")


@torch.inference_mode()
def greedy(log_probs: Tensor, lengths: Tensor, blank: int) -> list[Hypothesis]:
    """The best token of each frame, repeated ones and blanks removed; its score is that one alignment's.

    Args:
        log_probs: (N, T, V) of the tokens and blank.
        lengths: (N,) frames.
    """
    best, tokens = log_probs.max(-1)  # (N, T)
    valid = valid_frames(lengths, log_probs.shape[1])
    starts = torch.ones_like(valid)
    starts[:, 1:] = tokens[:, 1:] != tokens[:, :-1]
    kept = (valid & starts & (tokens != blank)).cpu()
    scores = best.masked_fill(~valid, 0.0).sum(1).tolist()
    gains = best.cpu()
    return [
        Hypothesis(ids[keep].tolist(), score, gain[keep].tolist())
        for ids, keep, score, gain in zip(tokens.cpu(), kept, scores, gains, strict=True)
    ]


@torch.inference_mode()
def prefix_beam_search(
    log_probs: Tensor, lengths: Tensor, blank: int, *, beam: int, nbest: int = 1
) -> list[list[Hypothesis]]:
    """The `nbest` of the best prefixes, best first; a score is the log probability summed over the alignments kept.

    Args:
        log_probs: (N, T, V) of the tokens and blank.
        lengths: (N,) frames.
        beam: how many prefixes an utterance keeps from frame to frame.
    """
    n, num_frames, _ = log_probs.shape
    log_probs = log_probs.float()
    valid = valid_frames(lengths, num_frames)
    prefixes = _Prefixes.start(n, beam, blank, log_probs.device)
    parents, grown = [], []  # per frame (N, B): from which prefix, by which token (-1: none)
    for frame in range(num_frames):
        following, parent, token = prefixes.extended(log_probs[:, frame], blank)
        real = valid[:, frame, None]
        stay = torch.arange(beam, device=log_probs.device).expand(n, beam)
        parents.append(torch.where(real, parent, stay))
        grown.append(token.masked_fill(~real, -1))
        prefixes = prefixes.where(real, following)

    scores, order = prefixes.total().topk(min(nbest, beam))  # (N, K)
    place, tokens = order, []
    for parent, token in zip(reversed(parents), reversed(grown), strict=True):
        tokens.append(token.gather(1, place))
        place = parent.gather(1, place)
    history = torch.stack(tokens[::-1], dim=2).tolist()  # (N, K, T)
    return [
        [
            Hypothesis([token for token in row if token >= 0], score, [])
            for row, score in zip(rows, row_scores, strict=True)
            if score > NEVER
        ]
        for rows, row_scores in zip(history, scores.tolist(), strict=True)
    ]


@dataclass
class _Prefixes:
    """B prefixes of each of N utterances; places that hold none have probability 0."""

    ends_blank: Tensor  # (N, B) log probability of the alignments that end in blank
    ends_token: Tensor  # (N, B) of those that end in the last token
    last: Tensor  # (N, B) last token; blank for the empty prefix
    name: Tensor  # (N, B) int64 hash of the tokens

    @classmethod
    def start(cls, n: int, beam: int, blank: int, device: torch.device) -> "_Prefixes":
        ends_blank = torch.full((n, beam), NEVER, device=device)
        ends_blank[:, 0] = 0.0
        return cls(
            ends_blank=ends_blank,
            ends_token=torch.full((n, beam), NEVER, device=device),
            last=torch.full((n, beam), blank, device=device),
            name=torch.zeros(n, beam, dtype=torch.int64, device=device),
        )

    def total(self) -> Tensor:
        return torch.logaddexp(self.ends_blank, self.ends_token)

    def extended(self, frame: Tensor, blank: int) -> tuple["_Prefixes", Tensor, Tensor]:
        """The best B prefixes after one more frame (N, V), and per prefix (N, B) its parent and new token, or -1."""
        (n, beam), vocab_size = self.last.shape, frame.shape[1]
        total = self.total()
        stay_blank = total + frame[:, blank, None]
        stay_token = self.ends_token + frame.gather(1, self.last)  # -inf for the empty prefix, whose `last` is blank

        # A token like the last one starts anew only behind a blank; else the frame belongs to that last token.
        grow = total[:, :, None] + frame[:, None, :]  # (N, B, V)
        again = (self.ends_blank + frame.gather(1, self.last))[:, :, None]
        grow = grow.scatter(2, self.last[:, :, None], again)
        grow[:, :, blank] = NEVER

        # Prefix i with the last token of prefix j behind it is prefix j: its share moves there.
        child = _hash(self.name[:, :, None], self.last[:, None, :])  # (N, B of i, B of j)
        alive = total > NEVER
        same = (child == self.name[:, None, :]) & (self.last != blank)[:, None, :] & alive[:, None, :]
        index = self.last[:, None, :].expand(n, beam, beam)
        shares = grow.gather(2, index).masked_fill(~same, NEVER)
        stay_token = torch.logaddexp(stay_token, shares.amax(1))  # a prefix has one parent
        moved = torch.zeros_like(grow, dtype=torch.uint8).scatter_reduce(2, index, same.to(torch.uint8), "amax")
        grow = grow.masked_fill(moved.bool(), NEVER)

        stay = torch.logaddexp(stay_blank, stay_token)
        best, place = torch.cat([stay, grow.flatten(1)], dim=1).topk(beam)
        stays = place < beam
        grown = (place - beam).clamp(min=0)
        parent = torch.where(stays, place, grown // vocab_size)
        token = torch.where(stays, -1, grown % vocab_size)
        name = self.name.gather(1, parent)
        following = _Prefixes(
            ends_blank=stay_blank.gather(1, parent).masked_fill(~stays, NEVER),
            ends_token=torch.where(stays, stay_token.gather(1, parent), best),
            last=torch.where(stays, self.last.gather(1, parent), token),
            name=torch.where(stays, name, _hash(name, token)),
        )
        return following, parent, token

    def where(self, real: Tensor, following: "_Prefixes") -> "_Prefixes":
        """`following` for utterances that are `real` (N, 1) in this frame, else these."""
        return _Prefixes(
            ends_blank=torch.where(real, following.ends_blank, self.ends_blank),
            ends_token=torch.where(real, following.ends_token, self.ends_token),
            last=torch.where(real, following.last, self.last),
            name=torch.where(real, following.name, self.name),
        )


def _hash(name: Tensor, token: Tensor) -> Tensor:
    """The hash of a prefix with one more token: a mixed multiple, so that the order of tokens matters (SplitMix64)."""
    mixed = (name ^ (token + 1)) * -7046029254386353131
    mixed = (mixed ^ (mixed >> 30)) * -4658895280553007687
    return mixed ^ (mixed >> 27)
