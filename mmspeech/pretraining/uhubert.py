"""u-HuBERT: masked cluster prediction on mixed-modal speech (Hsu & Shi 2022), with AV-HuBERT inside it.

    streams ── a subset is kept (modality dropout, Sec. 3.2) ──▶ spans masked ──▶ encoder ──▶ cosine logits
    units of the complete input, one codebook for all streams ──────────────────────────────▶ cross-entropy

Two ways of masking, both of the public configurations: `input` replaces frames of each stream before its front-end,
with a mask of its own, and predicts where any stream is masked, kept or not (iteration 5 and LARGE); `feature` replaces
fused frames by one learned vector (iterations 1-4).
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from mmspeech import seeds
from mmspeech.batch import Batch, Loss
from mmspeech.blocks.masking import SpanMask, draw_spans, replacement_frames
from mmspeech.errors import UserError
from mmspeech.models.av_encoder import AVEncoder
from mmspeech.models.presence import check_named, check_shares, draw_presence
from mmspeech.pretraining.losses import check_units, feature_power, losses_at


def public_input_masks() -> dict[str, SpanMask]:
    """Audio 0.8 / 10 and lips 0.3 / 5: AV-HuBERT iteration 5, LARGE, and u-HuBERT."""
    return {
        "audio": SpanMask(probability=0.8, length=10),
        "video": SpanMask(probability=0.3, length=5, replace="other_frames"),
    }


@dataclass(frozen=True, kw_only=True)
class UHubertConfig:
    """u-HuBERT pre-training; defaults are the paper's LARGE model."""

    num_units: int  # size of the codebook; depends on the iteration, so it has no default
    modality_dropout: dict[str, float] = field(  # streams kept -> share of the items that have them; Table 6, row 3
        default_factory=lambda: {"audio+video": 0.50, "audio": 0.25, "video": 0.25}
    )
    modality_dropout_per: Literal["utterance", "batch"] = "utterance"  # the public code draws once per batch
    masking: Literal["input", "feature"] = "input"
    input_masks: dict[str, SpanMask] = field(default_factory=public_input_masks)  # stream -> its own mask
    feature_mask: SpanMask = field(default_factory=lambda: SpanMask(probability=0.8, length=10))
    unit_dim: int = 256  # of projected frames and unit embeddings
    temperature: float = 0.1  # divides the cosine of frame and unit embedding
    masked_weight: float = 1.0
    unmasked_weight: float = 1.0  # of visible frames in the loss, as in the public LARGE; 0 = masked only (BASE)
    feature_penalty: float = 10.0  # times the mean square of the fused features before the layer norm, in real frames

    def __post_init__(self) -> None:
        check_shares(self.modality_dropout, "modality_dropout")
        if self.masked_weight <= 0 and self.unmasked_weight <= 0:
            raise UserError("masked_weight: and unmasked_weight are both 0, so nothing is predicted; raise one")


