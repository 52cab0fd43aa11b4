"""Checkpoints that others publish (torch.save), read as data: inert_pickle.py follows the pickle, nothing is executed.

Both layouts are read: the zip of torch >= 1.6, and the row of pickles with raw numbers behind them of older ones.
"""

import mmap
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmspeech.errors import UserError
from mmspeech.models.inert_pickle import Machine, Refused


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint: dicts, lists, numbers, text, tensors on the host, Records; no code of it is run.

    Raises UserError, one line, if it is no checkpoint, is cut off, or is made to do more than hold data.
    """
    if path.is_dir():
        raise UserError(f"{path}: a folder; expected a checkpoint file as published, e.g. base_vox_iter5.pt; name it")
    advice = "get it again from where its authors publish it"
    try:
        with open(path, "rb") as file:
            head = file.read(4)
            if not head:
                raise UserError(f"{path}: is empty; expected a checkpoint; {advice}")
            file.seek(0)
            content = _read_zip(file) if head == b"PK\x03\x04" else _read_older(file)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a checkpoint as published; mend the path") from None
    except Refused as error:
        raise UserError(f"{path}: refused, nothing in it was run: {error}; {advice}") from None
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: a torch file that is cut off or damaged ({error}); {advice}") from None
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise UserError(f"{path}: no checkpoint of torch, or a damaged one ({reason}); {advice}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check the file") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected a checkpoint's dict; give another file")
    return content


def _read_zip(file: Any) -> Any:
    """PREFIX/data.pkl, and the storage KEY as PREFIX/data/KEY."""
    size = file.seek(0, 2)
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        programs = [name for name in entries if name.endswith("/data.pkl")]
        if len(programs) != 1:
            raise ValueError(f"a zip with {len(programs)} data.pkl, expected one")
        # torch compresses nothing; entries that do, or that share their bytes, may blow up to any size.
        total = sum(entry.file_size for entry in entries.values())
        if total > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise Refused("its entries are compressed or overlap")
        prefix = programs[0].removesuffix("data.pkl")
        if f"{prefix}byteorder" in entries and archive.read(f"{prefix}byteorder") != sys.byteorder.encode():
            raise ValueError("written on a machine of another byte order")

        def fetch(key: str, numel: int, dtype: torch.dtype) -> Tensor:
            data = bytearray(archive.read(f"{prefix}data/{key}"))
            if len(data) != numel * dtype.itemsize:
                raise ValueError(f"storage {key[:20]} has {len(data)} bytes, expected {numel * dtype.itemsize}")
            return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)

        return Machine(fetch, size).run(archive.read(programs[0]))


def _read_older(file: Any) -> Any:
    """Pickles in a row: magic number, version, machine, content, keys; then each storage behind its length."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        # Told before the pickles: a text file begins with anything.
        if Machine(None, 0).run(data) != 0x1950A86A20F9469CFC6C:
            raise ValueError("it does not begin like one")
        if Machine(None, 0).run(data) != 1001:
            raise ValueError("of another version")
        machine = Machine(None, 0).run(data)
        if isinstance(machine, dict) and machine.get("little_endian", True) != (sys.byteorder == "little"):
            raise ValueError("written on a machine of another byte order")
        reader = Machine(lambda key, numel, dtype: torch.empty(numel, dtype=dtype), data.size())
        content = reader.run(data)
        for key in Machine(None, 0).run(data):
            flat = reader.storages[str(key)].flat
            numel = int.from_bytes(data.read(8), "little", signed=True)
            values = data.read(numel * flat.dtype.itemsize) if numel == len(flat) else b""
            if len(values) != len(flat) * flat.dtype.itemsize:
                raise ValueError("the file ends in the middle of its tensors")
            if values:
                flat.copy_(torch.frombuffer(bytearray(values), dtype=flat.dtype))
            reader.unread.discard(str(key))
        if reader.unread:
            raise ValueError("tensors without their numbers")
        return content
