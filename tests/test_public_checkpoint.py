"""Checkpoints of others are data: whatever their pickles say, nothing runs, and what they hold comes out."""

import argparse
import builtins
import enum
import functools
import importlib
import operator
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from cuts import command
from torch import nn

from mmspeech.errors import UserError
from mmspeech.models import inert_pickle, public_checkpoint
from mmspeech.models.inert_pickle import Record, plain

FORMATS = ("zip", "older")


def write(path: Path, content: object, layout: str) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=layout == "zip")
    return path


def write_program(path: Path, program: bytes, layout: str) -> Path:
    """A torch file whose content is made by this program."""
    if layout == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", program)
            archive.writestr("archive/version", "3\n")
    else:
        head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
        path.write_bytes(b"".join(pickle.dumps(part, 2) for part in head) + program + pickle.dumps([], 2))
    return path


class Call:
    """Pickled as a call of `function`: what an attacker writes."""

    def __init__(self, function: object, *args: object) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple:
        return self.function, self.args


class State(Call):
    """An object whose state is the call's result."""

    def __reduce__(self) -> tuple:
        return argparse.Namespace, (), {"x": Call(self.function, *self.args)}


class Setter(Call):
    """An object whose state is set by a function."""

    def __reduce__(self) -> tuple:
        return argparse.Namespace, (), {"x": 1}, None, None, self.function


def helper(path: str) -> None:
    """A function that is neither Python's nor torch's."""
    Path(path).touch()


def attacks(flag: str) -> dict[str, Call]:
    return {
        "os.system": Call(os.system, f"touch {flag}"),
        "subprocess": Call(subprocess.check_call, ["touch", flag]),
        "eval": Call(builtins.eval, f"open({flag!r}, 'w')"),
        "exec": Call(builtins.exec, f"open({flag!r}, 'w')"),
        "open": Call(builtins.open, flag, "w"),
        "import": Call(importlib.import_module, "this"),
        "getattr": Call(getattr, Path(flag), "touch"),
        "getattr of a class": Call(getattr, dict, "fromkeys"),
        "method": Call(pathlib.Path.touch, Path(flag)),
        "partial": Call(functools.partial, os.system, f"touch {flag}"),
        "caller": Call(operator.methodcaller("touch"), Path(flag)),
        "torch.save": Call(torch.save, {}, flag),
        "torch.load": Call(torch.load, flag),
        "numpy.save": Call(np.save, flag, 1),
        "numpy.load": Call(np.load, flag),
        "pickle.loads": Call(pickle.loads, pickle.dumps(Call(os.system, f"touch {flag}"))),
        "torch subclass": Call(torch._tensor._rebuild_from_type_v2, os.system, nn.Parameter, (f"touch {flag}",), {}),
        "own function": Call(helper, flag),
        "state": State(os.system, f"touch {flag}"),
        "setter": Setter(helper),
    }


PLACES = {
    "top": lambda attack: attack,
    "deep": lambda attack: {"model": {"a": torch.ones(2)}, "cfg": {"model": [1, [2, {"x": (3, [attack])}]]}},
    "key": lambda attack: {"model": OrderedDict(a=torch.ones(2)), "extra_state": {(1, attack): 2}},
}


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", attacks(""))
def test_a_hostile_pickle_is_one_error_and_runs_nothing(name, place, layout, tmp_path):
    """Wherever the call stands: one line that names it; no file is touched, no module is imported."""
    flag = tmp_path / "touched"
    try:
        path = write(tmp_path / "bad.pt", PLACES[place](attacks(str(flag))[name]), layout)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        pytest.skip(f"cannot be written: {error}")
    sys.modules.pop("this", None)
    flag.unlink(missing_ok=True)  # writing may have called it
    with pytest.raises(UserError, match=r"bad\.pt: refused, nothing in it was run: .*; get it again") as caught:
        public_checkpoint.read(path)
    assert not flag.exists() and "this" not in sys.modules and "\n" not in str(caught.value)


PROGRAMS = {
    "INST": b"(S'touch {flag}'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'touch {flag}'\no.",
    "NEWOBJ": b"\x80\x02cos\nsystem\nX\x05\x00\x00\x00touch\x85\x81.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
    "dotted": b"\x80\x04\x8c\x07fairseq\x8c\x0bX.os.system\x93\x8c\x04true\x85R.",
    "extension": b"\x82\x01.",
    "buffer": b"\x97.",
    "persistent text": b"Pcos\nsystem\n.",
    "persistent": b"\x80\x02(X\x06\x00\x00\x00reducecos\nsystem\ntQ.",
    "call of a result": b"cargparse\nNamespace\n)R)R.",
    "call of text": b"S'os.system'\n)R.",
    "state of a class": b"cargparse\nNamespace\n}b.",
    "state of a list": b"]}b.",
}


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_hostile_program_is_refused(name, layout, tmp_path):
    """Every instruction that makes pickle call, import or set something."""
    flag = tmp_path / "touched"
    program = PROGRAMS[name].replace(b"{flag}", str(flag).encode())
    with pytest.raises(UserError, match="refused, nothing in it was run"):
        public_checkpoint.read(write_program(tmp_path / "bad.pt", program, layout))
    assert not flag.exists()


