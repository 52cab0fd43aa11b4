"""Batch: what a loader yields, an objective reads and a device receives."""

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor

STACK = 4  # at 100 Hz in a frame of 25 Hz: of sound before stacking, and ids of phones


@dataclass
class Batch:
    """N items, padded; streams may be frames, tokens or clips, each with its own lengths.

    `lengths`, `target_lengths`, `present`, `teacher_present`, `ids`, `texts`, `passes` and `counts` stay on the host,
    whatever the device: what it must know to decide anything (who has a stream, which frames are real) then never waits
    for the device.
    """

    ids: list[str]  # N cut or line ids
    streams: dict[str, Tensor]  # name -> (N, T, ...); rows of items without the stream hold zeros
    lengths: dict[str, Tensor]  # name -> (N,) int64 on the host; 0 where the item lacks the stream
    targets: dict[str, Tensor] = field(default_factory=dict)  # name -> (N, U) int64, e.g. units, tokens
    target_lengths: dict[str, Tensor] = field(default_factory=dict)  # name -> (N,) int64 on the host
    present: dict[str, Tensor] = field(default_factory=dict)  # name -> (N,) bool on the host: who has the stream
    teacher_present: dict[str, Tensor] = field(default_factory=dict)  # likewise, for a teacher that sees other streams
    texts: list[str] = field(default_factory=list)  # N reference transcripts, "" where there is none
    passes: list[int] = field(default_factory=list)  # N: how often the source had given the item before
    drawn: dict[str, Tensor] = field(default_factory=dict)  # what Objective.draw adds for the device: masks, indices
    counts: dict[str, float] = field(default_factory=dict)  # part of the loss -> its divisor in this batch, by draw
    idle: bool = False  # it only keeps its rank in step with the others: the update is the same without it

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def frames(self) -> Tensor:
        """(N,) int64 on the host: frames of each item's longest stream, of those that are present."""
        own = (length * self.present.get(name, length > 0) for name, length in self.lengths.items())
        return torch.stack(list(own)).amax(0)

    @property
    def device(self) -> torch.device:
        return next(iter(self.streams.values())).device

    def to(self, device: torch.device | str) -> "Batch":
        """The batch with its tensors on `device` (copied without waiting); host-side fields stay where they are."""

        def move(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}

        return dataclasses.replace(
            self,
            streams=move(self.streams),
            targets=move(self.targets),
            drawn=move(self.drawn),
        )

    def pin_memory(self) -> "Batch":
        """Called by torch's loader when it pins: page-locked memory makes the copy to a GPU asynchronous."""

        def pin(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.pin_memory() for name, tensor in tensors.items()}

        return dataclasses.replace(
            self,
            streams=pin(self.streams),
            targets=pin(self.targets),
        )


@dataclass
class Loss:
    """Parts of a loss as sums over what was predicted; the training step divides by the divisors of all ranks."""

    parts: dict[str, tuple[Tensor, float]]  # name -> (sum, weight); the divisor of the part is Batch.counts[name]
    logs: dict[str, tuple[Tensor, Tensor | float]] = field(default_factory=dict)  # name -> (sum, count), not trained on


def valid_frames(lengths: Tensor, size: int) -> Tensor:
    """(N, size) bool, True for real frames, from `lengths` (N,)."""
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]
