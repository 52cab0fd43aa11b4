"""A toy objective, a toy stream of batches, and processes that train them: for the tests of training."""

import itertools
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mmspeech import dist, seeds
from mmspeech.batch import Batch, Loss
from mmspeech.training.trainer import TrainingConfig

D = 6


class Block(nn.Module):
    """Linear, dropout: what FSDP2 takes for a block."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(D, D), nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.dropout(torch.tanh(self.linear(x)))


@dataclass
class Hidden:
    """What the trunk returns: a dataclass, as encoders do."""

    frames: torch.Tensor  # (N, T, D)


class Trunk(nn.Module):
    """Blocks behind a method that is not called forward."""

    def __init__(self, dropout: float, drop: float) -> None:
        super().__init__()
        self.blocks, self.drop = nn.ModuleList([Block(dropout), Block(dropout)]), drop
        self.scale = nn.Parameter(torch.ones(D))

    def encode(self, x: torch.Tensor) -> Hidden:
        for block in self.blocks:
            if not (self.training and self.drop and random.random() < self.drop):
                x = block(x)
        return Hidden(torch.sigmoid(x * self.scale) * self.scale)


class Toy(nn.Module):
    """Predicts the mean of its inputs at drawn frames; lips go through parameters that only clips with lips touch."""

    leaves_unused = True

    def __init__(self, dropout: float = 0.0, norm: bool = False, drop: float = 0.0, everywhere: bool = False) -> None:
        """`drop`: how often a block is skipped; `everywhere`: lips' parameters take part even if there are no lips."""
        super().__init__()
        torch.manual_seed(3)
        self.everywhere = everywhere
        self.audio, self.video = nn.Linear(4, D), nn.Linear(3, D)
        self.norm = nn.BatchNorm1d(D) if norm else nn.Identity()
        self.trunk = Trunk(dropout, drop)
        self.head = nn.Linear(D, 1)

    def draw(self, batch: Batch, update: int) -> Batch:
        drawn = [torch.rand(5, generator=seeds.torch_rng("mask", i)) < 0.6 for i in batch.ids]
        batch.drawn["picked"] = torch.stack(drawn)  # (N, T)
        batch.counts["masked"] = float(batch.drawn["picked"].sum())
        if "video" in batch.streams:
            batch.counts["lips"] = float(len(batch) * 5)
        return batch

    def forward(self, batch: Batch, update: int) -> Loss:
        x = self.audio(batch.streams["audio"])  # (N, T, D)
        if "video" in batch.streams:
            x = x + self.video(batch.streams["video"])
        elif self.everywhere:
            x = x + 0.0 * self.video(torch.zeros(3))
        x = self.norm(x.flatten(0, 1)).view_as(x)
        x = self.trunk.encode(x).frames
        picked = batch.drawn["picked"]
        error = (self.head(x).squeeze(-1) - batch.streams["audio"].sum(-1)).square()
        parts = {"masked": (error[picked].sum(), 1.0)}
        if "video" in batch.streams:
            parts["lips"] = (x.square().sum(), 0.01)
        return Loss(parts, logs={"small": ((error < 1).sum(), float(error.numel()))})


def item(number: int, *, video: bool) -> Batch:
    """One item of 5 frames, the same whoever asks."""
    rng = seeds.torch_rng("item", number)
    streams = {"audio": torch.randn(1, 5, 4, generator=rng)}
    if video:
        streams["video"] = torch.randn(1, 5, 3, generator=rng)
    lengths = {name: torch.tensor([5]) for name in streams}
    return Batch(ids=[f"cut{number}"], streams=streams, lengths=lengths)


def join(items: list[Batch]) -> Batch:
    """Items that have the same streams, as one batch."""
    streams = {name: torch.cat([one.streams[name] for one in items]) for name in items[0].streams}
    lengths = {name: torch.cat([one.lengths[name] for one in items]) for name in items[0].lengths}
    return Batch(ids=[i for one in items for i in one.ids], streams=streams, lengths=lengths)


class ToyGroups:
    """Update u owns items 4u to 4u + 3, of which the first two have lips; `deal` says who gets which, in which batches.

    `deal[rank]` is a list of batches, each a list of places in the update. A batch
    holds items with lips, or items without.
    """

    def __init__(self, deal: list[list[list[int]]], *, video: bool = True) -> None:
        self.deal, self.video, self.done = deal, video, 0
        self.before: Callable[[int], None] = lambda update: None

    def __iter__(self) -> Iterator[list[tuple[str, Batch]]]:
        for update in itertools.count(self.done):
            self.before(update)
            yield [("toy", self.batch(update, places)) for places in self.deal[dist.rank()]]

    def batch(self, update: int, places: list[int]) -> Batch:
        return join([item(4 * update + place, video=self.video and place < 2) for place in places])

    def trained(self) -> None:
        self.done += 1

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.done = state["done"]


def toy_config(**changes: object) -> TrainingConfig:
    """Ten updates with a checkpoint at every second one."""
    settings = {
        "updates": 10, "lr": 0.02, "warmup_updates": 1, "log_every": 1, "validate_every": 4, "checkpoint_every": 2,
        "keep_last": 3, "eps": 1e-3, "schedule": "constant",
    }  # fmt: skip
    return TrainingConfig(**{**settings, **changes})


def validation() -> list[tuple[str, Batch]]:
    """This rank's share of three batches, two of them with lips."""
    batches = [join([item(900 + 3 * k + i, video=k < 2) for i in range(3)]) for k in range(3)]
    return [("toy", batch) for batch in batches[dist.rank() :: dist.world_size()]]


def on_ranks(number: int, call: str, *arguments: object, timeout: float = 120) -> list[subprocess.CompletedProcess]:
    """Run `call(*arguments)`, a function named as MODULE:FUNCTION in this folder, in so many processes of one group."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    group = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = []
    for rank in range(number):
        own = group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if number > 1 else {}
        command = [sys.executable, __file__, call, *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command, env=env | own, text=True, **pipes))
    done = []
    for process in processes:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            for other in processes:
                other.kill()
            raise
        done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    return done


def kill_self_before(update: int) -> Callable[[int], None]:
    """A hook for ToyGroups that ends the process without a word."""

    def hook(now: int) -> None:
        if now == update:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


if __name__ == "__main__":
    import importlib

    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).parent))
    module, function = sys.argv[1].split(":")
    dist.start()
    try:
        getattr(importlib.import_module(module), function)(*sys.argv[2:])
    finally:
        dist.stop()
