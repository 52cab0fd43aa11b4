"""`mmspeech import`: a published checkpoint -> an encoder or a recognizer."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mmspeech import config as configs
from mmspeech import files
from mmspeech.console import console, is_first_process, say
from mmspeech.errors import UserError
from mmspeech.finetuning import recognizer
from mmspeech.models import import_avhubert, public_model
from mmspeech.models.av_encoder import save_encoder
from mmspeech.models.import_avhubert import Report
from mmspeech.models.public_model import Public
from mmspeech.models.public_names import head_state
from mmspeech.training.checkpoint import write_weights

TERMS = {
    "AV-HuBERT": (
        "research only, no commercial use: the AV-HuBERT licence, for MuAViC's models CC BY-NC 4.0",
        "https://facebookresearch.github.io/av_hubert and https://github.com/facebookresearch/muavic",
    ),
    "VATLM": (
        "research only, no commercial use: built on AV-HuBERT, whose licence says so; see its authors' LICENSE too",
        "https://github.com/microsoft/SpeechT5/tree/main/VATLM",
    ),
}


def run(
    checkpoint: Annotated[Path, typer.Argument(help="The file as published, e.g. base_vox_iter5.pt.")],
    out: Annotated[Path, typer.Argument(help="Folder to write, e.g. exp/base.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="SentencePiece model of a fine-tuned checkpoint that has none in it.")
    ] = None,
) -> None:
    """Read a published checkpoint of AV-HuBERT, MuAViC or VATLM; fairseq is not needed, no code of the file is run.

    A pre-trained one becomes an encoder: OUT/encoder.safetensors and config.yaml, for `mmspeech finetune --encoder OUT`
    or `mmspeech extract features --encoder OUT`, of VATLM also from phones (`--modalities text`);
    OUT/objective.safetensors keeps its codebook, projection and mask embedding. A fine-tuned one becomes a recognizer
    for `mmspeech decode OUT`. OUT/import.json lists what became of every tensor, the settings and the terms of use.

    Example: mmspeech import base_vox_iter5.pt exp/base
    """
    if not checkpoint.is_file():
        found = "a folder" if checkpoint.is_dir() else "no such file"
        raise UserError(f"{checkpoint}: {found}; expected a checkpoint file as published; mend the path")
    if checkpoint.suffix == ".safetensors":
        raise UserError(f"{checkpoint}: weights from a model's folder, no published file; give {checkpoint.parent}")
    inputs = [checkpoint, *([tokenizer] if tokenizer else [])]
    stage = files.Stage(out, inputs, {"import": "published checkpoint"})
    if stage.is_current():
        return
    public = public_model.read(checkpoint)
    report = import_avhubert.compare(public)
    licence, published = TERMS[public.system]
    say(f"{checkpoint}: {public.kind}; {licence}; published at {published}")
    show(report)
    with stage.writing() as folder:
        if public.decoder is None:
            write_encoder(public, folder)
            use = f"mmspeech finetune CONF EXP --encoder {out}"
        else:
            model = tokenizer.read_bytes() if tokenizer else None
            pieces = import_avhubert.tokenizer_of(public, model)
            recognizer.save(import_avhubert.seq2seq_of(public), pieces, folder)
            letters = "".join(name[0] for name in ("audio", "video") if name in (public.task.get("modalities") or []))
            use = f"mmspeech decode {out} CUTS DIR --modality {letters or 'av'}"
        facts = {
            "checkpoint": str(checkpoint),
            "sha256": stage.inputs[str(checkpoint)],
            "kind": public.kind,
            "licence": licence,
            "published": published,
            "units": public.units,
            "phones": public.phone_symbols,
            "entries": asdict(report),
            "settings": {"model": public.model, "criterion": public.criterion, "tuning": public.tuning},
            "task": public.task,
        }
        files.write_json(folder / "import.json", facts)
    say(f"{out}: written; use it with `{use}`")


def write_encoder(public: Public, folder: Path) -> None:
    """The encoder, and beside it what only its pre-training needs."""
    encoder = import_avhubert.encoder_of(public)
    save_encoder(encoder, folder)
    if "text" in encoder.inputs and import_avhubert.phone_rows(public) is None:
        say(
            f"{public.path}: its dictionary does not name each of the 41 phones once; their ids are taken to be those "
            "of `mmspeech extract phones`: AA to ZH from 4 on, then SIL, SPN. Compare `phones` in import.json"
        )
    if not {"mask_emb", "label_embs_concat"} <= public.encoder.keys():
        return
    write_weights(folder / "objective.safetensors", head_state(public.encoder, public.masking, public.system))
    tree: dict[str, object] = {"units": public.units}
    try:
        tree["objective"] = import_avhubert.objective_config(public)
    except UserError as error:
        say(f"{error} (the encoder is written; of the objective its tensors alone)")
    configs.dump(tree, folder / "objective.yaml")
    classes, offset = public.units["classes"], public.units["offset"]
    say(f"{classes} classes of units; cluster 0 is class {offset}, so there are {classes - offset} clusters")


def show(report: Report) -> None:
    """A table of what became of the entries; unknown ones by name."""
    table = Table("entries", "", "of them")
    for name, what in {
        "matched": report.matched,
        "reshaped": report.reshaped,
        "left out": report.left_out,
        "unknown": report.unknown,
        "missing": report.missing,
    }.items():
        some = ", ".join(list(what)[:3])
        table.add_row(name, str(len(what)), ascii(some)[1:-1] + (", ..." if len(what) > 3 else ""))
    if is_first_process():
        console.print(table)
    if report.unknown:
        names = ", ".join(ascii(name)[1:-1] for name in report.unknown[:5])
        say(f"unknown and not read: {names}{', ...' if len(report.unknown) > 5 else ''}; import.json lists all")
