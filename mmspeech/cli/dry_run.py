"""`--dry-run`: the model of a configuration, one invented clip, one update; no corpus, nothing written.

It shows that a configuration can be run, how many parameters it has, and the least memory that it takes.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mmspeech.batch import Batch
from mmspeech.console import say
from mmspeech.data.reading import FRAMES_PER_S, Item, collate
from mmspeech.data.text import END, SPECIAL
from mmspeech.models.av_encoder import AVEncoder
from mmspeech.seeds import numpy_rng
from mmspeech.training import optimizers, parallel
from mmspeech.training.rehearsal import peak_gib
from mmspeech.training.schedules import SCHEDULES
from mmspeech.training.settings import TrainingConfig
from mmspeech.training.step import agree, train_step

SECONDS, TOKENS = 2.0, 12  # of the clip
VOCABULARY = 1000  # where the texts decide; of a tokenizer whose size is set, that


def invented(
    takers: Mapping[str, Any] | nn.ModuleDict,
    streams: Mapping[str, Any],
    *,
    num_units: int = 0,
    vocabulary: int = 0,
    kinds: Sequence[str] = (),
) -> Batch:
    """A batch of one clip that has all the streams, with random units or tokens for targets.

    Args:
        takers: stream -> the module that takes it; its `item_shape`, `item_dtype` and `item_limit` say what.
        kinds: instead of one clip, one of each kind: names of the streams that it has, joined by `+`.
    """
    rng, frames = numpy_rng("dry run"), round(SECONDS * FRAMES_PER_S)
    arrays = {}
    for name in streams:
        taker: Any = takers[name]
        shape = (frames, *taker.item_shape)
        if taker.item_dtype.is_floating_point:
            arrays[name] = rng.standard_normal(shape).astype(np.float32)
        else:
            arrays[name] = rng.integers(taker.item_limit, size=shape).astype(np.uint8)
    units = rng.integers(num_units, size=frames) if num_units else None
    tokens = [*rng.integers(len(SPECIAL), vocabulary, size=TOKENS).tolist(), END] if vocabulary else None
    items = [
        Item(f"invented {kind}", {name: arrays[name] for name in kind.split("+")}, units, tokens, "")
        for kind in kinds or ["+".join(arrays)]
    ]
    return collate(items, list(arrays), [0] * len(items))


def one_update(objective: nn.Module, batch: Batch, config: TrainingConfig, device: torch.device) -> None:
    """Take it, late enough that all is trained that ever is, and say sizes, loss, time and memory."""
    for line in sizes(objective):
        say(line)
    model = parallel.Dispatch(objective.to(device).train())
    optimizer = optimizers.build(
        objective, config.optimizer, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
    )
    update = config.updates - 1
    optimizers.set_rates(optimizer, config.lr * SCHEDULES[config.schedule](update, config), update)
    begin = time.perf_counter()
    group = [("main", objective.draw(batch, update))]  # type: ignore[operator]
    counts = agree(model, group).counts
    group = [(name, drawn.to(device)) for name, drawn in group]
    outcome = train_step(
        model, group, counts, optimizer, update=update, clip_norm=config.clip_norm, precision=config.precision
    )
    loss = float(outcome.losses.sum())  # waits for the device
    seconds = time.perf_counter() - begin
    clips = "an invented clip" if len(batch) == 1 else f"{len(batch)} invented items"
    say(
        f"one update on {clips} of {SECONDS:g} s: loss {loss:.3f}, gradient norm "
        f"{float(outcome.grad_norm):.3f}, {seconds:.1f} s, peak memory {peak_gib(device):.2f} GiB on {device.type}"
    )


def sizes(objective: nn.Module) -> list[str]:
    """Parameters in all, then of each part and of each part of what is trained, an encoder as a rule."""

    def millions(parts: Mapping[str, nn.Module | nn.Parameter]) -> str:
        counts = {name: count(part) for name, part in parts.items()}
        return ", ".join(f"{name} {number / 1e6:.2f}" for name, number in counts.items() if number)

    def count(part: nn.Module | nn.Parameter) -> int:
        return part.numel() if isinstance(part, nn.Parameter) else sum(p.numel() for p in part.parameters())

    kind = "encoder" if hasattr(objective, "encoder") else "model"
    trained = objective.get_submodule(kind)
    parts = dict(objective.named_children()) | dict(objective.named_parameters(recurse=False))
    inner = {name: part for name, part in trained.named_children() if name != "frontends"}
    if isinstance(trained, AVEncoder):
        inner = {f"front-end {name}": frontend for name, frontend in trained.frontends.items()} | inner
    return [
        f"{count(objective) / 1e6:.2f} M parameters: {millions(parts)}",
        f"{kind}, in M: {millions(inner)}",
    ]