class UHubert(nn.Module):
    """The objective; `encoder` is what remains after pre-training."""

    couples_items = False

    def __init__(self, encoder: AVEncoder, config: UHubertConfig, seed: int = 0) -> None:
        super().__init__()
        self.encoder, self.config, self.seed = encoder, config, seed
        self.leaves_unused = encoder.config.layer_drop > 0  # parameters without a gradient in some steps
        check_named(config.modality_dropout, encoder.modalities, "objective.modality_dropout")
        if config.masking == "input" and (bare := set(encoder.modalities) - config.input_masks.keys()):
            raise UserError(f"objective.input_masks: none for stream {', '.join(sorted(bare))}; add a mask for it")
        by_input = config.masking == "input"
        self.input_masks = {name: config.input_masks[name] for name in encoder.modalities if by_input}
        shapes: dict[str, tuple[int, ...]] = {
            name: encoder.frontends[name].item_shape  # type: ignore[misc]
            for name, mask in self.input_masks.items()
            if mask.replace == "embedding"
        } or {"fused": (encoder.dim,)}
        self.mask_embeddings = nn.ParameterDict(
            {name: nn.Parameter(torch.rand(shape)) for name, shape in shapes.items()}
        )
        self.project = nn.Linear(encoder.dim, config.unit_dim)
        self.codebook = nn.Parameter(torch.rand(config.num_units, config.unit_dim))

    def draw(self, batch: Batch, update: int) -> Batch:
        """Choose kept streams, masks and the frames to predict; on the host.

        Expects `targets["units"]` (N, T). Adds to `drawn`: `mask/STREAM` (N, T) bool; `source/STREAM` (N * T,) int64,
        where each frame of the flattened batch comes from; `predicted/masked` and `predicted/unmasked` (P,) int64,
        places in the flattened (N, T). Adds the divisors of the parts to `counts`.
        """
        config = self.config
        size = next(iter(batch.streams.values())).shape[1]
        per_batch = update if config.modality_dropout_per == "batch" else None
        batch.present = draw_presence(batch, config.modality_dropout, self.seed, per_batch)
        kept = {name: (batch.lengths[name] * batch.present[name]).numpy() for name in batch.streams}
        frames = np.max(list(kept.values()), axis=0)  # (N,)
        if config.masking == "feature":
            masked = self._draw_spans(batch, "fused", config.feature_mask, frames, size)
            batch.drawn["mask/fused"] = torch.from_numpy(masked)
        else:
            masked = np.zeros((len(batch), size), dtype=bool)
            for name in [name for name in self.input_masks if name in batch.streams]:
                # A dropped stream's mask still counts, as in the public code: lips alone are asked for the units of
                # frames that they show, where the sound would have been masked.
                masked |= self._mask_input(batch, name, size)
        check_units(batch.targets["units"], config.num_units)
        units = batch.target_lengths["units"].numpy()
        valid = np.arange(size)[None, :] < np.minimum(frames, units)[:, None]  # (N, T)
        predicted = {"masked": np.flatnonzero(masked & valid)}
        if config.unmasked_weight > 0:
            predicted["unmasked"] = np.flatnonzero(~masked & valid)
        for part, places in predicted.items():
            batch.drawn[f"predicted/{part}"] = torch.from_numpy(places)
            # Both parts are divided by all predicted frames, as in the public criterion.
            batch.counts[part] = float(sum(len(places) for places in predicted.values()))
        batch.counts["feature_penalty"] = float(frames.sum())
        return batch

    def forward(self, batch: Batch, update: int) -> Loss:
        """The loss of a drawn batch on the device."""
        config = self.config
        encoded = self.encoder.encode(
            {name: self._replace_masked(name, stream, batch) for name, stream in batch.streams.items()},
            batch.lengths,
            batch.present,
            masked=batch.drawn.get("mask/fused"),
            mask_embedding=self.mask_embeddings["fused"] if config.masking == "feature" else None,
        )
        parts: dict[str, tuple[Tensor, float]] = {}
        logs: dict[str, tuple[Tensor, Tensor | float]] = {}
        weights = {"masked": config.masked_weight, "unmasked": config.unmasked_weight}
        places = {name: batch.drawn[f"predicted/{name}"] for name in weights if f"predicted/{name}" in batch.drawn}
        found = losses_at(
            places, encoded.frames, batch.targets["units"], self.project, self.codebook, config.temperature
        )
        for name, (loss, hits) in found.items():
            parts[name] = (loss.sum(), weights[name])
            logs[f"accuracy/{name}"] = (hits.sum(), float(len(hits)))
        # A mask embedding that no item of this rank needs still takes part: data parallelism waits for its gradient.
        idle = sum(embedding.sum() for embedding in self.mask_embeddings.values()) * 0.0
        parts["masked"] = (parts["masked"][0] + idle, weights["masked"])
        penalty = feature_power(encoded.before_fusion_norm, encoded.lengths)
        parts["feature_penalty"] = (penalty, config.feature_penalty)
        return Loss(parts=parts, logs=logs)

    def _draw_spans(self, batch: Batch, name: str, mask: SpanMask, frames: np.ndarray, size: int) -> np.ndarray:
        keys = self._keys(batch, f"mask/{name}")
        return draw_spans(keys, frames, size, probability=mask.probability, length=mask.length)

    def _mask_input(self, batch: Batch, name: str, size: int) -> np.ndarray:
        """Draw one stream's mask and what replaces its masked frames; returns the mask (N, T).

        Raises UserError if an embedding is to stand among whole numbers, such as the bytes of mouth tracks.
        """
        mask, frames = self.input_masks[name], batch.lengths[name].numpy()
        if mask.replace == "embedding" and not (stream := batch.streams[name]).is_floating_point():
            # Cast to them it would be cut to 0 and never learn.
            raise UserError(
                f"objective.input_masks.{name}.replace: embedding, but this stream is read as whole numbers "
                f"({str(stream.dtype).removeprefix('torch.')}), where no learned vector fits; set replace: other_frames"
            )
        masked = self._draw_spans(batch, name, mask, frames, size)
        if mask.replace == "embedding":
            batch.drawn[f"mask/{name}"] = torch.from_numpy(masked)
        else:
            source = replacement_frames(self._keys(batch, f"source/{name}"), masked, frames, mask.length)
            batch.drawn[f"source/{name}"] = torch.from_numpy((source + np.arange(len(batch))[:, None] * size).ravel())
        return masked

    def _replace_masked(self, name: str, stream: Tensor, batch: Batch) -> Tensor:
        if f"mask/{name}" in batch.drawn:
            mask = batch.drawn[f"mask/{name}"].view(*stream.shape[:2], *[1] * (stream.dim() - 2))
            return torch.where(mask, self.mask_embeddings[name].to(stream.dtype), stream)
        if f"source/{name}" in batch.drawn:
            return stream.flatten(0, 1).index_select(0, batch.drawn[f"source/{name}"]).view_as(stream)
        return stream

    def _keys(self, batch: Batch, purpose: str) -> list[int]:
        return seeds.item_keys(self.seed, purpose, batch.passes, batch.ids)
