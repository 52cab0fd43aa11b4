"""CTC prefix scores: how probable it is that the frames spell a text that begins with a hypothesis.

    psi(h) = log sum of p(text | frames) over all texts that begin with h,     psi(h </s>) = log p(h | frames)

A joint search adds them to what its attention decoder says (Watanabe et al. 2017, Sec. II-C). Of every hypothesis two
rows are kept: how probable it is that the first t frames spell exactly h, the last of them being its last token (n_t)
or blank (b_t). With x_t(c) the probability of c in frame t,

    n_t(h c) = x_t(c) (n_{t-1}(h c) + phi_{t-1}),   b_t(h c) = x_t(blank) (b_{t-1}(h c) + n_{t-1}(h c)),
    exp psi(h c) = sum over t of x_t(c) phi_{t-1},  phi_t = b_t(h) + n_t(h), the latter unless h ends with c.

psi of all tokens at once is a matrix product over the frames. Each recursion is linear: divided by the product of its
factors up to t it is a cumulative sum, so there is no loop over frames. Logs are float64: the products are tiny.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmspeech.batch import valid_frames
from mmspeech.models.decoder import END

NEVER = float("-inf")
LEAST = -1e3  # log probability of a token in a frame: their sums over frames stay exact to 1e-9


class PrefixScores:
    """The scores of n utterances with B hypotheses each, which begin as one empty hypothesis; moves with a search."""

    def __init__(self, log_probs: Tensor, lengths: Tensor, blank: int) -> None:
        """Start from the empty hypothesis.

        Args:
            log_probs: (N, T, V) of the tokens and blank.
            lengths: (N,) frames, on the device of `log_probs`.
        """
        self.blank = blank
        self.valid = valid_frames(lengths, log_probs.shape[1])  # (n, T)
        self.ends = lengths[:, None, None]
        frames = log_probs.double().clamp(min=LEAST).masked_fill(~self.valid[:, :, None], 0.0)
        self.frames = frames.transpose(1, 2).contiguous()  # (n, V, T)
        self.probs = self.frames.exp()
        self.blanks = F.pad(self.frames[:, blank].cumsum(1), (1, 0))[:, None]  # (n, 1, 1 + T): of nothing but blanks
        self.in_blank = self.blanks  # (n, B, 1 + T), log b_t
        self.in_token = torch.full_like(self.blanks, NEVER)  # (n, B, 1 + T), log n_t
        self.last = torch.full((len(log_probs), 1), END, device=log_probs.device)  # (n, B), </s> before the first
        self.total = self.blanks.new_zeros(len(log_probs), 1)  # (n, B), psi

    def gains(self) -> Tensor:
        """(n, B, V) psi of every hypothesis with every token behind it, </s> included, less its own: 0 or below."""
        spelled = torch.logaddexp(self.in_token, self.in_blank)
        phi = spelled[:, :, :-1].masked_fill(~self.valid[:, None], NEVER)  # (n, B, T)
        peak = phi.amax(2, keepdim=True).clamp(min=torch.finfo(phi.dtype).min)  # finite for a dead hypothesis, too
        psi = (phi - peak).exp() @ self.probs.transpose(1, 2)  # (n, B, V)
        psi = psi.log() + peak
        again = self.in_blank[:, :, :-1] + self._frames_of(self.last)
        again = again.masked_fill(~self.valid[:, None], NEVER).logsumexp(2, keepdim=True)
        psi = psi.scatter(2, self.last[:, :, None], again)
        psi[:, :, END] = spelled.gather(2, self.ends.expand(-1, spelled.shape[1], 1))[:, :, 0]
        psi[:, :, self.blank] = NEVER
        return (psi - self.total[:, :, None]).nan_to_num(nan=NEVER, neginf=NEVER)

    def choose(self, parents: Tensor, tokens: Tensor) -> None:
        """Go on with hypotheses `parents` (n, B'), each with one of `tokens` (n, B') behind it."""
        index = parents[:, :, None].expand(-1, -1, self.in_blank.shape[2])
        in_token, in_blank = self.in_token.gather(1, index), self.in_blank.gather(1, index)
        repeated = (tokens == self.last.gather(1, parents))[:, :, None]
        phi = torch.logaddexp(in_token.masked_fill(repeated, NEVER), in_blank)[:, :, :-1]
        phi = phi.masked_fill(~self.valid[:, None], NEVER)
        frames = self._frames_of(tokens)  # (n, B', T)
        held = F.pad(frames.cumsum(2), (1, 0))  # (n, B', 1 + T): of nothing but that token
        new = held[:, :, 1:] + (phi - held[:, :, :-1]).logcumsumexp(2)
        self.in_token = F.pad(new, (1, 0), value=NEVER)
        new = self.blanks[:, :, 1:] + (self.in_token - self.blanks)[:, :, :-1].logcumsumexp(2)
        self.in_blank = F.pad(new, (1, 0), value=NEVER)
        self.total = (phi + frames).logsumexp(2)
        self.last = tokens

    def keep(self, utterances: Tensor) -> None:
        """Drop all but these utterances, (n',) int64."""
        self.valid, self.ends, self.blanks = (part[utterances] for part in (self.valid, self.ends, self.blanks))
        self.frames, self.probs = self.frames[utterances], self.probs[utterances]
        self.in_blank, self.in_token = self.in_blank[utterances], self.in_token[utterances]
        self.last, self.total = self.last[utterances], self.total[utterances]

    def _frames_of(self, tokens: Tensor) -> Tensor:
        """(n, B, T) log probability of each of `tokens` (n, B) in each frame."""
        return self.frames.gather(1, tokens[:, :, None].expand(-1, -1, self.frames.shape[2]))
