"""AV-data2vec: contextualised targets from a teacher that follows the student (Lian et al. 2023).

    streams ── a subset is kept, p(update) ──▶ fused ── spans masked ──▶ student ── linear ──▶ z ──┐
    streams ── another subset, sound alone ──▶ fused ──────────────────▶ teacher ── top K ──▶ y ───┴──▶ |z - y|^2
                                                 teacher weights <- tau * teacher + (1 - tau) * student

No units, no clustering. What the paper leaves open, or says in two ways, is a setting whose comment tells.

The teacher is in evaluation mode: no dropout, no dropped blocks, batch norm by its own running statistics. Those are
floating-point buffers and are averaged like weights, so that they belong to the averaged weights; counters are copied.

Validation draws streams as at the end of the schedules, whatever the update: its figures compare over time.

Fine-tuning starts from the student (not stated; data2vec's, too), which has seen lips; the teacher only makes targets.
"""

import copy
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mmspeech import seeds
from mmspeech.batch import Batch, Loss, valid_frames
from mmspeech.blocks.masking import SpanMask, draw_spans
from mmspeech.errors import Diverged, UserError
from mmspeech.models.av_encoder import AVEncoder
from mmspeech.models.presence import ModalitySchedule, check_named, draw_presence

# std/teacher, std/target and std/prediction below which what is learnt has collapsed. The last two are data2vec's. The
# first is ours: targets are normalised, which hides that a teacher's frames come to be alike, as the least differences
# are blown up to 1. Before normalisation an untrained encoder of the embedded corpus had 0.86, a trained one 0.85.
MIN_STD = {"teacher": 0.1, "target": 0.1, "prediction": 0.01}


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """How the teacher follows: tau goes linearly from `start` to `end` over `anneal_updates` (Sec. 3.3, 4.2)."""

    start: float = 0.999
    end: float = 0.99999
    anneal_updates: int = 100_000

    def __post_init__(self) -> None:
        if not 0 <= min(self.start, self.end) <= max(self.start, self.end) <= 1 or self.anneal_updates < 1:
            raise UserError(f"start: {self.start}, end: {self.end}; expected rates from 0 to 1 and updates from 1 on")

    def rate(self, update: int) -> float:
        """tau of the step that follows `update` finished ones."""
        return self.start + min(update / self.anneal_updates, 1.0) * (self.end - self.start)


def sound_and_lips_then_lips() -> ModalitySchedule:
    """p_AV from 1 to 0.25, lips alone else (Sec. 4.2, Figure 8)."""
    return ModalitySchedule(all=(1.0, 0.25), otherwise={"video": (1.0, 1.0), "audio": (0.0, 0.0)})


def sound_alone() -> ModalitySchedule:
    """p_A = 1: the best targets (Table 3)."""
    return ModalitySchedule(all=(0.0, 0.0), otherwise={"audio": (1.0, 1.0)})


@dataclass(frozen=True, kw_only=True)
class AVData2vecConfig:
    """AV-data2vec pre-training; defaults are the paper's (Sec. 4.2), where it states them."""

    student: ModalitySchedule = field(default_factory=sound_and_lips_then_lips)
    teacher: ModalitySchedule = field(default_factory=sound_alone)
    ema: TeacherConfig = field(default_factory=TeacherConfig)
    top_k: int | None = None  # blocks whose outputs are averaged; None: all (12 for BASE, 24 for LARGE)
    mask: SpanMask = field(default_factory=lambda: SpanMask(probability=0.5, length=10))  # of fused frames
    # "We randomly select r % timesteps as starting indices", r = 50, would mask nearly all. `shares`: r % of the frames
    # divided by the length are starts, as is usual, and about 40 % are covered; `starts`: literally.
    mask_reading: Literal["shares", "starts"] = "shares"
    masked_weight: float = 1.0  # alpha of Eq. 2
    # beta of Eq. 2 for items of which the student keeps just this; 0 for all others. (The prose of Sec. 3.3 says that
    # with sound in the input unmasked frames are predicted; the equation's setting, and the rest of it, masked ones.)
    # Only where more was there and was dropped: of a cut that has lips alone the teacher sees the same, and predicting
    # from a frame what one sees in it teaches nothing.
    unmasked_weight: dict[str, float] = field(default_factory=lambda: {"video": 1.0})
    # not stated: Eq. 2 compares the encoder's output itself with the target; data2vec has a linear layer between.
    head: Literal["linear", "none"] = "linear"
    loss_scale: float | None = None  # of |z - y|^2; None: 1 / sqrt(D), as data2vec; 1: Eq. 2 as it stands
    watch_after: int = 5000  # updates, before which a collapse is not told; data2vec's
    stop_on_collapse: bool = False

    def __post_init__(self) -> None:
        if self.mask.replace != "embedding":
            raise UserError("mask.replace: fused frames are replaced by a learned vector; leave it out")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k: {self.top_k}; expected 1 block or more")


class Targets(NamedTuple):
    """What the teacher makes of a batch."""

    frames: Tensor  # (N, T, D) in float32: its summed and normalised outputs; zero in padding
    spread: tuple[Tensor, Tensor]  # (sum, count) over frames of std / RMS before normalisation


