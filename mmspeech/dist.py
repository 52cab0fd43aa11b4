"""Ranks: the same calls work in one process and under torchrun."""

import os
import re
from collections.abc import Mapping
from typing import TypeVar

import torch
import torch.distributed as torch_dist

from mmspeech.errors import UserError

Value = TypeVar("Value")


def start(wanted: str | None = None) -> torch.device:
    """Join the process group if torchrun started us; returns this process's device.

    Args:
        wanted: cpu, cuda or cuda:N; by default this process's GPU, or the CPU where there is none.

    Raises UserError for a device that is not there.
    """
    there = torch.cuda.device_count()
    if wanted is None:
        wanted = "cuda" if there else "cpu"
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", wanted)
    if match is None or (wanted != "cpu" and int(match[1] or 0) >= there):
        raise UserError(f"--device {wanted}: expected cpu, cuda or cuda:N; this machine has {there} GPU(s)")
    device = torch.device(wanted)
    if device.type == "cuda":
        device = torch.device("cuda", int(match[1] or os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if "RANK" in os.environ and not torch_dist.is_initialized():
        # gloo stands beside nccl for what is summed on the host, which must not wait for the device.
        torch_dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return device


def stop() -> None:
    """Leave the process group, if there is one."""
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()


def rank() -> int:
    return torch_dist.get_rank() if torch_dist.is_initialized() else 0


def world_size() -> int:
    return torch_dist.get_world_size() if torch_dist.is_initialized() else 1


def is_first() -> bool:
    return rank() == 0


def barrier() -> None:
    """Wait until every rank is here."""
    if torch_dist.is_initialized():
        sum_over_ranks_on_host({"barrier": 1.0})


def gather_on_host(value: Value) -> list[Value]:
    """Every rank's value, by rank: small plain things, exchanged between hosts without waiting for the device."""
    if not torch_dist.is_initialized():
        return [value]
    values: list[Value] = [value] * world_size()
    torch_dist.all_gather_object(values, value)
    return values


def sum_over_ranks_on_host(counts: Mapping[str, float]) -> dict[str, float]:
    """Sum numbers by name over all ranks; a name that a rank lacks counts 0 there. Exact for integers below 2**53."""
    total: dict[str, float] = {}
    for theirs in gather_on_host(dict(counts)):
        for name, count in theirs.items():
            total[name] = total.get(name, 0.0) + count
    return total
