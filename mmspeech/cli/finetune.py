"""`mmspeech finetune`: an encoder and transcribed cuts -> a recognizer."""

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from torch import Tensor

from mmspeech import config as configs
from mmspeech import dist, files
from mmspeech.batch import Batch
from mmspeech.cli import dry_run as dry
from mmspeech.cli import sweep
from mmspeech.console import say
from mmspeech.data import cutfiles
from mmspeech.data.loader import DataConfig, TrainingStream, make_reading, validation_batches
from mmspeech.data.reading import has_stream
from mmspeech.data.text import TRANSCRIPT, TokenizerConfig, check_target, texts_of, train_tokenizer
from mmspeech.errors import UserError
from mmspeech.finetuning import recognizer
from mmspeech.finetuning.ctc import CTC, CTCConfig
from mmspeech.finetuning.seq2seq import Seq2Seq, Seq2SeqConfig
from mmspeech.models.av_encoder import AVEncoder, AVEncoderConfig, load_encoder
from mmspeech.plan import check_no_plan
from mmspeech.training import checkpoint, origin, trainer
from mmspeech.training.trainer import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class FinetuneRun:
    """What all fine-tuning runs have in common."""

    seed: int = 1337
    encoder: Path | None = None  # folder of the pre-trained encoder (EXP/encoder); --encoder sets it
    pretrained: bool = True  # false: the encoder's sizes, but random weights (the paper's rows without PT)
    streams: list[str] = field(default_factory=list)  # those of the labelled data that are used; empty: all
    remove: list[str] = field(default_factory=list)  # streams whose front-ends are left out (VATLM IV-C)
    valid_streams: list[str] = field(default_factory=list)  # subsets (`audio+video`) validated on; empty: what there is
    text: str = TRANSCRIPT  # what is learnt: transcript, or translation.LANGUAGE as in translation.es
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig
    training: TrainingConfig

    def __post_init__(self) -> None:
        check_target(self.text)


@dataclass(frozen=True, kw_only=True)
class Seq2SeqRun(FinetuneRun):
    """Fine-tuning with an attention decoder."""

    task: Literal["seq2seq"]
    objective: Seq2SeqConfig = field(default_factory=Seq2SeqConfig)


@dataclass(frozen=True, kw_only=True)
class CTCRun(FinetuneRun):
    """Fine-tuning with CTC."""

    task: Literal["ctc"]
    objective: CTCConfig = field(default_factory=CTCConfig)


RUNS = {"seq2seq": (Seq2SeqRun, Seq2Seq), "ctc": (CTCRun, CTC)}


def run(
    conf: Annotated[
        Path, typer.Argument(help="YAML of the run, e.g. recipes/lrs3/conf/uhubert/finetune/synth-av.yaml.")
    ],
    exp: Annotated[Path, typer.Argument(help="Folder of the experiment; a run that stopped there goes on.")],
    encoder: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the pre-trained encoder, e.g. exp/iter2/encoder; where its weights are not wanted "
            "(`pretrained: false`, --dry-run) also the YAML of a pre-training run."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting: --set training.lr=1e-3. Repeatable.")
    ] = None,
    noise_sets: Annotated[
        Path | None, typer.Option(help="For a CONF with `sweep:`: frozen noise of the validation cuts.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build the model, take one update on an invented clip, write nothing.")
    ] = False,
) -> None:
    """Fine-tune a recognizer, or a translator: an attention decoder or CTC on a pre-trained encoder.

    Reads transcribed cuts (translated ones, if CONF says `text: translation.es`), writes EXP/model (config.yaml,
    model.safetensors, tokenizer), EXP/checkpoints, EXP/tensorboard and EXP/metrics.jsonl. The weights that are kept are
    the best on the validation cuts, over the streams of `valid_streams`. Started again after a stop it goes on; with
    its output current it does nothing.

    If CONF has `sweep:`, every combination of its values is tuned, in EXP/NAME, and decoded on the validation cuts;
    EXP/model is a link to the one with the best mean over streams and noises, EXP/sweep.json has all figures.

    --dry-run tells sizes and memory of a configuration without any corpus.

    Example: mmspeech finetune recipes/lrs3/conf/uhubert/finetune/synth-av.yaml exp/mine-av --encoder exp/iter2/encoder
    --set "data.cuts=[exp/mouth/cuts_trainval.jsonl.gz]" --set "data.valid_cuts=[exp/mouth/cuts_valid.jsonl.gz]"
    """
    sets = list(overrides or [])
    if sweeps := "sweep" in configs.read(conf):
        if not dry_run:
            sweep.run(conf, sets, exp, noise_sets, lambda more: read(conf, encoder, [*sets, *more]), tune)
            return
    elif named := next((one for one in sets if one.startswith("sweep")), None):
        raise UserError(f"--set {named}: {conf} has no `sweep:`; write one into a file")
    if noise_sets is not None and not sweeps:
        raise UserError(f"--noise-sets: is for a CONF with `sweep:`, {conf} has none; leave it out")
    config = read(conf, encoder, sets)
    if dry_run:
        device = dist.start()
        assert config.encoder is not None  # `read` has looked
        start = encoder_to_tune(config.encoder, weights=False)
        start = start.without(config.remove)
        streams = chosen_streams(start, config.streams, conf)
        size = config.tokenizer.size or dry.VOCABULARY
        objective = build(start, config, size)
        dry.one_update(objective, dry.invented(start.frontends, streams, vocabulary=size), config.training, device)
        return
    tune(config, conf, exp)


