"""Checkpoints: written whole or not at all, read back exactly, kept as long as they are needed, averaged at the end.

`checkpoints/step-0000500.ckpt` is what 500 finished updates left: weights, optimizer, position in the data, random
states of every rank, the best so far. It loads with `torch.load(..., weights_only=True)`.
"""

import errno
import os
import pickle
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mmspeech import dist, files
from mmspeech.console import say
from mmspeech.errors import UserError
from mmspeech.training import parallel, random_states

VERSION = 1


class Damaged(UserError):
    """A checkpoint that was cut off or changed after it was written."""


def path_of(folder: Path, update: int) -> Path:
    """Where the checkpoint after `update` finished updates lies, in the folder of checkpoints."""
    return folder / f"step-{update:07d}.ckpt"


def kept(folder: Path) -> list[int]:
    """The updates whose checkpoints are in the folder, ascending."""
    found = (re.fullmatch(r"step-(\d+)\.ckpt", path.name) for path in folder.glob("step-*.ckpt"))
    return sorted(int(match[1]) for match in found if match)


def save(
    folder: Path, update: int, model: nn.Module, optimizer: Optimizer, *, keep: Collection[int | None], **more: object
) -> None:
    """Write the checkpoint of `update`, then remove those that are not in `keep`; every rank must call.

    Args:
        model: the objective, not what DDP wraps around it; FSDP2's shards are gathered, so the file does not depend on
            how many ranks there were.
        more: further entries: tensors and plain values only.

    Raises UserError, on every rank, when there is no room; what was there before stays.
    """
    content = {
        "version": VERSION,
        "update": update,
        "model": whole_weights(model),
        "optimizer": _optimizer_state(model, optimizer),
        "random": dist.gather_on_host(random_states.get()),
        **more,
    }
    problem = None
    if dist.is_first():
        try:
            with files.replacing(path_of(folder, update)) as path, open(path, "wb") as file:
                _write(content, file)
        except UserError as error:
            problem = str(error)
        else:
            for old in set(kept(folder)) - {update, *keep}:
                path_of(folder, old).unlink(missing_ok=True)
    problem = dist.gather_on_host(problem)[0]  # and nobody goes on before the file is there
    if problem is not None:
        raise UserError(problem)


def newest(folder: Path) -> dict[str, Any] | None:
    """The content of the newest checkpoint that can be read, or None if there is none; the same one on every rank.

    A damaged one (cut off, flipped bits) gets a line, is renamed to `*.damaged`, and the one before it is taken.
    Raises UserError if there are checkpoints and none can be read.
    """
    content, found = None, "nothing"
    if dist.is_first():
        for update in reversed(kept(folder)):
            path = path_of(folder, update)
            try:
                content, found = read(path), path.name
                break
            except Damaged as error:
                found = "damage"
                say(f"{error}; going back to the checkpoint before it")
                os.replace(path, path.with_name(f"{path.name}.damaged"))
    found = dist.gather_on_host(found)[0]
    if found == "damage":
        raise UserError(f"{folder}: none of its checkpoints can be read; remove the folder to begin anew")
    if found != "nothing" and not dist.is_first():
        content = read(folder / found)
    return content


def read(path: Path) -> dict[str, Any]:
    """The content of one checkpoint, on the host. Raises UserError if it cannot be read or is of another version."""
    try:
        with open(path, "rb") as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError, OSError) as error:
        # EINVAL: the archive's index points to places before its start.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
        raise Damaged(f"{path}: damaged checkpoint ({(str(error) or 'empty').splitlines()[0][:100]})") from error
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        raise UserError(f"{path}: checkpoint of version {version}, expected {VERSION}; use the code that wrote it")
    return content


@torch.no_grad()
def load_model(model: nn.Module, state: dict[str, Tensor], where: Path) -> None:
    """Copy weights and buffers into the model. Raises UserError for the first name or shape that differs."""
    ours = model.state_dict()
    for name, tensor in ours.items():
        if name not in state:
            raise UserError(f"{where}: has no `{name}`, which this model has; {_ADVICE}")
        if state[name].shape != tensor.shape:
            shapes = f"{tuple(state[name].shape)}, in this model {tuple(tensor.shape)}"
            raise UserError(f"{where}: `{name}` has shape {shapes}; {_ADVICE}")
    for name in state:
        if name not in ours:
            raise UserError(f"{where}: has `{name}`, which this model lacks; {_ADVICE}")
    for name, tensor in ours.items():
        tensor.copy_(parallel.like(state[name], tensor))


_ADVICE = "use the configuration that it was made with, or another folder"


def load_optimizer(model: nn.Module, optimizer: Optimizer, state: dict[str, dict[str, Tensor]]) -> None:
    """Give back each parameter's moments and step count; rates and decay come from the configuration of today."""
    for name, parameter in model.named_parameters():
        if name in state:
            # The step count is not sharded; fused optimizers want it on the device of the parameter.
            optimizer.state[parameter] = {
                key: parallel.like(value, parameter if value.ndim else parallel.local(parameter))
                for key, value in state[name].items()
            }


def average(paths: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of the weights of several checkpoints, summed in float64; counters are those of the last one."""
    last = read(paths[-1])["model"]
    total = {name: tensor.double() for name, tensor in last.items() if tensor.is_floating_point()}
    for path in paths[:-1]:
        weights = read(path)["model"]
        for name in total:
            total[name] += weights[name]
    return last | {name: (tensor / len(paths)).to(last[name].dtype) for name, tensor in total.items()}


def write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Write named tensors as safetensors, atomically."""
    with files.replacing(path) as temporary:
        temporary.write_bytes(safetensors.torch.save({name: tensor.contiguous() for name, tensor in weights.items()}))


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """Names -> whole tensors on the host of the first rank; the others take part and keep nothing."""
    whole = ((name, parallel.full(tensor.detach())) for name, tensor in model.state_dict().items())
    return {name: tensor.cpu() for name, tensor in whole if dist.is_first()}


def _optimizer_state(model: nn.Module, optimizer: Optimizer) -> dict[str, dict[str, Tensor]]:
    """Names of parameters -> their moments. By name, so that the order of parameter groups does not matter."""
    state = {}
    for name, parameter in model.named_parameters():
        whole = {key: parallel.full(value) for key, value in optimizer.state.get(parameter, {}).items()}
        if whole and dist.is_first():
            state[name] = {key: value.cpu() for key, value in whole.items()}
    return state


def _write(content: object, file: IO[bytes]) -> None:
    """torch.save; a full disk is the OSError that it was, not the complaint of the archive that could not be closed."""
    try:
        torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
