"""The `mmspeech` command: joins the subcommands, and turns a user's mistake into one line."""

import importlib
import keyword
import sys
from typing import NoReturn

import typer

from mmspeech import __version__
from mmspeech.command import call

# Imported when named: `mmspeech --help` and `mmspeech score` need not wait for torch.
COMMANDS = {
    "prepare": "A corpus on disk -> Lhotse cuts: audio as 16 kHz FLAC, transcripts, speakers, alignments.",
    "extract": "Cuts -> mouth tracks, frames, phones, units; sentences -> units; decoded cuts -> transcribed ones.",
    "cluster": "Frames -> a codebook of hidden units; cuts -> cuts with units; purity against phones.",
    "pretrain": "Cuts with units -> an encoder, by masked prediction; or VATLM's phoneme-to-unit model.",
    "finetune": "An encoder and transcribed cuts -> a recognizer.",
    "decode": "A recognizer and cuts -> hypotheses, for any streams and noise.",
    "transcribe": "Any video or sound file and a recognizer -> its words, as text or subtitles.",
    "score": "Hypotheses -> word error rates, tables and a report.",
    "import": "A published checkpoint (AV-HuBERT, MuAViC, VATLM) -> an encoder or a recognizer; runs no code of it.",
    "export": "A trained model -> a folder of safetensors and YAML, without the experiment around it.",
    "schedule": "A pre-training YAML -> learning rate, kept streams and teacher over its updates, drawn.",
    "doctor": "What is installed, what is missing, what it would add and how to get it.",
}


def main() -> NoReturn:
    """Run the command line."""
    call(_app())


def _app() -> typer.Typer:
    app = typer.Typer(
        name="mmspeech",
        help="Multi-modal speech pre-training. The order of work: prepare, extract, cluster, pretrain, finetune, "
        "decode, score; recipes/*/run.sh runs it all.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
        rich_markup_mode=None,  # else brackets in a help text, as in data.cuts=[...], are taken for colours
    )

    @app.callback(invoke_without_command=True)
    def options(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
        if version:
            print(f"mmspeech {__version__}")
            raise typer.Exit

    wanted = next((word for word in sys.argv[1:] if word in COMMANDS), None)
    for name, text in COMMANDS.items():
        if wanted in (None, name):
            _add(app, name, text, load=wanted == name)
    return app


def _add(app: typer.Typer, name: str, text: str, load: bool) -> None:
    """Add one command; unless it was named, only its line of help."""
    if not load:
        app.command(name, help=text)(lambda: None)
        return
    command = importlib.import_module(f"mmspeech.cli.{name}{'_' if keyword.iskeyword(name) else ''}")
    if hasattr(command, "app"):
        app.add_typer(command.app, name=name, help=text, no_args_is_help=True)
    else:
        app.command(name, help=command.run.__doc__)(command.run)