def read(conf: Path, encoder: Path | None, overrides: list[str]) -> Seq2SeqRun | CTCRun:
    """The settings of a run. Raises UserError."""
    tree = configs.read(conf, overrides)
    check_no_plan(tree, conf, "finetune")
    tree.pop("sweep", None)
    if encoder:
        tree["encoder"] = str(encoder)
    task = tree.get("task")
    if not isinstance(task, str) or task not in RUNS:
        raise UserError(f"{conf}: `task` is {task!r}; expected one of {', '.join(RUNS)}")
    if isinstance(tree.get("data"), dict) and "streams" in tree["data"]:
        raise UserError(f"{conf}: `data.streams` is read as in pre-training; choose among them with `streams: [audio]`")
    config: Seq2SeqRun | CTCRun = configs.build(tree, RUNS[task][0], conf)  # type: ignore[arg-type]
    if config.encoder is None:
        raise UserError(f"{conf}: `encoder` names no pre-trained encoder; give --encoder EXP/encoder")
    return config


def build(encoder: AVEncoder, config: Seq2SeqRun | CTCRun, vocabulary: int) -> Seq2Seq | CTC:
    """The objective of a run."""
    return RUNS[config.task][1](encoder, config.objective, vocabulary, seed=config.seed)  # type: ignore[arg-type]


def tune(config: Seq2SeqRun | CTCRun, conf: Path, exp: Path) -> None:
    """Fine-tune in EXP, if that is not done. Raises UserError for what a user can mend; `conf` is named in errors."""
    assert config.encoder is not None  # `read` has looked
    if not config.data.train_files:
        raise UserError(
            'data.cuts: names no cuts; give transcribed ones, e.g. --set "data.cuts=[exp/mouth/cuts_trainval.jsonl.gz]"'
        )
    # `origin` tells what must be the same: a run may go on for longer.
    inputs = [config.encoder, *config.data.files(), *([config.tokenizer.lexicon] if config.tokenizer.lexicon else [])]
    stage = files.Stage(exp / "model", inputs=inputs, settings=origin.settings(config), anew=True)
    if stage.is_current():
        return
    device = dist.start()
    origin.check(exp, stage)
    start = encoder_to_tune(config.encoder, weights=config.pretrained).without(config.remove)
    torch.manual_seed(config.seed)
    if not config.pretrained:
        start = AVEncoder(start.config, start.inputs)
    labelled = cutfiles.open_cuts(config.data.train_files)
    if config.data.max_items is not None:
        labelled = labelled.subset(first=config.data.max_items)
    told = list(texts_of(labelled, config.text))
    if not told:
        names = ", ".join(map(str, config.data.train_files))
        raise UserError(f"{names}: no cut has a {config.text}; give cuts that have one")
    tokenizer = train_tokenizer(told, config.tokenizer)
    objective = build(start, config, tokenizer.size)

    data = dataclasses.replace(config.data, streams=chosen_streams(start, config.streams, conf))
    training = make_reading(data, seed=config.seed, train=True, encode_text=tokenizer.encode, text=config.text)
    stream = TrainingStream(data, training, seed=config.seed)
    validation = None
    if data.valid_cuts:
        subsets = subsets_there(config.valid_streams, start, data.valid_cuts, conf)
        seen = dataclasses.replace(data, streams=chosen_streams(start, [], conf)) if subsets else data
        watching = make_reading(seen, seed=config.seed, train=False, encode_text=tokenizer.encode, text=config.text)
        batches = validation_batches(seen, watching)
        validation = EachSubset(batches, subsets) if subsets else batches
    say(f"{exp}: {tokenizer.size} {tokenizer.kind}, {stream.seconds:.0f} s x {stream.batches_per_update} per update")
    trainer.run(objective, stream, config.training, exp, validation=validation, device=device)
    weights = checkpoint.whole_weights(objective)
    if dist.is_first():
        with stage.writing() as folder:
            recognizer.save(objective, tokenizer, folder, weights, text=config.text)
            files.write_json(folder / "data.json", configs.plain(config.data))  # where the cuts lie: no setting
        say(f"{exp / 'model'}: written")


