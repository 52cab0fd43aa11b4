"""`mmspeech prepare CORPUS ...`: each corpus's own function, its docstring as the help."""

import functools
import inspect
import re
import typing
from collections.abc import Callable
from typing import Annotated

import typer

from mmspeech.cli import prepare_noisy
from mmspeech.corpora import (
    clips,
    gigaspeech,
    grid,
    librispeech,
    lrs2,
    lrs3,
    musan,
    synth,
    synth_read,
    tedlium3,
    voxceleb2,
)

CORPORA: dict[str, Callable[..., None]] = {
    "lrs3": lrs3.prepare,
    "lrs2": lrs2.prepare,
    "voxceleb2": voxceleb2.prepare,
    "tedlium3": tedlium3.prepare,
    "gigaspeech": gigaspeech.prepare,
    "grid": grid.prepare,
    "clips": clips.prepare,
    "librispeech": librispeech.prepare,
    "musan": musan.prepare,
    "synth": synth.prepare,
    "synth-read": synth_read.prepare,
    "noisy": prepare_noisy.noisy,
}


def as_command(prepare: Callable[..., None]) -> Callable[..., None]:
    """The function with each entry of its docstring's `Args:` as the help of that argument or option.

    Parameters without a default, and folders, become arguments; the rest options. What is annotated for typer stays.
    """
    text, _, arguments = (inspect.getdoc(prepare) or "").partition("\nArgs:\n")
    arguments = arguments.partition("\n\n")[0]
    helps = {
        name: " ".join(line.split()) for name, line in re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", arguments, re.M)
    }
    hints = typing.get_type_hints(prepare, include_extras=True)

    @functools.wraps(prepare)
    def command(**values: object) -> None:
        prepare(**values)

    parameters = []
    for parameter in inspect.signature(prepare).parameters.values():
        name, hint = parameter.name, hints[parameter.name]
        if typing.get_origin(hint) is not Annotated:
            help_text = helps.get(name)
            if parameter.default is inspect.Parameter.empty or name in ("corpus", "out"):
                hint = Annotated[hint, typer.Argument(help=help_text, show_default=False)]
            else:
                # One name: without it typer invents --no-strict.
                hint = Annotated[hint, typer.Option(f"--{name.replace('_', '-')}", help=help_text)]
        parameters.append(parameter.replace(annotation=hint))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = text
    return command


app = typer.Typer()
for _name, _prepare in CORPORA.items():
    app.command(_name)(as_command(_prepare))
