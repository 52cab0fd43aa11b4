"""Parallelism applied from outside: a module written for one device becomes DDP or FSDP2 here, and nowhere else."""

import contextlib
import dataclasses
import functools
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree as pytree

from mmspeech import dist, seeds
from mmspeech.batch import Batch, Loss
from mmspeech.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Dispatch(nn.Module):
    """One module with one forward, as DDP and FSDP2 want it, over one objective or several by name."""

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.objective = objective

    def named(self, name: str) -> Any:
        """The objective of that name; a single objective answers to any."""
        return self.objective[name] if isinstance(self.objective, nn.ModuleDict) else self.objective

    def all(self) -> list[Any]:
        """Every objective."""
        return list(self.objective.values()) if isinstance(self.objective, nn.ModuleDict) else [self.objective]

    def forward(self, name: str, batch: Batch, update: int) -> Loss:
        return self.named(name)(batch, update)


def wrap(dispatch: Dispatch, how: Literal["ddp", "fsdp2"], *, find_unused: bool) -> nn.Module:
    """The module to train with: itself in one process, else DDP around it, or FSDP2 inside it.

    Args:
        find_unused: whether parameters may stay without a gradient in some update on some rank (DDP only). FSDP2 asks
            more: in every update, parameters that have a gradient on one rank have one on all.
    """
    if not torch_dist.is_initialized():
        return dispatch
    if how == "fsdp2":
        return shard(dispatch)
    # Buffers (batch-norm statistics) go their own way on each rank; `average_buffers` unites them before they are read.
    return DistributedDataParallel(
        dispatch, find_unused_parameters=find_unused, broadcast_buffers=False, gradient_as_bucket_view=True
    )


def shard(module: nn.Module) -> nn.Module:
    """Apply FSDP2 in place: one unit per block, one per module with `encode` or `generate`, one for the rest.

    Blocks are the members of outermost ModuleLists that have children of their own. Compute stays under autocast, so
    that parameters, and the numbers, are those of DDP.
    """
    for tensor in [*module.parameters(), *module.buffers()]:
        torch_dist.broadcast(tensor.detach(), src=0)  # each rank keeps its share of its own: they must be the same
    for block in list(_blocks(module)):
        fully_shard(block)
    for child in reversed(list(module.modules())):  # inner modules first
        methods = [name for name in ("encode", "generate") if callable(getattr(child, name, None))]
        if methods:
            fully_shard(child)
            for name in methods:
                setattr(child, name, _transparent(getattr(child, name)))
                register_fsdp_forward_method(child, name)
    _see_through(Loss)
    fully_shard(module)  # changes the module itself
    return module


def _transparent(method: Callable[..., Result]) -> Callable[..., Result]:
    """The method, whose result's tensors FSDP2 finds, to gather parameters again for their backward pass."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Result:
        result = method(*args, **kwargs)
        if dataclasses.is_dataclass(result):
            _see_through(type(result))
        return result

    return call


def _see_through(kind: type) -> None:
    """Tell torch that this dataclass is a container: without that FSDP2 overlooks the tensors in it."""
    if kind not in pytree.SUPPORTED_NODES:
        pytree.register_dataclass(kind)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (block for block in child if any(True for _ in block.children()))
        else:
            yield from _blocks(child)


@contextlib.contextmanager
def gradient_sync(model: nn.Module, *, enabled: bool) -> Iterator[None]:
    """Around forward and backward of one batch: gradients are exchanged only if enabled (the last of an update)."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(enabled)
        yield
    elif isinstance(model, DistributedDataParallel) and not enabled:
        with model.no_sync():
            yield
    else:
        yield


def agree_on_host_draws(model: nn.Module, *key: object) -> None:
    """Under FSDP2, let Python's generator go on alike on all ranks.

    What is drawn there, such as which blocks are dropped, decides who gathers which parameters when: ranks that differ
    would wait for ever. Draws of torch (dropout) stay each rank's own.
    """
    if isinstance(model, FSDPModule):
        random.seed(seeds.stable_hash("host", *key))


def autocast(device: torch.device, precision: Literal["fp32", "bf16"]) -> contextlib.AbstractContextManager:
    """bf16 where it is asked for: on GPUs; CPUs gain from it where they have instructions for it (avx512_bf16, amx)."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def in_step(items: Iterable[Item]) -> Iterator[tuple[Item, bool]]:
    """Yield (item, whether it counts) equally often on every rank: one that has run out repeats its last item.

    Sharded modules need it, because each forward pass gathers parameters from all ranks. Raises UserError for a rank
    that has none at all.
    """
    iterator, item, more = iter(items), None, True
    while True:
        if more:
            following = next(iterator, None)
            more = following is not None
            item = following if more else item
        if not any(dist.gather_on_host(more)):
            return
        if item is None:
            raise UserError(f"validation: no batch for rank {dist.rank()}, which fsdp2 needs; give more, or use ddp")
        yield item, more


@torch.no_grad()
def average_buffers(module: nn.Module) -> None:
    """Give every rank the mean of all ranks' floating-point buffers, so that one rank's copy speaks for all."""
    if dist.world_size() == 1:
        return
    for buffer in module.buffers():
        if buffer.is_floating_point():
            torch_dist.all_reduce(buffer)
            buffer /= dist.world_size()


def full(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor (every rank must call), a plain tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(whole: Tensor, place: Tensor) -> Tensor:
    """`whole`, the same on every rank, on the device of `place` and sharded as it is."""
    if isinstance(place, DTensor):
        whole = whole.to(place.to_local().device)
        return distribute_tensor(whole, place.device_mesh, place.placements, src_data_rank=None)
    return whole.to(place.device)


def local(tensor: Tensor) -> Tensor:
    """This rank's share of a sharded tensor, a plain tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
