"""Connectionist temporal classification on top of a pre-trained encoder (Graves et al. 2006).

streams -> encoder -> linear -> log probabilities of the tokens and blank, frame by frame -> sum over alignments
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmspeech.batch import Batch, Loss
from mmspeech.decoding.ctc import greedy, prefix_beam_search
from mmspeech.decoding.hypothesis import Hypothesis
from mmspeech.errors import UserError
from mmspeech.finetuning.tuning import TuningConfig, draw_kept, encode, leaves_unused, num_targets, tuned
from mmspeech.models.av_encoder import AVEncoder, Encoded

BLANK = 0  # <s>, which no target holds


@dataclass(frozen=True, kw_only=True)
class CTCConfig:
    """CTC fine-tuning."""

    encoder: TuningConfig = field(default_factory=TuningConfig)
    dropout: float = 0.1  # on the encoder's frames; not stated by any of the papers
    divide_by: Literal["tokens", "sentences"] = "sentences"


@dataclass(frozen=True, kw_only=True)
class CTCSearchConfig:
    """How to read the frames."""

    beam: int = 1  # 1: the best token of each frame; more: prefixes, summed over their alignments
    nbest: int = 1

    def __post_init__(self) -> None:
        if self.beam < 1:
            raise UserError(f"beam: {self.beam}; expected a width of 1 or more")
        if not 1 <= self.nbest <= self.beam:
            raise UserError(f"nbest: {self.nbest} of a beam of {self.beam}; expected 1 <= nbest <= beam")


class CTC(nn.Module):
    """The objective; targets are those of `seq2seq`, whose end symbol it leaves out."""

    couples_items = False

    def __init__(self, encoder: AVEncoder, config: CTCConfig, vocab_size: int, seed: int = 0) -> None:
        super().__init__()
        self.config, self.seed, self.vocab_size = config, seed, vocab_size
        self.leaves_unused = leaves_unused(config.encoder)
        self.encoder = tuned(encoder, config.encoder)
        self.dropout = nn.Dropout(config.dropout)
        self.project = nn.Linear(encoder.dim, vocab_size)

    def draw(self, batch: Batch, update: int) -> Batch:
        """Choose the streams that each item keeps, and count what the loss is divided by; on the host."""
        if self.training:
            batch = draw_kept(batch, self.config.encoder, self.seed)
        batch.counts["ctc"] = num_targets(batch, self.config.divide_by)
        return batch

    def forward(self, batch: Batch, update: int) -> Loss:
        """The loss of a drawn batch on the device."""
        encoded = encode(self.encoder, batch, self.config.encoder, update)
        logits = self.project(self.dropout(encoded.frames))
        return Loss(parts={"ctc": (ctc_loss(logits, batch), 1.0)})

    def generate(self, batch: Batch, search: CTCSearchConfig | None = None) -> list[list[Hypothesis]]:
        """Hypotheses of each item, best first; in evaluation mode."""
        return self.search(self.encoded(batch), search or CTCSearchConfig())

    @torch.inference_mode()
    def encoded(self, batch: Batch) -> Encoded:
        """The first half of `generate`, which all searches of a batch may share."""
        return self.encoder.encode(batch.streams, batch.lengths, batch.present or None)

    @torch.inference_mode()
    def log_probs(self, encoded: Encoded) -> Tensor:
        """(N, T, V) of the tokens and blank, of each frame."""
        return self.project(encoded.frames).float().log_softmax(-1)

    @torch.inference_mode()
    def search(self, encoded: Encoded, search: CTCSearchConfig) -> list[list[Hypothesis]]:
        """The second half of `generate`."""
        log_probs = self.log_probs(encoded)
        if search.beam == 1:
            return [[hypothesis] for hypothesis in greedy(log_probs, encoded.lengths, BLANK)]
        return prefix_beam_search(log_probs, encoded.lengths, BLANK, beam=search.beam, nbest=search.nbest)


def ctc_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Negative log probability of `targets["text"]` without their end symbols, summed over the items.

    An item with more tokens (and blanks between equal ones) than frames has no alignment; it counts 0.

    Args:
        logits: (N, T, V); the lengths, which torch wants on the host, are those of the batch.
    """
    log_probs = logits.float().log_softmax(-1).transpose(0, 1)  # (T, N, V)
    num_tokens = (batch.target_lengths["text"] - 1).clamp(min=0)
    losses = F.ctc_loss(
        log_probs, batch.targets["text"], batch.frames, num_tokens, BLANK, reduction="none", zero_infinity=True
    )
    lacking = (batch.target_lengths["text"] == 0).to(losses.device, non_blocking=True)
    return losses.masked_fill(lacking, 0.0).sum()