class AVData2vec(nn.Module):
    """The objective; `encoder`, the student, is what remains after pre-training."""

    couples_items = False

    def __init__(self, encoder: AVEncoder, config: AVData2vecConfig, seed: int = 0) -> None:
        super().__init__()
        self.encoder, self.config, self.seed = encoder, config, seed
        self.leaves_unused = encoder.config.layer_drop > 0
        depth = encoder.config.num_layers
        top_k = depth if config.top_k is None else config.top_k
        if top_k > depth:
            raise UserError(f"objective.top_k: {top_k}, but the encoder has {depth} blocks; give at most that")
        self.target_blocks = range(depth - top_k + 1, depth + 1)
        for key, schedule in (("student", config.student), ("teacher", config.teacher)):
            check_named(schedule.otherwise, encoder.modalities, f"objective.{key}.otherwise")
        check_named(config.unmasked_weight, encoder.modalities, "objective.unmasked_weight")
        self.everything = "+".join(encoder.modalities)
        self.unmasked_weight = {frozenset(name.split("+")): beta for name, beta in config.unmasked_weight.items()}
        self.scale = encoder.dim**-0.5 if config.loss_scale is None else config.loss_scale
        self.mask_embedding = nn.Parameter(torch.rand(encoder.dim))
        self.head = nn.Linear(encoder.dim, encoder.dim) if config.head == "linear" else nn.Identity()
        for name in encoder.modalities:
            if name not in config.student.ever_kept(self.everything):
                # Nothing reaches this front-end, and weight decay alone would wear it down over the updates.
                encoder.frontends[name].requires_grad_(False)
        self.teacher = copy.deepcopy(encoder).requires_grad_(False).eval()
        self.told: set[str] = set()  # figures whose collapse was told

    def train(self, mode: bool = True) -> "AVData2vec":
        """The teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def draw(self, batch: Batch, update: int) -> Batch:
        """Choose both subsets of streams, the mask and the frames to predict; on the host.

        Adds to `drawn`: `mask/fused` (N, T) bool; `predicted/masked` and `predicted/unmasked` (P,) int64, places in the
        flattened (N, T); `weight/unmasked` (P,), each one's beta. Adds the divisor of both parts to `counts`; the
        teacher's subset stands in `teacher_present`.
        """
        config = self.config
        size = next(iter(batch.streams.values())).shape[1]
        student, teacher = (
            schedule.shares(update if self.training else schedule.anneal_updates, self.everything)
            for schedule in (config.student, config.teacher)
        )
        names = list(batch.streams)
        own = self._subsets(batch, draw_presence(batch, {}, self.seed))
        batch.teacher_present = draw_presence(batch, teacher, self.seed, purpose="teacher")
        batch.present = draw_presence(batch, student, self.seed)
        frames, taught = (
            np.max([(batch.lengths[name] * present[name]).numpy() for name in names], axis=0)
            for present in (batch.present, batch.teacher_present)
        )
        keys = seeds.item_keys(self.seed, "mask/fused", batch.passes, batch.ids)
        share = config.mask.probability * (config.mask.length if config.mask_reading == "starts" else 1)
        masked = draw_spans(keys, frames, size, probability=share, length=config.mask.length)
        valid = np.arange(size)[None, :] < np.minimum(frames, taught)[:, None]  # (N, T) with an input and a target
        kept = self._subsets(batch, batch.present)
        betas = np.zeros(len(batch), dtype=np.float32)
        for subset, beta in self.unmasked_weight.items():
            betas[(kept == [name in subset for name in names]).all(1) & (kept != own).any(1)] = beta
        masked_places = np.flatnonzero(masked & valid)
        unmasked_places = np.flatnonzero(~masked & valid & (betas > 0)[:, None])
        batch.drawn["mask/fused"] = torch.from_numpy(masked)
        batch.drawn["predicted/masked"] = torch.from_numpy(masked_places)
        batch.drawn["predicted/unmasked"] = torch.from_numpy(unmasked_places)
        batch.drawn["weight/unmasked"] = torch.from_numpy(betas[unmasked_places // size])
        for part in ("masked", "unmasked"):  # one mean over all that is predicted
            batch.counts[part] = float(len(masked_places) + len(unmasked_places))
        return batch

    @staticmethod
    def _subsets(batch: Batch, present: dict[str, Tensor]) -> np.ndarray:
        """(N, M) bool: which of the batch's streams each item has."""
        return np.stack([(present[name] & (batch.lengths[name] > 0)).numpy() for name in batch.streams], axis=1)

    def forward(self, batch: Batch, update: int) -> Loss:
        """The loss of a drawn batch on the device (Eq. 2)."""
        encoded = self.encoder.encode(
            batch.streams, batch.lengths, batch.present,
            masked=batch.drawn["mask/fused"], mask_embedding=self.mask_embedding,
        )  # fmt: skip
        masked_places, unmasked_places = batch.drawn["predicted/masked"], batch.drawn["predicted/unmasked"]
        places = torch.cat([masked_places, unmasked_places])
        predicted = self.head(encoded.frames.flatten(0, 1).index_select(0, places)).float()  # (P, D)
        targets = self.targets(batch)
        wanted = targets.frames.flatten(0, 1).index_select(0, places)
        losses = (predicted - wanted).square().sum(-1) * self.scale  # (P,)
        masked, unmasked = losses.split([len(masked_places), len(unmasked_places)])
        return Loss(
            parts={
                "masked": (masked.sum(), self.config.masked_weight),
                "unmasked": ((unmasked * batch.drawn["weight/unmasked"]).sum(), 1.0),
            },
            logs={
                "std/teacher": targets.spread,
                "std/target": spread(wanted),
                "std/prediction": spread(predicted.detach()),
            },
        )

    @torch.no_grad()
    def targets(self, batch: Batch) -> Targets:
        """The teacher's outputs, summed over the top K blocks and normalised (Sec. 3.3)."""
        encoded = self.teacher.encode(
            batch.streams, batch.lengths, batch.teacher_present, feed_forward=self.target_blocks
        )
        total = encoded.feed_forward[0].float()
        for one in encoded.feed_forward[1:]:
            total = total + one
        valid = valid_frames(encoded.lengths, total.shape[1])
        return Targets(instance_norm(total, valid), spread_before_norm(total, valid))

    @torch.no_grad()
    def after_step(self, update: int, skipped: Tensor) -> None:
        """Let the teacher follow the student, in float32, all tensors at once; after a skipped step it stays."""
        weight = (1.0 - self.config.ema.rate(update)) * (1.0 - skipped)  # () on the device: nobody waits to know
        # Parameters apart from buffers: under FSDP2 they are sharded, and buffers are not.
        follow(list(self.teacher.parameters()), list(self.encoder.parameters()), weight)
        averaged, followed = [], []
        for ours, theirs in zip(self.teacher.buffers(), self.encoder.buffers(), strict=True):
            if ours.is_floating_point():
                averaged.append(ours)
                # What a batch that was not finite left in batch norm's statistics would stay in an average for ever.
                followed.append(torch.where(torch.isfinite(theirs), theirs, ours))
            else:
                ours.copy_(torch.where(skipped > 0, ours, theirs))
        if averaged:
            follow(averaged, followed, weight)

    def watch(self, update: int, figures: dict[str, float]) -> str | None:
        """Look at figures as they are logged; a warning, once of each, if what is learnt has collapsed.

        Raises Diverged instead, if `stop_on_collapse`.
        """
        low = [name for name, least in MIN_STD.items() if figures.get(f"std/{name}", least) < least]
        new = [name for name in low if name not in self.told]
        if not new or update <= self.config.watch_after:
            return None
        self.told.update(new)
        found = " and ".join(
            f"std/{name} is {figures[f'std/{name}']:.3g}, expected at least {MIN_STD[name]:g}" for name in new
        )
        reason = f"update {update}: {found}; all frames look alike: begin anew with a lower training.lr, a longer "
        reason += "warm-up, or a higher objective.ema.start"
        if self.config.stop_on_collapse:
            raise Diverged(reason)
        return f"warning: {reason}"


