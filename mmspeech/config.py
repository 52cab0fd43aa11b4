"""YAML files -> frozen dataclasses: small files that name what differs from their `base:`, and errors that help.

    base: base.yaml            # relative to this file; may have a base of its own
    objective:
      temperature: 0.1

A key that no dataclass knows, or a value of another type, is an error that names the file and the key.
"""

import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from mmspeech.errors import UserError
from mmspeech.files import replacing

Config = TypeVar("Config")


def load(file: Path, cls: type[Config], overrides: Sequence[str] = ()) -> Config:
    """Read `file` with its bases, apply `a.b=value` overrides, return an instance of the dataclass `cls`.

    Raises UserError for a missing file, bad YAML, an unknown key, a missing one, or a value of another type.
    """
    return build(read(file, overrides), cls, file)


def read(file: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The merged tree of `file`, its bases and the overrides, before any check of keys."""
    return _override(_read_with_bases(file, ()), overrides)


def tree_of(overrides: Sequence[str]) -> dict[str, Any]:
    """The tree that `a.b=value` overrides make on their own."""
    return _override({}, overrides)


def build(tree: Mapping[str, Any], cls: type[Config], file: Path) -> Config:
    """An instance of the dataclass `cls` from a tree; `file` only names the place in errors."""
    return _build(tree, cls, file, "")


def dump(config: object, file: Path) -> None:
    """Write a dataclass (or a tree) as YAML, so that `load` gives it back; atomic."""
    with replacing(file) as temporary:
        temporary.write_text(yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True))


def plain(value: object) -> object:
    """The value with dataclasses as tables, paths as text and tuples as lists: what YAML and JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def check_keys(given: Mapping[str, object], cls: type, file: Path, prefix: str = "") -> None:
    """Raise UserError for the first key of `given` that is not a field of the dataclass `cls`."""
    known = [field.name for field in dataclasses.fields(cls)]
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)  # YAML reads a bare `on:` as a bool
            hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(known)}"
            raise UserError(f"{file}: `{prefix}{key}` is not a setting of {cls.__name__}; {hint}")


def arguments(
    function: Callable[..., object], given: Mapping[str, Any], where: str, name: str, leave_out: Collection[str] = ()
) -> dict[str, Any]:
    """`given`, settings by name, as arguments of the function, which are keys of YAML.

    Raises UserError for one that the function lacks, one that it needs, or a value of another type.

    Args:
        where: the key that holds them, e.g. `data.streams.audio`.
        name: what the function is called there.
        leave_out: arguments that are no settings.
    """
    parameters = {
        key: parameter for key, parameter in inspect.signature(function).parameters.items() if key not in leave_out
    }
    for key in given:
        if key not in parameters:
            raise UserError(f"{where}.{key}: no setting of `{name}`; there is {', '.join(parameters) or 'none'}")
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in given:
            raise UserError(f"{where}.{key}: missing; `{name}` needs it")
    return {key: _convert(value, parameters[key].annotation, Path(where), key) for key, value in given.items()}


def _override(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise UserError(f"--set {override}: expected key=value, e.g. --set training.updates=100")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"--set {override}: the value is not valid YAML; quote it") from None
        node = tree
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UserError(f"--set {override}: `{parent}` holds a value, not settings; check the key")
        node[last] = parsed
    return tree


def _read_with_bases(file: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if file.resolve() in seen:
        raise UserError(f"{file}: its `base:` leads back to itself; remove one of the links")
    try:
        tree = yaml.safe_load(file.read_text())
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{file}: no such configuration file; see recipes/*/conf for those that exist") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not valid YAML ({' '.join(str(error).split())}); mend the line") from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise UserError(f"{file}: expected `key: value` lines, found a {type(tree).__name__}; mend the file")
    base = tree.pop("base", None)
    if base is None:
        return tree
    below = file.parent / str(base)
    if not below.is_file():
        raise UserError(f"{file}: `base: {base}` is relative to this file, but {below} is not there; mend the path")
    return _merge(_read_with_bases(below, (*seen, file.resolve())), tree)


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Settings are merged level by level; lists and tables of shares (`a+b: 0.5`) are replaced as a whole."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping) and all(str(k).isidentifier() for k in old):
            value = _merge(old, value)
        merged[key] = value
    return merged


def _build(tree: object, cls: type[Config], file: Path, prefix: str) -> Config:
    if not isinstance(tree, Mapping):
        raise UserError(f"{file}: `{prefix.rstrip('.')}` expects settings of {cls.__name__}, found {tree!r}")
    check_keys(tree, cls, file, prefix)
    hints = typing.get_type_hints(cls)
    values = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name in tree:
            values[field.name] = _convert(tree[field.name], hints[field.name], file, f"{prefix}{field.name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{file}: `{prefix}{field.name}` of {cls.__name__} has no default; add it")
    try:
        return cls(**values)
    except UserError as error:  # a dataclass that checks itself knows neither its file nor its place in it
        raise UserError(f"{file}: {prefix}{error}") from None


def _convert(value: object, kind: Any, file: Path, key: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        kinds = [one for one in arguments if one is not type(None)]
        for one in kinds[:-1]:
            try:
                return _convert(value, one, file, key)
            except UserError:
                continue
        return _convert(value, kinds[-1], file, key)
    if origin is typing.Literal:
        if value in arguments:
            return value
        raise UserError(f"{file}: `{key}` is {value!r}; expected one of {', '.join(map(str, arguments))}")
    if dataclasses.is_dataclass(kind):
        return _build(value, kind, file, f"{key}.")  # type: ignore[arg-type]
    if origin in (list, tuple, Sequence) and isinstance(value, list):
        if origin is tuple and len(value) != len(arguments):
            raise UserError(f"{file}: `{key}` is {value!r}; expected {len(arguments)} values")
        inner = arguments[0] if arguments else Any
        converted = [_convert(item, inner, file, f"{key}[{i}]") for i, item in enumerate(value)]
        return tuple(converted) if origin is tuple else converted
    if origin is dict and isinstance(value, Mapping):
        return {str(name): _convert(item, arguments[1], file, f"{key}.{name}") for name, item in value.items()}
    if kind is Any:
        return value
    if kind is float and not isinstance(value, bool):
        try:
            return float(value)  # type: ignore[arg-type]  # YAML 1.1 reads 1e-3 as text
        except (TypeError, ValueError):
            pass
    if kind is Path and isinstance(value, str):
        return Path(value)
    if isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    if origin in (list, Sequence) and isinstance(value, str | int | float):
        raise UserError(f'{file}: `{key}` is {value!r}; expected a list: --set "{key}=[{value}]"')
    wanted = getattr(kind, "__name__", str(kind)) if not arguments else str(kind)
    raise UserError(f"{file}: `{key}` is {value!r}; expected {wanted}")
