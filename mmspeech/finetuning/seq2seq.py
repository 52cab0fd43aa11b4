"""Attention encoder-decoder fine-tuning, as AV-HuBERT and its followers do it (u-HuBERT Sec. 4.1, appendix A).

    streams ── a subset is kept ──▶ pre-trained encoder ──▶ decoder, fed the targets shifted right ──▶ cross-entropy
                                                       └──▶ linear ──▶ CTC, if `ctc_weight` > 0

The encoder is frozen for the first updates, its first layers for good if asked.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from mmspeech.batch import Batch, Loss
from mmspeech.decoding.beam import BeamConfig, beam_search
from mmspeech.decoding.hypothesis import Hypothesis
from mmspeech.decoding.prefix_score import PrefixScores
from mmspeech.errors import UserError
from mmspeech.finetuning.ctc import BLANK, ctc_loss
from mmspeech.finetuning.tuning import TuningConfig, draw_kept, encode, leaves_unused, num_targets, tuned
from mmspeech.models.av_encoder import AVEncoder, Encoded
from mmspeech.models.decoder import PAD, Decoder, DecoderConfig, shift_right


@dataclass(frozen=True, kw_only=True)
class Seq2SeqConfig:
    """Sequence-to-sequence fine-tuning; defaults are the public BASE configurations."""

    encoder: TuningConfig = field(default_factory=TuningConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    label_smoothing: float = 0.1
    ctc_weight: float = 0.0  # share of an auxiliary CTC loss on the encoder; not in the papers, helps small corpora
    divide_by: Literal["tokens", "sentences"] = "sentences"

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1 or not 0 <= self.ctc_weight < 1:
            raise UserError(
                f"label_smoothing: {self.label_smoothing}, ctc_weight {self.ctc_weight}; expected 0 or more and below 1"
            )


class Seq2Seq(nn.Module):
    """The objective: `targets["text"]` (N, U) token ids with </s> behind them, padded with <pad>."""

    couples_items = False

    def __init__(self, encoder: AVEncoder, config: Seq2SeqConfig, vocab_size: int, seed: int = 0) -> None:
        super().__init__()
        self.config, self.seed, self.vocab_size = config, seed, vocab_size
        self.leaves_unused = leaves_unused(config.encoder)
        self.encoder = tuned(encoder, config.encoder)
        self.decoder = Decoder(vocab_size, encoder.dim, config.decoder)
        self.ctc_project = nn.Linear(encoder.dim, vocab_size) if config.ctc_weight > 0 else None

    def draw(self, batch: Batch, update: int) -> Batch:
        """Choose the streams that each item keeps, and count what the loss is divided by; on the host."""
        if self.training:
            batch = draw_kept(batch, self.config.encoder, self.seed)
        count = num_targets(batch, self.config.divide_by)
        batch.counts["seq2seq"] = count
        if self.ctc_project is not None:
            batch.counts["ctc"] = count
        return batch

    def forward(self, batch: Batch, update: int) -> Loss:
        """The loss of a drawn batch on the device."""
        config, targets = self.config, batch.targets["text"]
        encoded = encode(self.encoder, batch, config.encoder, update)
        logits = self.decoder(shift_right(targets), encoded.frames, encoded.lengths)
        parts = {"seq2seq": (label_smoothed_loss(logits, targets, config.label_smoothing), 1 - config.ctc_weight)}
        if self.ctc_project is not None:
            ctc = ctc_loss(self.ctc_project(encoded.frames), batch)
            parts["ctc"] = (ctc, config.ctc_weight)
        real = targets != PAD
        right = ((logits.argmax(-1) == targets) & real).sum()
        return Loss(parts=parts, logs={"accuracy": (right, real.sum())})

    def generate(self, batch: Batch, search: BeamConfig | None = None) -> list[list[Hypothesis]]:
        """Hypotheses of each item, best first; in evaluation mode."""
        return self.search(self.encoded(batch), search or BeamConfig())

    @torch.inference_mode()
    def encoded(self, batch: Batch) -> Encoded:
        """The first half of `generate`, which all searches of a batch may share."""
        return self.encoder.encode(batch.streams, batch.lengths, batch.present or None)

    @torch.inference_mode()
    def search(self, encoded: Encoded, search: BeamConfig) -> list[list[Hypothesis]]:
        """The second half of `generate`. Raises UserError for a joint search without a CTC head."""
        return beam_search(
            self.decoder, encoded.frames, encoded.lengths, search, ctc=self._prefix_scores(encoded, search)
        )

    def _prefix_scores(self, encoded: Encoded, search: BeamConfig) -> PrefixScores | None:
        if search.ctc_weight == 0:
            return None
        if self.ctc_project is None:
            raise UserError(
                f"ctc_weight: {search.ctc_weight}, but this model has no CTC head; leave it out, or give a model that "
                "was tuned with objective.ctc_weight above 0"
            )
        log_probs = self.ctc_project(encoded.frames).float().log_softmax(-1)
        return PrefixScores(log_probs, encoded.lengths, BLANK)


def label_smoothed_loss(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy against targets that give `smoothing` to the V - 1 wrong tokens, summed; <pad> does not count.

    -(1 - e - e / (V - 1)) log p(target) - e / (V - 1) sum_v log p(v), as in the public criterion.

    Args:
        logits: (N, U, V).
        targets: (N, U) int64.
    """
    log_probs = logits.float().log_softmax(-1)
    share = smoothing / (logits.shape[-1] - 1)
    right = log_probs.gather(2, targets[:, :, None])[:, :, 0]  # (N, U)
    loss = -(1 - smoothing - share) * right - share * log_probs.sum(-1)
    return loss.masked_fill(targets == PAD, 0.0).sum()
