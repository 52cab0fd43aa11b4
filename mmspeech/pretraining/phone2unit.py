"""Training of VATLM's phoneme-to-unit model on paired speech (Sec. III-C): phones in, units of the same speech out.

    aligned phone ids at 100 Hz (T, 4) ── runs of equal ids ──▶ phones, frames of each ──▶ model ──▶ cross-entropy of
    units at 25 Hz (T,) ◀────────────────────────────────────────────────────────────────────────── units, with the true
                                                           durations; square error of the logarithms of durations

What training and validation log is what the model is worth: `accuracy/units`, the share of frames whose likeliest unit
is right under true durations, and `duration_error/frames`, by how many frames a phone's predicted duration is off.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmspeech.batch import STACK, Batch, Loss, valid_frames
from mmspeech.errors import UserError
from mmspeech.models.phone2unit import Phone2Unit


@dataclass(frozen=True, kw_only=True)
class Phone2UnitLossConfig:
    """The two parts of the loss; VATLM states none of these values."""

    label_smoothing: float = 0.1  # SpeechLM
    unit_weight: float = 1.0
    duration_weight: float = 1.0  # FastSpeech adds the parts up


class Phone2UnitObjective(nn.Module):
    """The objective; `model` is what remains."""

    couples_items = False

    def __init__(self, model: Phone2Unit, config: Phone2UnitLossConfig, seed: int = 0) -> None:
        super().__init__()
        self.model, self.config = model, config  # nothing is drawn at random here, so that `seed` is not needed

    def draw(self, batch: Batch, update: int) -> Batch:
        """Runs of equal ids become phones with durations, on the host.

        Expects one stream (N, T, 4) of ids and `targets["units"]`. Adds to `drawn`: `phones` and `durations` (N, P)
        int64, `frames` (F,) the places of all frames in the flattened (N, T); to `target_lengths`: `phones`; to
        `counts` the divisors. Frames that have ids but no unit, or the other way round, are left out.
        """
        (ids,), (lengths,) = batch.streams.values(), batch.lengths.values()
        frames = torch.minimum(lengths, batch.target_lengths["units"])
        self._check("num_phones", int(ids.max()), "phone id", "size of data.streams' symbols")
        self._check("num_units", int(batch.targets["units"].max()), "unit", "size of the codebook")
        segments = run_lengths(ids.flatten(1).numpy().astype(np.int64), frames.numpy())
        batch.target_lengths |= {"units": frames, "phones": torch.from_numpy(segments.lengths)}
        batch.drawn["phones"] = torch.from_numpy(segments.phones)
        batch.drawn["durations"] = torch.from_numpy(segments.durations)
        batch.drawn["frames"] = valid_frames(frames, batch.targets["units"].shape[1]).flatten().nonzero().squeeze(1)
        batch.counts = {"units": float(frames.sum()), "durations": float(segments.lengths.sum())}
        return batch

    def forward(self, batch: Batch, update: int) -> Loss:
        """The loss of a drawn batch on the device."""
        config, durations = self.config, batch.drawn["durations"]
        phones, frames = batch.target_lengths["phones"], batch.target_lengths["units"]
        logits, log_durations = self.model(batch.drawn["phones"], phones, durations, frames)
        units = batch.targets["units"].flatten().index_select(0, batch.drawn["frames"])  # (F,)
        logits, log_durations = logits.float(), log_durations.float()
        unit_loss = F.cross_entropy(logits, units, reduction="sum", label_smoothing=config.label_smoothing)
        padding = ~valid_frames(phones.to(durations.device, non_blocking=True), durations.shape[1])

        def total(errors: Tensor) -> Tensor:
            return errors.masked_fill(padding, 0.0).sum()

        square = (log_durations - torch.log1p(durations.float())).square()
        predicted = log_durations.detach().expm1().round().clamp(min=0)
        return Loss(
            parts={
                "units": (unit_loss, config.unit_weight),
                "durations": (total(square), config.duration_weight),
            },
            logs={
                "accuracy/units": ((logits.detach().argmax(-1) == units).sum(), batch.counts["units"]),
                "duration_error/frames": (total((predicted - durations).abs()), batch.counts["durations"]),
            },
        )

    def _check(self, setting: str, highest: int, what: str, source: str) -> None:
        if highest >= (limit := getattr(self.model.config, setting)):
            raise UserError(f"model.{setting}: {limit}, but the cuts have a {what} {highest}; set it to the {source}")


class Segments(NamedTuple):
    """Phones with durations."""

    phones: np.ndarray  # (N, P) int64, padded with 0
    durations: np.ndarray  # (N, P) int64 frames, padded with 0
    lengths: np.ndarray  # (N,) int64


def run_lengths(ids: np.ndarray, frames: np.ndarray) -> Segments:
    """Runs of equal ids, and how many 25 Hz frames each has.

    Ends are rounded to frames, halves up, and durations are the differences of ends: they add up to `frames`, and a
    phone between two ends that fall together keeps its place with 0 frames.

    Args:
        ids: (N, 4 * T) at 100 Hz.
        frames: (N,) of each item; what stands behind them is ignored.
    """
    ticks = STACK * frames
    begins = np.arange(ids.shape[1]) < ticks[:, None]  # (N, 4 * T)
    begins[:, 1:] &= ids[:, 1:] != ids[:, :-1]
    item, tick = np.nonzero(begins)  # (S,) each, of all phones, item after item
    lengths = begins.sum(1)
    first = np.cumsum(lengths) - lengths  # (N,)
    column = np.arange(len(item)) - first[item]
    last = column == lengths[item] - 1
    ends = np.where(last, ticks[item], np.append(tick[1:], 0))
    end_frames = (ends + STACK // 2) // STACK
    own = np.where(column == 0, end_frames, np.diff(end_frames, prepend=0))
    phones, durations = np.zeros((2, len(frames), max(int(lengths.max()), 1)), np.int64)
    phones[item, column], durations[item, column] = ids[item, tick], own
    return Segments(phones, durations, lengths.astype(np.int64))