def follow(ours: list[Tensor], theirs: list[Tensor], weight: Tensor) -> None:
    """Ours go towards theirs by `weight` (), on the device; a lerp takes a number of the host alone.

    What it holds for a moment, as much as all of them, has its place where the gradients were until a moment ago.
    """
    moves = torch._foreach_sub(theirs, ours)
    torch._foreach_mul_(moves, weight)
    torch._foreach_add_(ours, moves)


def instance_norm(x: Tensor, valid: Tensor) -> Tensor:
    """(N, T, D) with mean 0 and variance 1 over the real frames (N, T) of each item and channel; 0 elsewhere."""
    real = valid[..., None]
    count = real.sum(1, keepdim=True).clamp(min=1)
    centred = (x - x.masked_fill(~real, 0.0).sum(1, keepdim=True) / count).masked_fill(~real, 0.0)
    return centred * (centred.square().sum(1, keepdim=True) / count + 1e-5).rsqrt()


def spread_before_norm(x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """How much of (N, T, D) changes from frame to frame: std / RMS over an item's real frames, mean over channels.

    Between 0, all frames of an item alike, and 1. Returns the sum over items, each times its frames, and all frames.
    """
    real = valid[..., None]
    frames = valid.sum(1)  # (N,)
    count = frames.clamp(min=1)[:, None]
    x = x.masked_fill(~real, 0.0)
    power = x.square().sum(1) / count  # (N, D)
    # Of the differences themselves, not power less mean squared: that cancels just where it is wanted.
    variance = (x - (x.sum(1) / count)[:, None]).masked_fill(~real, 0.0).square().sum(1) / count
    return ((variance / power.clamp(min=1e-12)).sqrt().mean(1) * frames).sum(), frames.sum()


def spread(x: Tensor) -> tuple[Tensor, float]:
    """Mean over channels of the standard deviation over frames, (P, D), times P; and P. Of one frame or none 0, 0."""
    if len(x) < 2:
        return x.new_zeros(()), 0.0
    return (x.var(0, correction=0) + 1e-6).sqrt().mean() * len(x), float(len(x))
