"""The pickle inside a torch file, followed without running anything that is in it.

A pickle is a program for a small stack machine whose GLOBAL and REDUCE may call any function of Python. Here it is only
parsed (pickletools), and followed by a machine of our own that knows plain data and tensors and calls nothing else:
objects of unknown classes become Records, and names that no checkpoint needs, as os.system, are an error.
"""

import math
import pickletools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAX_ELEMENTS = 2**32  # of all tensors together: a view of one number may claim any size (LARGE with Adam has 2**31)
MAX_NODES = 20_000  # of a configuration: lists in lists of references grow without limit when written out


@dataclass(frozen=True)
class Global:
    """The name of a class or function, which is never imported."""

    name: str  # module.Class


@dataclass(eq=False)
class Record:
    """An object of a class that is not loaded: what the file says of it."""

    name: str  # module.Class
    args: tuple = ()
    state: Any = None
    items: list = field(default_factory=list)  # what it held as a kind of list, set or dict (then pairs)


class Storage(NamedTuple):
    """The numbers that tensors are views of."""

    flat: Tensor  # (numel,)


class Refused(Exception):
    """What no checkpoint does and an attack may: the reason in words."""


Fetch = Callable[[str, int, torch.dtype], Tensor]  # (key, numel, dtype) -> the numbers of a storage, or room for them


