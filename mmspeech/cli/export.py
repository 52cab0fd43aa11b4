"""`mmspeech export`: a trained model -> a folder of safetensors and YAML."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from torch import Tensor

from mmspeech import config as configs
from mmspeech import files
from mmspeech.console import say
from mmspeech.data.text import Tokenizer
from mmspeech.errors import UserError
from mmspeech.finetuning import recognizer
from mmspeech.models.av_encoder import AVEncoder, AVEncoderConfig, load_encoder, save_encoder
from mmspeech.training import checkpoint


def run(
    model: Annotated[Path, typer.Argument(help="An encoder's or a recognizer's folder, or a file of EXP/checkpoints.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
) -> None:
    """Write a model for others: weights as safetensors, settings as YAML, nothing of the experiment around it.

    MODEL is the folder of an encoder (OUT gets encoder.safetensors, config.yaml) or of a recognizer (model.safetensors,
    config.yaml and its tokenizer), or a checkpoint of a run, whose weights then take the place of the final ones.
    Every command that takes a model takes OUT. The terms of use of an imported model (import.json) go with it.

    Example: mmspeech export exp/iter2/checkpoints/step-0001000.ckpt exported
    """
    if model.is_file() and model.suffix != ".ckpt":
        raise UserError(f"{model}: expected the folder of a model, or a file of EXP/checkpoints/*.ckpt; give one")
    stage = files.Stage(out, [model], {"export": "model"})
    if stage.is_current():
        return
    weights = None if model.is_dir() else checkpoint.read(model)["model"]
    source = model if weights is None else model.parent.parent / "model"
    with stage.writing() as folder:
        if (source / "model.safetensors").exists():
            loaded = recognizer.load(source).objective
            if weights is not None:
                checkpoint.load_model(loaded, weights, model)
            recognizer.save(loaded, Tokenizer.load(source), folder)
        else:
            save_encoder(load_encoder(model) if weights is None else encoder_of_run(model, weights), folder)
            if (source / "objective.safetensors").exists():
                for name in ("objective.safetensors", "objective.yaml"):
                    shutil.copy(source / name, folder)
        if (source / "import.json").exists():
            shutil.copy(source / "import.json", folder)
    say(f"{out}: written")


def encoder_of_run(file: Path, weights: Mapping[str, Tensor]) -> AVEncoder:
    """The encoder of a pre-training run at one of its checkpoints."""
    begun = file.parent.parent / "run.json"
    try:
        settings = json.loads(begun.read_text())["settings"]
    except (OSError, ValueError, KeyError):
        raise UserError(f"{file}: what it is a checkpoint of should stand in {begun}; export it from its run") from None
    if "model" not in settings:
        raise UserError(f"{file}: of a fine-tuning that has not ended; let it end, its tokenizer is written then")
    encoder = AVEncoder(configs.build(settings["model"], AVEncoderConfig, begun), settings["data"]["streams"])
    own = {name.removeprefix("encoder."): tensor for name, tensor in weights.items() if name.startswith("encoder.")}
    checkpoint.load_model(encoder, own, file)
    return encoder
