"""A fine-tuned model on disk: everything that decoding needs in one folder.

config.yaml          task, text (transcript or translation.es), objective, encoder, how its streams are read
model.safetensors    weights of encoder and head
tokenizer.json ...   written by the tokenizer itself
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import torch as safetensors
from torch import Tensor

from mmspeech import config as configs
from mmspeech.errors import UserError
from mmspeech.files import replace_folder, replacing
from mmspeech.finetuning.ctc import CTC, CTCConfig
from mmspeech.finetuning.seq2seq import Seq2Seq, Seq2SeqConfig
from mmspeech.models.av_encoder import AVEncoder, AVEncoderConfig, check_no_file, load_weights

TASKS: dict[str, tuple[type, type]] = {"seq2seq": (Seq2SeqConfig, Seq2Seq), "ctc": (CTCConfig, CTC)}


class SavesItself(Protocol):
    """A tokenizer, of which nothing else is needed here."""

    def save(self, folder: Path) -> None: ...


@dataclass
class Recognizer:
    """A fine-tuned model in evaluation mode; its tokenizer lies in the same folder."""

    task: str
    objective: Seq2Seq | CTC
    folder: Path
    text: str = "transcript"  # what it makes of speech; or translation.LANGUAGE

    @property
    def inputs(self) -> dict[str, Any]:
        """How each stream is read."""
        return self.objective.encoder.inputs

    @property
    def removed(self) -> list[str]:
        """Streams whose front-ends were left out in fine-tuning."""
        return self.objective.encoder.removed


def save(
    objective: Seq2Seq | CTC,
    tokenizer: SavesItself,
    folder: Path,
    weights: Mapping[str, Tensor] | None = None,
    text: str = "transcript",
) -> None:
    """Write a recognizer's folder; what lay there is replaced when all is written.

    Args:
        text: what it makes of speech, `transcript` or `translation.LANGUAGE`.
        weights: whole ones, for an objective whose own are sharded (FSDP2).
    """
    task = next(name for name, (_, kind) in TASKS.items() if isinstance(objective, kind))  # FSDP2 makes a subclass
    temporary = folder.with_name(f".new.{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        tokenizer.save(temporary)
        own = objective.state_dict() if weights is None else weights
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in own.items()}
        with replacing(temporary / "model.safetensors") as path:
            path.write_bytes(safetensors.save(weights))
        tree = {
            "task": task,
            "text": text,
            "vocab_size": objective.vocab_size,
            "objective": asdict(objective.config),
            "model": asdict(objective.encoder.config),
            "inputs": objective.encoder.inputs,
        }
        configs.dump(tree, temporary / "config.yaml")
        replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load(folder: Path, device: torch.device | str = "cpu") -> Recognizer:
    """The recognizer in a folder written by `save`, in evaluation mode.

    Raises UserError if it is no such folder, or if its weights do not fit its config.
    """
    file, weights = folder / "config.yaml", folder / "model.safetensors"
    check_no_file(folder)
    if (folder / "encoder.safetensors").exists() and not weights.exists():
        raise UserError(f"{folder}: is an encoder; tune it with `mmspeech finetune CONF EXP --encoder {folder}`")
    if not file.exists() or not weights.exists():
        inside = (folder / "model" / "model.safetensors").exists()
        advice = f"give {folder / 'model'}" if inside else "give the folder of a fine-tuned model"
        raise UserError(f"{folder}: expected config.yaml and model.safetensors; {advice}")
    tree = configs.read(file)
    task = tree.get("task")
    if task not in TASKS or not isinstance(tree.get("vocab_size"), int):
        raise UserError(f"{file}: expected a task of {', '.join(TASKS)} and its vocab_size; give a fine-tuned model")
    kind, objective_class = TASKS[task]
    encoder = AVEncoder(configs.build(tree.get("model", {}), AVEncoderConfig, file), tree.get("inputs"))
    objective = objective_class(encoder, configs.build(tree.get("objective", {}), kind, file), tree["vocab_size"])
    load_weights(objective, weights)
    return Recognizer(task, objective.to(device).eval(), folder, str(tree.get("text", "transcript")))