class Machine:
    """Follows the program of a pickle."""

    def __init__(self, fetch: Fetch | None, size: int) -> None:
        """`size`: bytes of the file, which all storages together cannot exceed."""
        self.fetch, self.bytes_left, self.elements_left = fetch, size, MAX_ELEMENTS
        self.storages: dict[str, Storage] = {}
        self.unread: set[str] = set()  # storages that the caller has to fill

    def run(self, program: Any) -> Any:
        """The object that a program makes, from its bytes or from a file, which then stands behind it."""
        stack: list[Any] = []
        below: list[list[Any]] = []  # what lies under each mark
        memo: dict[int, Any] = {}

        def to_mark() -> list[Any]:
            nonlocal stack
            items, stack = stack, below.pop()
            return items

        arg: Any  # of whatever kind the opcode has
        for opcode, arg, _ in pickletools.genops(program):
            name = opcode.name
            if name in _VALUES:
                # Halves of surrogate pairs may stand in a pickle, but cannot be printed or written.
                stack.append(arg.encode("utf-8", "replace").decode() if isinstance(arg, str) else arg)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name]())
            elif name in ("BINGET", "LONG_BINGET", "GET"):
                stack.append(memo[arg])
            elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
                memo[arg] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name == "MARK":
                below.append(stack)
                stack = []
            elif name == "POP":
                _ = stack.pop() if stack else to_mark()
            elif name == "POP_MARK":
                to_mark()
            elif name == "DUP":
                stack.append(stack[-1])
            elif name in _TUPLES:
                size = _TUPLES[name]
                stack[len(stack) - size :] = [_tuple(stack[len(stack) - size :], size)]
            elif name in _FROM_MARK:
                items = to_mark()
                stack.append(_FROM_MARK[name](items))
            elif name in ("APPEND", "SETITEM", "APPENDS", "SETITEMS", "ADDITEMS"):
                count = {"APPEND": 1, "SETITEM": 2}.get(name)
                items = to_mark() if count is None else [stack.pop() for _ in range(count)][::-1]
                _fill(stack[-1], items, pairs=name.startswith("SETITEM"))
            elif name == "GLOBAL":
                stack.append(_named(*arg.split(" ", 1)))
            elif name == "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(_named(module, attribute))
            elif name in ("REDUCE", "NEWOBJ"):
                args = stack.pop()
                stack[-1] = self._call(stack[-1], args)
            elif name == "NEWOBJ_EX":
                kwargs, args = stack.pop(), stack.pop()
                stack[-1] = self._call(stack[-1], (args, kwargs))
            elif name == "OBJ":
                cls, *args = to_mark()
                stack.append(self._call(cls, tuple(args)))
            elif name == "INST":
                stack.append(self._call(_named(*arg.split(" ", 1)), tuple(to_mark())))
            elif name == "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Record):
                    stack[-1].state = state
                elif not isinstance(stack[-1], dict | Tensor):  # attributes of an OrderedDict or tensor: not needed
                    raise Refused(f"it sets the state of a {type(stack[-1]).__name__}")
            elif name == "BINPERSID":
                stack.append(self._persistent(stack.pop()))
            elif name == "STOP":
                return stack.pop()
            elif name not in ("PROTO", "FRAME"):  # EXT: the registry of copyreg; PERSID, buffers: torch writes none
                raise Refused(f"its pickle has the instruction {name}")
        raise ValueError("a pickle without end")

    def _call(self, cls: Any, args: Any) -> Any:
        """What calling `cls` would make, without calling it, except for a few functions of our own."""
        if not isinstance(cls, Global):
            raise Refused(f"it calls a {type(cls).__name__}")
        if not isinstance(args, tuple):
            raise ValueError("a call without arguments")
        if cls.name in TENSORS:
            return self._tensor(*args[:4])
        return CALLS[cls.name](*args) if cls.name in CALLS else Record(cls.name, args)

    def _persistent(self, saved: Any) -> Any:
        """`("storage", class, key, device, numel)`, in older files with a view; `("module", class, source)`."""
        if not isinstance(saved, tuple) or len(saved) < 2 or saved[0] not in ("storage", "module"):
            raise Refused("it has a persistent id that is no storage")
        if saved[0] == "module":
            return saved[1]
        _, kind, key, _, numel, *views = saved
        dtype = STORAGES.get(kind.name) if isinstance(kind, Global) else None
        if dtype is None or self.fetch is None or type(numel) is not int or numel < 0 or type(key) not in (str, int):
            raise ValueError("a storage of an unknown kind")
        key = str(key)
        if key not in self.storages:
            self.bytes_left -= numel * dtype.itemsize
            if self.bytes_left < 0:
                raise ValueError("its tensors are larger than the file")
            self.storages[key] = Storage(self.fetch(key, numel, dtype))
            self.unread.add(key)
        storage = self.storages[key]
        if storage.flat.dtype != dtype or len(storage.flat) != numel:
            raise ValueError("one storage, two descriptions")
        if views and views[0] is not None:
            _, offset, size = views[0]
            return Storage(self._tensor(storage, offset, (size,), (1,)))
        return storage

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
        """A view of a storage, which it must not leave."""
        if not isinstance(storage, Storage) or not (isinstance(size, tuple) and isinstance(stride, tuple)):
            raise ValueError("a tensor of something else than a storage")
        numbers = (offset, *size, *stride)
        if len(size) != len(stride) or not all(type(n) is int and 0 <= n < 2**62 for n in numbers):
            raise ValueError("a tensor of impossible size")
        if 0 in size:
            return torch.empty(size, dtype=storage.flat.dtype)
        self.elements_left -= math.prod(size)
        if self.elements_left < 0:
            raise Refused(f"its tensors claim more than {MAX_ELEMENTS:,} numbers")
        if offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= len(storage.flat):
            raise Refused("a tensor reaches beyond its storage")
        return storage.flat.as_strided(size, stride, offset)


def _named(module: Any, attribute: Any) -> Global:
    """A name; Refused where no checkpoint has use for it: functions, and what is in Python's library, torch, numpy."""
    if not isinstance(module, str) or not isinstance(attribute, str):
        raise ValueError("a name that is no text")
    module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)  # of Python 2
    name = f"{module}.{attribute}"
    if attribute in HARMLESS.get(module, ()) or any(name in table for table in (CALLS, STORAGES, TENSORS)):
        return Global(name)
    if module.partition(".")[0] in _POWERFUL or not attribute.rpartition(".")[2].lstrip("_")[:1].isupper():
        raise Refused(f"its pickle names {ascii(name)[1:-1][:100]}, which holds no data")
    return Global(name)


def _key(key: Any) -> Any:
    """What may be a key: hashing deep tuples overflows the stack of C."""
    flat = key if isinstance(key, tuple) else (key,)
    if any(isinstance(part, tuple | Tensor | Storage) for part in flat):
        raise ValueError("a key that is neither number nor text")
    return key


