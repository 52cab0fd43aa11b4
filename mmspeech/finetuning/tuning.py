"""What all fine-tuning tasks do with a pre-trained encoder: other dropouts, freezing, modality dropout."""

import contextlib
import dataclasses
from dataclasses import dataclass, field

import torch

from mmspeech.batch import Batch
from mmspeech.errors import UserError
from mmspeech.models.av_encoder import AVEncoder, Encoded
from mmspeech.models.presence import check_named, check_shares, draw_presence


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """How the encoder is fine-tuned; dropouts take the place of those of pre-training, defaults are the public ones."""

    freeze_updates: int = 0  # without gradient for so many updates, but in training mode, as in the public code
    freeze_layers: int = 0  # front-ends, fusion and the first n blocks are never trained; all blocks: nothing is
    modality_dropout: dict[str, float] = field(default_factory=dict)  # streams kept -> share of the items; {}: none
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.1
    input_dropout: float = 0.0
    layer_drop: float = 0.1
    frontend_grad_scale: float = 1.0

    def __post_init__(self) -> None:
        check_shares(self.modality_dropout, "modality_dropout")


def tuned(encoder: AVEncoder, tuning: TuningConfig) -> AVEncoder:
    """The encoder with the dropouts of `tuning`, its first layers without gradient.

    Raises UserError if `tuning` names streams or blocks that the encoder does not have.
    """
    check_named(tuning.modality_dropout, encoder.modalities, "modality_dropout")
    fields = ("dropout", "attention_dropout", "activation_dropout", "input_dropout", "layer_drop")
    changes = {name: getattr(tuning, name) for name in (*fields, "frontend_grad_scale")}
    config = dataclasses.replace(encoder.config, **changes)
    if config != encoder.config:
        weights = encoder.state_dict()
        encoder = AVEncoder(config, encoder.inputs)
        encoder.load_state_dict(weights)
    if tuning.freeze_layers > config.num_layers:
        raise UserError(
            f"freeze_layers: {tuning.freeze_layers}, but the encoder has {config.num_layers} blocks; give at most that"
        )
    if tuning.freeze_layers == config.num_layers:
        encoder.requires_grad_(False)
    elif tuning.freeze_layers > 0:
        encoder.frontends.requires_grad_(False)
        encoder.fusion.requires_grad_(False)
        encoder.transformer.position.requires_grad_(False)
        encoder.transformer.blocks[: tuning.freeze_layers].requires_grad_(False)
    return encoder


def draw_kept(batch: Batch, tuning: TuningConfig, seed: int) -> Batch:
    """A copy of the batch whose `present` says which streams each item keeps, and whose `drawn` may be added to."""
    present = draw_presence(batch, tuning.modality_dropout, seed)
    return dataclasses.replace(batch, present=present, drawn=dict(batch.drawn), counts=dict(batch.counts))


def encode(encoder: AVEncoder, batch: Batch, tuning: TuningConfig, update: int) -> Encoded:
    """Encode a batch, without gradient while the encoder is frozen."""
    frozen = update < tuning.freeze_updates
    with torch.no_grad() if frozen else contextlib.nullcontext():
        return encoder.encode(batch.streams, batch.lengths, batch.present)


def leaves_unused(tuning: TuningConfig) -> bool:
    """Whether some parameters stay without a gradient in some updates: data parallelism must look for them."""
    return tuning.freeze_updates > 0 or tuning.layer_drop > 0


def num_targets(batch: Batch, per: str) -> float:
    """The divisor of a loss over `targets["text"]`: tokens with their end symbols, or sentences."""
    lengths = batch.target_lengths["text"]
    return float(lengths.sum() if per == "tokens" else (lengths > 0).sum())
