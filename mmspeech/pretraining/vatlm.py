"""VATLM: one masked-unit objective over video, audio, paired audio-text and text (Zhu et al. 2022).

    lips, sound, phones ── a subset is kept ──▶ fused ── spans masked ──▶ encoder ──▶ cosine logits (Eq. 1)
    units of one codebook for all types of data ─────────────────────────────────▶ cross-entropy (Eq. 2, 3)

An item's type is what it has: lips and sound, sound, sound and phones, phones. One batch may hold all types.

One mask hides the fused frames of all streams. The paper masks "as in" AV-HuBERT, whose last iteration masks the input
of each stream, phones having none; the released code cannot run its four corpora with masked inputs, and its published
files cannot be run with masked fused frames. Masked fused frames satisfy the paper's wording for every type of data.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from mmspeech import seeds
from mmspeech.batch import Batch, Loss
from mmspeech.blocks.masking import SpanMask, draw_spans
from mmspeech.errors import UserError
from mmspeech.models.av_encoder import AVEncoder
from mmspeech.models.presence import check_named, check_shares, draw_presence
from mmspeech.pretraining.losses import check_units, feature_power, losses_at

UNIT_DIM = 256  # of projected frames and unit embeddings, as published


@dataclass(frozen=True, kw_only=True)
class VatlmConfig:
    """VATLM pre-training; defaults are the paper's (Sec. III-D, IV-B), else those of the published configurations."""

    num_units: int  # size of the codebook that all types of data share; 2000 in the paper
    weights: dict[str, float] = field(  # streams of an item -> weight of its loss: 1, lambda_1, _2, _3 of Eq. 3
        default_factory=lambda: {"audio+video": 1.0, "audio": 1.0, "audio+text": 1.0, "text": 1.0}
    )
    # "The same modality dropout as" AV-HuBERT, drawn for every corpus: sound leaves paired items a quarter of the time,
    # too; phones are never dropped, and no item is left without a stream.
    modality_dropout: dict[str, float] = field(
        default_factory=lambda: {"audio+video+text": 0.5, "audio+text": 0.25, "video+text": 0.25}
    )
    mask: SpanMask = field(default_factory=lambda: SpanMask(probability=0.8, length=10))  # of fused frames
    temperature: float = 0.1  # tau of Eq. 1
    feature_penalty: float = 10.0  # times the mean square of the fused features before the layer norm, in real frames

    def __post_init__(self) -> None:
        check_shares(self.modality_dropout, "modality_dropout")
        if not self.weights or min(self.weights.values()) < 0 or max(self.weights.values()) <= 0:
            raise UserError("weights: expected numbers from 0 on, one above it; say what each type of data weighs")
        if self.mask.replace != "embedding":
            raise UserError("mask.replace: fused frames are replaced by a learned vector; leave it out")


class Vatlm(nn.Module):
    """The objective; `encoder` is what remains after pre-training."""

    couples_items = False

    def __init__(self, encoder: AVEncoder, config: VatlmConfig, seed: int = 0, unit_dim: int = UNIT_DIM) -> None:
        super().__init__()
        self.encoder, self.config, self.seed = encoder, config, seed
        self.leaves_unused = encoder.config.layer_drop > 0  # parameters without a gradient in some steps
        check_named(config.modality_dropout, encoder.modalities, "objective.modality_dropout")
        check_named(config.weights, encoder.modalities, "objective.weights")
        self.mask_embedding = nn.Parameter(torch.rand(encoder.dim))
        self.project = nn.Linear(encoder.dim, unit_dim)  # W of Eq. 1
        self.codebook = nn.Parameter(torch.rand(config.num_units, unit_dim))  # e of Eq. 1

    def draw(self, batch: Batch, update: int) -> Batch:
        """Choose kept streams, the mask and the frames to predict; on the host.

        Expects `targets["units"]` (N, T). Adds to `drawn`: `mask/fused` (N, T) bool; `predicted/TYPE` (P,) int64,
        places in the flattened (N, T), for each type of data. Adds the divisors of the parts to `counts`.
        """
        config = self.config
        size = next(iter(batch.streams.values())).shape[1]
        types = self._types(batch)
        batch.present = draw_presence(batch, config.modality_dropout, self.seed)
        frames = batch.frames.numpy()  # (N,)
        keys = seeds.item_keys(self.seed, "mask/fused", batch.passes, batch.ids)
        mask = config.mask
        masked = draw_spans(keys, frames, size, probability=mask.probability, length=mask.length)
        check_units(batch.targets["units"], config.num_units)
        units = batch.target_lengths["units"].numpy()
        predicted = masked & (np.arange(size)[None, :] < np.minimum(frames, units)[:, None])  # (N, T)
        batch.drawn["mask/fused"] = torch.from_numpy(masked)
        for number, name in enumerate(config.weights):
            batch.drawn[f"predicted/{name}"] = torch.from_numpy(np.flatnonzero(predicted & (types == number)[:, None]))
            # Eq. 2 and 3 add up frames: all types are divided by all that is predicted.
            batch.counts[name] = float(predicted.sum())
        batch.counts["feature_penalty"] = float(frames.sum())
        return batch

    def _types(self, batch: Batch) -> np.ndarray:
        """(N,) the place in `weights` of what each item has. Raises UserError for what has no weight."""
        have = {name: (lengths > 0).numpy() for name, lengths in batch.lengths.items()}
        types = np.full(len(batch), -1)
        for number, subset in enumerate(self.config.weights):
            wanted = subset.split("+")
            fits = [own == (name in wanted) for name, own in have.items()]
            if all(name in have for name in wanted):
                types[np.logical_and.reduce(fits)] = number
        if (types < 0).any():
            item = int(np.flatnonzero(types < 0)[0])
            found = "+".join(name for name, own in have.items() if own[item])
            raise UserError(
                f"objective.weights: {batch.ids[item]} has {found}, and there are only "
                f"{', '.join(self.config.weights)}; add a weight, or say in data.sources which streams of it are taken"
            )
        return types

    def forward(self, batch: Batch, update: int) -> Loss:
        """The loss of a drawn batch on the device."""
        config = self.config
        encoded = self.encoder.encode(
            batch.streams, batch.lengths, batch.present,
            masked=batch.drawn["mask/fused"], mask_embedding=self.mask_embedding,
        )  # fmt: skip
        parts: dict[str, tuple[Tensor, float]] = {}
        logs: dict[str, tuple[Tensor, Tensor | float]] = {}
        places = {name: batch.drawn[f"predicted/{name}"] for name in config.weights}
        found = losses_at(
            places, encoded.frames, batch.targets["units"], self.project, self.codebook, config.temperature
        )
        # A mask embedding that no item of this rank needs still takes part: data parallelism waits for its gradient.
        idle = self.mask_embedding.sum() * 0.0
        for name, (loss, hits) in found.items():
            parts[name] = (loss.sum() + idle, config.weights[name])
            logs[f"per_frame/{name}"] = (loss.detach().sum(), float(len(loss)))
            logs[f"accuracy/{name}"] = (hits.sum(), float(len(hits)))
        penalty = feature_power(encoded.before_fusion_norm, encoded.lengths)
        parts["feature_penalty"] = (penalty, config.feature_penalty)
        return Loss(parts=parts, logs=logs)