BROKEN = {
    "empty stack": b"R.",
    "no mark": b"t.",
    "no end": b"\x80\x02]",
    "no memo": b"h\x05.",
    "huge text": b"\x8d\xff\xff\xff\xff\xff\xff\xff\x0f.",
    "huge memo": b"\x80\x02Nr\xff\xff\xff\xff.",  # what pickle keeps room for: here the content is just None
    "deep key": b"}" + b")" + b"\x85" * 100_000 + b"Ns.",
    "not text": b"\x80\x04K\x01K\x02\x93.",
    "pairs of tensors": b"ccollections\nOrderedDict\nK\x05\x85R.",
}


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_program_is_one_error(name, layout, tmp_path):
    with pytest.raises(UserError, match=r"bad\.pt: "):
        public_checkpoint.read(write_program(tmp_path / "bad.pt", BROKEN[name], layout))


def numbers(*call: object) -> dict[str, object]:
    """A tensor of ten numbers, described by the rest of torch's call."""
    storage = torch.arange(10.0)._typed_storage()
    return {"model": {"a": Call(torch._utils._rebuild_tensor_v2, storage, *call, False, OrderedDict())}}


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize(
    "call", [(5, (6,), (1,)), (0, (2, 6), (5, 1)), (10, (1,), (1,)), (0, (2**40,), (0,)), (0, (3,), (2**61,))], ids=str
)
def test_a_tensor_beyond_its_storage_is_refused(call, layout, tmp_path):
    """Nor does one number pass for terabytes."""
    with pytest.raises(UserError, match=r"refused, .*(beyond its storage|claim more than)"):
        public_checkpoint.read(write(tmp_path / "bad.pt", numbers(*call), layout))


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize(
    "call", [(-1, (2,), (1,)), (0, (2,), (-1,)), (0, (-2,), (1,)), (0, (2,), (1, 1)), (0, 2, 1)], ids=str
)
def test_a_tensor_of_impossible_size_is_an_error(call, layout, tmp_path):
    with pytest.raises(UserError, match="no checkpoint of torch, or a damaged one"):
        public_checkpoint.read(write(tmp_path / "bad.pt", numbers(*call), layout))


class Colour(enum.Enum):
    RED = "red"


class Thing:
    """A class that the reader must not know."""

    def __init__(self) -> None:
        self.symbols, self.inner = ["a", "b"], {"x": 1}

    def __setstate__(self, state: object) -> None:
        raise AssertionError("run")


@pytest.mark.parametrize("layout", FORMATS)
def test_data_comes_out_and_objects_are_records(layout, tmp_path):
    """Tensors of all kinds, shared and viewed; plain values; an object's class, arguments and state."""
    base = torch.arange(12.0)
    tensors = {
        "view": base.view(3, 4).T[1:, ::2],
        "same": base,
        "expanded": torch.tensor([1.0, 2.0]).expand(3, 2),
        "half": torch.randn(3).half(),
        "bfloat16": torch.randn(3).bfloat16(),
        "long": torch.tensor(7),
        "bool": torch.tensor([True, False]),
        "none": torch.empty(0, 3),
        "parameter": nn.Parameter(torch.ones(2)),
    }
    values = {"a": [1, 2.5, None, True, "ü", b"\x00\xff", -(2**70)], 3: (1, (2,)), "s": {1, 2}, "o": OrderedDict(b=1)}
    objects = {"thing": Thing(), "colour": Colour.RED, "space": argparse.Namespace(lr=[0.1]), "path": Path("a/b")}
    content = {
        "tensors": tensors,
        "values": values,
        "objects": objects,
        "nested": pickle.dumps(Call(os.system, "true")),
    }
    read = public_checkpoint.read(write(tmp_path / "good.pt", content, layout))
    for name, tensor in tensors.items():
        torch.testing.assert_close(read["tensors"][name], tensor.detach(), atol=0, rtol=0)
    assert read["tensors"]["view"].untyped_storage().data_ptr() == read["tensors"]["same"].untyped_storage().data_ptr()
    assert read["values"] == values and read["nested"] == content["nested"]
    thing, colour = read["objects"]["thing"], read["objects"]["colour"]
    assert type(thing) is Record and thing.name == f"{__name__}.Thing" and thing.state == vars(objects["thing"])
    assert colour.args in (("red",), ("RED",))  # by value or, in the first versions of Python 3.11, by name
    assert plain(read["objects"]["space"]) == {"lr": [0.1]} and plain({"c": colour}) == {"c": colour.args[0]}


@pytest.mark.parametrize("layout", FORMATS)
def test_classes_of_others_are_not_imported(layout, tmp_path, monkeypatch):
    """A module that would run on import stays a name."""
    flag = tmp_path / "touched"
    (tmp_path / "evilmodule.py").write_text(f"open({str(flag)!r}, 'w')\nclass Thing: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    program = b"\x80\x02}X\x01\x00\x00\x00acevilmodule\nThing\n)\x81}X\x01\x00\x00\x00bK\x01sbs."
    read = public_checkpoint.read(write_program(tmp_path / "a.pt", program, layout))
    assert (read["a"].name, read["a"].state) == ("evilmodule.Thing", {"b": 1})
    assert not flag.exists() and "evilmodule" not in sys.modules