def encoder_to_tune(place: Path, *, weights: bool) -> AVEncoder:
    """The encoder in a folder; where its weights are not wanted, also one of the sizes in a pre-training YAML.

    Raises UserError if it is neither.
    """
    if place.suffix != ".yaml":
        return load_encoder(place)
    if weights:
        raise UserError(f"{place}: no folder with a pre-trained encoder; give one, or set `pretrained: false`")
    tree = configs.read(place)
    model = configs.build(tree.get("model", {}), AVEncoderConfig, place)
    return AVEncoder(model, tree.get("data", {}).get("streams") or DataConfig().streams)


def chosen_streams(encoder: AVEncoder, names: list[str], conf: Path) -> dict[str, dict]:
    """How the named streams of an encoder are read; all of them if none is named."""
    for name in names:
        if name not in encoder.inputs:
            raise UserError(f"{conf}: stream `{name}` is not one of the encoder's: {', '.join(encoder.inputs)}")
    return {name: encoder.inputs[name] for name in names or encoder.inputs}


def subsets_there(subsets: list[str], encoder: AVEncoder, cuts: list[Path], conf: Path) -> list[str]:
    """The subsets (`audio+video`) that some cut has all streams of; a line for each other one.

    Raises UserError for streams that the encoder does not have, and if no subset is left.
    """
    wanted = {subset: chosen_streams(encoder, subset.split("+"), conf) for subset in subsets}
    missing = dict(wanted)
    for cut in cutfiles.open_cuts(cuts):
        if not missing:
            break
        for subset in list(missing):
            if all(has_stream(cut, settings) for settings in wanted[subset].values()):
                del missing[subset]
    names = ", ".join(map(str, cuts))
    if subsets and len(missing) == len(subsets):
        raise UserError(f"{names}: no cut has the streams of {', '.join(subsets)}; change `valid_streams` or the cuts")
    for subset in missing:
        say(f"validation: no cut of {names} has {subset}; it is left out")
    return [subset for subset in subsets if subset not in missing]


@dataclass
class EachSubset:
    """Validation batches, once for each subset of streams, which only items that have all of them are in.

    Figures are means over all that is yielded: over the subsets too, where every item has all streams.
    """

    batches: Iterable[tuple[str, Batch]]
    subsets: list[str]

    def __iter__(self) -> Iterator[tuple[str, Batch]]:
        for name, batch in self.batches:
            for subset in self.subsets:
                kept = only_streams(batch, subset.split("+"))
                if kept is not None:
                    yield name, kept


def only_streams(batch: Batch, names: list[str]) -> Batch | None:
    """The items that have all the named streams, with these only; None if there is none. For batches on the host."""
    if any(name not in batch.streams for name in names):
        return None
    rows = torch.stack([batch.lengths[name] > 0 for name in names]).all(0).nonzero().squeeze(1)
    if not len(rows):
        return None

    def pick(tensors: dict[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
        return {name: tensors[name][rows] for name in wanted if name in tensors}

    return Batch(
        ids=[batch.ids[row] for row in rows],
        streams=pick(batch.streams, names),
        lengths=pick(batch.lengths, names),
        targets=pick(batch.targets, batch.targets),
        target_lengths=pick(batch.target_lengths, batch.target_lengths),
        present=pick(batch.present, names),
        texts=[batch.texts[row] for row in rows],
        passes=[batch.passes[row] for row in rows],
    )