def _dict(items: list[Any]) -> dict[Any, Any]:
    return {_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _tuple(items: list[Any], size: int) -> tuple:
    if len(items) != size:
        raise IndexError("an empty stack")
    return tuple(items)


def _fill(target: Any, items: list[Any], *, pairs: bool) -> None:
    if isinstance(target, Record):
        target.items += zip(items[::2], items[1::2], strict=True) if pairs else items
    elif isinstance(target, dict) and pairs:
        target.update(_dict(items))
    elif isinstance(target, list) and not pairs:
        target += items
    elif isinstance(target, set) and not pairs:
        target.update(map(_key, items))
    else:
        raise ValueError(f"items put into a {type(target).__name__}")


_POWERFUL = {*sys.stdlib_module_names, "torch", "numpy"}
_VALUES = {op.name for op in pickletools.opcodes if op.stack_after and not op.stack_before and op.arg} - {
    "GET", "BINGET", "LONG_BINGET", "GLOBAL", "INST", "EXT1", "EXT2", "EXT4", "PERSID",
}  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_FROM_MARK: dict[str, Callable[[list[Any]], Any]] = {
    "TUPLE": tuple,
    "LIST": list,
    "DICT": _dict,
    "FROZENSET": lambda items: frozenset(map(_key, items)),
}

STORAGES = {
    f"torch.{name}Storage": dtype
    for name, dtype in {
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}


def _listed(items: Any) -> list[Any]:
    if not isinstance(items, list | tuple) or isinstance(items, Storage):
        raise ValueError("a collection of something else than a list")
    return list(items)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("bytes of something else than text")
    return value


# The only functions that a checkpoint calls, as ours; tensors are made by the machine.
TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")


def _member(cls: Any, name: Any) -> Record:
    """A member of an enumeration by its name, as Python 3.11.0 to 3.11.3 write it; others write the value."""
    if not isinstance(cls, Global) or type(name) is not str or cls.name.partition(".")[0] in _POWERFUL:
        raise Refused("it asks for an attribute")
    return Record(cls.name, (name,))


CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda pairs=(): _dict([part for pair in _listed(pairs) for part in _listed(pair)]),
    "torch._utils._rebuild_parameter": lambda data, *rest: data,
    "torch.Size": lambda size=(): tuple(_listed(size)),
    "builtins.set": lambda items=(): set(map(_key, _listed(items))),
    "builtins.getattr": _member,
    "_codecs.encode": lambda text, encoding="latin1": _text(text).encode("latin-1"),  # bytes, in protocol 2
}
# Names in Python's library, torch and numpy that stand in checkpoints; their objects become Records like all others.
# fmt: off
HARMLESS = {
    "argparse": ("Namespace",),
    "builtins": ("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "long", "object",
                 "slice", "str", "tuple", "type", "unicode"),
    "collections": ("Counter", "defaultdict", "deque"),
    "copyreg": ("_reconstructor",),
    "datetime": ("date", "datetime", "timedelta"),
    "numpy": ("dtype", "ndarray"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "numpy.core.multiarray": ("_reconstruct", "scalar"),
    "pathlib": ("Path", "PosixPath", "PurePosixPath", "WindowsPath"),
    "torch": ("bfloat16", "bool", "device", "float16", "float32", "float64", "int16", "int32", "int64", "int8",
              "uint8"),
    "torch.nn.parameter": ("Parameter",),
    "typing": ("Any",),
}
# fmt: on


def plain(value: Any) -> Any:
    """A configuration as dicts, lists and values, whatever it was: OmegaConf, argparse.Namespace, enumerations.

    Raises ValueError if it is larger than a configuration can be.
    """
    left = MAX_NODES

    def walk(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > 40:
            raise ValueError("a configuration without end")
        if isinstance(value, Record):
            state = value.state
            if isinstance(state, Mapping):  # OmegaConf: _content of a node with children, _val of a leaf
                return walk(next((state[key] for key in ("_content", "_val") if key in state), state), depth + 1)
            return walk(value.args[0], depth + 1) if value.args else value.name  # an enumeration is its value
        if isinstance(value, Mapping):
            return {str(key): walk(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [walk(item, depth + 1) for item in value]
        return value if isinstance(value, str | int | float | bool | None) else type(value).__name__

    return walk(value, 0)
