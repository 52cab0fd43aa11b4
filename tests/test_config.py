"""YAML to dataclasses: bases, overrides, and messages that name the place and the way out."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from mmspeech import config
from mmspeech.errors import UserError

RECIPES = Path(__file__).parents[1] / "recipes"


@dataclass(frozen=True, kw_only=True)
class Inner:
    temperature: float = 0.1
    shares: dict[str, float] = field(default_factory=lambda: {"a+b": 0.5, "a": 0.5})


@dataclass(frozen=True, kw_only=True)
class Outer:
    size: int
    kind: Literal["x", "y"] = "x"
    inner: Inner = field(default_factory=Inner)
    paths: list[Path] = field(default_factory=list)
    limit: float | None = None


def write(folder, name, text):
    (folder / name).write_text(text)
    return folder / name


def test_a_file_names_only_what_differs_from_its_base(tmp_path):
    """Settings merge level by level; a table of shares is replaced as a whole."""
    write(tmp_path, "base.yaml", "size: 3\ninner: {temperature: 0.5, shares: {a+b: 1.0}}\n")
    file = write(tmp_path, "own.yaml", "base: base.yaml\nlimit: 1e-3\ninner: {shares: {a: 1.0}}\n")
    loaded = config.load(file, Outer, ["kind=y", "paths=[p/q]"])
    assert loaded == Outer(
        size=3, kind="y", limit=1e-3, paths=[Path("p/q")], inner=Inner(temperature=0.5, shares={"a": 1.0})
    )


def test_what_is_dumped_loads_again(tmp_path):
    value = Outer(size=2, paths=[Path("a")], limit=2.5)
    config.dump(value, tmp_path / "out.yaml")
    assert config.load(tmp_path / "out.yaml", Outer) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size: 1\ninner: {temprature: 1}", r"own.yaml: `inner.temprature` .* did you mean `temperature`\?"),
        ("size: many", r"`size` is 'many'; expected int"),
        ("size: true", r"`size` is True; expected int"),
        ("kind: x", r"`size` of Outer has no default; add it"),
        ("size: 1\nkind: z", r"`kind` is 'z'; expected one of x, y"),
        ("size: [", r"not valid YAML"),
        ("base: own.yaml", r"leads back to itself"),
        ("base: up/none.yaml", r"own.yaml: `base: up/none.yaml` is relative to this file, but .*/up/none.yaml is not"),
        ("size: 1\npaths: a.gz", r"`paths` is 'a.gz'; expected a list: --set \"paths=\[a.gz\]\""),
        ("- 1", r"expected `key: value` lines"),
    ],
)
def test_mistakes_name_the_file_the_key_and_the_way_out(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        config.load(write(tmp_path, "own.yaml", text), Outer)


def test_missing_file_and_bad_override_are_one_line(tmp_path):
    with pytest.raises(UserError, match="no such configuration file"):
        config.load(tmp_path / "none.yaml", Outer)
    with pytest.raises(UserError, match="expected key=value"):
        config.load(write(tmp_path, "own.yaml", "size: 1"), Outer, ["size"])