def test_settings_of_omegaconf_become_plain():
    """Nodes with children keep them in _content, leaves their value in _val."""
    leaf = Record("omegaconf.nodes.AnyNode", state={"_val": 4, "_parent": None})
    node = Record("omegaconf.dictconfig.DictConfig", state={"_content": {"heads": leaf, "more": "???"}, "_metadata": 1})
    assert plain({"model": node}) == {"model": {"heads": 4, "more": "???"}}


def test_settings_that_grow_without_end_are_an_error():
    """Ten lists, each of ten references to the next: ten thousand million values when written out."""
    value: list = [1]
    for _ in range(10):
        value = [value] * 10
    with pytest.raises(ValueError, match="without end"):
        plain(value)
    loop: list = []
    loop.append(loop)
    with pytest.raises(ValueError, match="without end"):
        plain(loop)


@pytest.fixture
def damaged(tmp_path) -> dict[str, Path]:
    content = {"model": {"a": torch.randn(1000), "b": torch.randn(10)}}
    files = {name: tmp_path / f"{name}.pt" for name in ("text", "empty", "folder", "nowhere", "noise", "compressed")}
    files["text"].write_text("hello\nworld\n")
    files["empty"].write_bytes(b"")
    files["folder"].mkdir()
    files["noise"].write_bytes(np.random.default_rng(0).bytes(5000))
    for layout in FORMATS:
        whole = write(tmp_path / f"{layout}.pt", content, layout).read_bytes()
        for share in (0.01, 0.5, 0.999):
            files[f"{layout} {share}"] = tmp_path / f"{layout}-{share}.pt"
            files[f"{layout} {share}"].write_bytes(whole[: round(share * len(whole))])
    with (
        zipfile.ZipFile(tmp_path / "zip.pt") as old,
        zipfile.ZipFile(files["compressed"], "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    files["flipped"] = tmp_path / "flipped.pt"
    data = bytearray((tmp_path / "zip.pt").read_bytes())
    data[len(data) // 2] ^= 1
    files["flipped"].write_bytes(data)
    files["no pickle"] = tmp_path / "no-pickle.pt"
    with zipfile.ZipFile(files["no pickle"], "w") as archive:
        archive.writestr("readme.txt", "x")
    files["list"] = write(tmp_path / "list.pt", [1, 2], "zip")
    return files


@pytest.mark.parametrize("layout", FORMATS)
def test_any_change_of_a_file_is_read_or_is_one_error(layout, tmp_path):
    """200 files with a few bytes changed at random: no other exception, no crash."""
    rng = np.random.default_rng(0)
    content = {"model": OrderedDict(a=torch.randn(4, 3)), "cfg": {"x": [1, "two", (3.0,)]}, "state": Thing()}
    whole = write(tmp_path / "whole.pt", content, layout).read_bytes()
    path, outcomes = tmp_path / "changed.pt", {"read": 0, "refused": 0}
    if layout == "zip":  # around it, checksums tell
        with zipfile.ZipFile(tmp_path / "whole.pt") as archive:
            whole = archive.read("whole/data.pkl")
    for _ in range(200):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.integers(1, 6)):
            data[place] = rng.integers(256)
        if layout == "zip":
            write_program(path, bytes(data), layout)
        else:
            path.write_bytes(data)
        try:
            public_checkpoint.read(path)
            outcomes["read"] += 1
        except UserError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 30


def test_what_is_no_checkpoint_is_one_line(damaged, tmp_path, capsys):
    """Cut off, of another kind, not there: one line that names the file; the command ends with 2."""
    for name, path in damaged.items():
        with pytest.raises(UserError) as caught:
            public_checkpoint.read(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value), name
    for name in ("text", "empty", "folder", "nowhere", "zip 0.5", "older 0.5"):
        assert command("import", damaged[name], tmp_path / "out") == 2, name
        said = capsys.readouterr().err
        assert said.startswith(f"error: {damaged[name]}: ") and said.count("\n") == 1, said
        assert not (tmp_path / "out").exists()


def test_a_hostile_file_ends_the_command_with_one_line(tmp_path, capsys):
    flag = tmp_path / "touched"
    path = write(tmp_path / "bad.pt", {"model": {}, "cfg": [Call(os.system, f"touch {flag}")]}, "zip")
    assert command("import", path, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {path}: refused") and "system" in said and said.count("\n") == 1
    assert not flag.exists() and not (tmp_path / "out").exists()


def test_the_machine_never_calls_what_a_file_names():
    """The functions it may call are few and its own."""
    assert set(inert_pickle.CALLS) == {
        "collections.OrderedDict", "torch._utils._rebuild_parameter", "torch.Size", "builtins.set", "_codecs.encode",
        "builtins.getattr",
    }  # fmt: skip
    assert all(function.__module__ == inert_pickle.__name__ for function in inert_pickle.CALLS.values())
    assert shutil.which("true")  # what the attacks above would have called
