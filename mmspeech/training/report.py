"""Outcomes of updates, left on the device until they are reported; and the updates whose gradient was not finite."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from mmspeech import dist
from mmspeech.errors import Diverged
from mmspeech.training.log import Log
from mmspeech.training.step import Outcome
from mmspeech.training.validate import means


@dataclass
class Pending:
    """An update whose outcome still lies on the device."""

    update: int
    outcome: Outcome
    ids: list[list[str]]  # of each batch


SECONDS_PER_FRAME = 0.04  # for the hours seen


class Report:
    """Collects outcomes; `write` waits for the device once and logs the mean over the updates since the last time."""

    def __init__(self, device: torch.device, *, max_nonfinite: int) -> None:
        self.device, self.max_nonfinite = device, max_nonfinite
        self.frames = 0.0  # seen so far by all ranks
        self.nonfinite_in_a_row = 0
        self._pending: list[Pending] = []
        self._began, self._frames_then = time.monotonic(), 0.0

    def begin(self) -> None:
        """Time runs from here."""
        self._began, self._frames_then = time.monotonic(), self.frames

    def leave_out(self, seconds: float) -> None:
        """So many seconds were not training."""
        self._began += seconds

    def add(self, update: int, outcome: Outcome, ids: list[list[str]], frames: float) -> None:
        """An update that was just begun on the device: ids of each batch of this rank, frames of all ranks."""
        self._pending.append(Pending(update, outcome, ids))
        self.frames += frames

    def write(self, log: Log, lr: float) -> dict[str, float]:
        """Log what is pending and return it, the same on every rank; every rank must call.

        Raises Diverged after too many non-finite gradients in a row.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return {}
        skipped = torch.stack([one.outcome.skipped for one in pending]).tolist()
        figures = self._means([one for one, bad in zip(pending, skipped, strict=True) if not bad])
        figures |= {
            "lr": lr,
            "frames_per_s": (self.frames - self._frames_then) / max(time.monotonic() - self._began, 1e-9),
            "hours": self.frames * SECONDS_PER_FRAME / 3600,
        }
        log.report(pending[-1].update, "train", figures)
        for one, bad in zip(pending, skipped, strict=True):
            self.nonfinite_in_a_row = self.nonfinite_in_a_row + 1 if bad else 0
            if bad:
                _name_cuts(one, log)
            if self.nonfinite_in_a_row >= self.max_nonfinite:
                raise Diverged(
                    f"update {one.update}: not finite for the {self.nonfinite_in_a_row}th time in a row, expected less "
                    f"than {self.max_nonfinite}; lower training.lr, or look at the cuts named in {log.folder}/log.txt"
                )
        self.begin()
        return figures

    def _means(self, pending: list[Pending]) -> dict[str, float]:
        """Loss, its parts, the gradient norm as means over updates; the objective's logs as ratios. Over all ranks."""
        zero = torch.zeros((), device=self.device, dtype=torch.float64)
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        rank_share = 1.0 / dist.world_size()
        for outcome in (one.outcome for one in pending):
            # Losses are this rank's shares: their sum over ranks is the mean over all that the update predicted.
            once = {"loss": outcome.losses.sum(), "grad_norm": outcome.grad_norm * rank_share}
            once |= {f"loss/{part}": share for part, share in outcome.parts.items()}
            logs = {name: (value, rank_share) for name, value in once.items()} | outcome.logs
            for name, (value, count) in logs.items():
                value_so_far, count_so_far = sums.get(name, (zero, zero))
                sums[name] = (value_so_far + value, count_so_far + count)
        return means(sums, {}, {})


def _name_cuts(one: Pending, log: Log) -> None:
    """Say whose gradient was not finite: the batches with such a loss, else all of the update; in full in log.txt."""
    finite = torch.isfinite(one.outcome.losses).tolist()
    pairs = [pair for pairs in dist.gather_on_host(list(zip(finite, one.ids, strict=True))) for pair in pairs]
    guilty = [ids for fine, ids in pairs if not fine] or [ids for _, ids in pairs]
    cuts = [cut for ids in guilty for cut in ids]
    text = f"update {one.update}: loss or gradient not finite, step skipped; cuts: "
    if len(cuts) > 8:
        log.line(text + ", ".join(cuts), quiet=True)
        cuts = [*cuts[:8], f"and {len(cuts) - 8} more"]
    log.line(text + ", ".join(cuts))
