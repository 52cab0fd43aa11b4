"""`mmspeech pretrain`: a system's YAML and cuts with units -> an encoder."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from mmspeech import config as configs
from mmspeech import dist, files
from mmspeech.cli import dry_run as dry
from mmspeech.console import say
from mmspeech.data.loader import DataConfig, TrainingStream, make_reading, validation_batches
from mmspeech.errors import UserError
from mmspeech.models.av_encoder import AVEncoder, AVEncoderConfig, load_weights, save_encoder
from mmspeech.plan import check_no_plan
from mmspeech.pretraining.avdata2vec import AVData2vec, AVData2vecConfig
from mmspeech.pretraining.uhubert import UHubert, UHubertConfig
from mmspeech.training import checkpoint, origin, trainer
from mmspeech.training.trainer import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class PretrainRun:
    """What all pre-training runs have in common."""

    seed: int = 1337
    model: AVEncoderConfig = field(default_factory=AVEncoderConfig)
    data: DataConfig
    training: TrainingConfig
    init: Path | None = None  # folder of an encoder to start from; else from random weights

    @property
    def num_units(self) -> int:
        """Size of the codebook that is predicted; 0: none is."""
        return 0


@dataclass(frozen=True, kw_only=True)
class UHubertRun(PretrainRun):
    """u-HuBERT or AV-HuBERT."""

    system: Literal["uhubert"]
    objective: UHubertConfig

    @property
    def num_units(self) -> int:
        return self.objective.num_units


@dataclass(frozen=True, kw_only=True)
class AVData2vecRun(PretrainRun):
    """AV-data2vec, or A-data2vec."""

    system: Literal["av-data2vec"]
    objective: AVData2vecConfig = field(default_factory=AVData2vecConfig)


RUNS = {"uhubert": (UHubertRun, UHubert), "av-data2vec": (AVData2vecRun, AVData2vec)}


def run(
    conf: Annotated[Path, typer.Argument(help="YAML of the run, e.g. .../conf/uhubert/pretrain/synth-2.yaml.")],
    exp: Annotated[Path, typer.Argument(help="Folder of the experiment; a run that stopped there goes on.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting: --set training.updates=100. Repeatable.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build the model, take one update on an invented clip, write nothing.")
    ] = False,
) -> None:
    """Pre-train an encoder by masked prediction.

    Reads cuts with units, writes EXP/encoder (config.yaml, encoder.safetensors), EXP/checkpoints, EXP/tensorboard and
    EXP/metrics.jsonl. Started again after a stop, even kill -9, it goes on with the very next batch; with its output
    current it does nothing. On several GPUs: `torchrun --nproc-per-node 8 -m mmspeech pretrain CONF EXP`.

    --dry-run tells sizes and memory of a configuration without any corpus.

    Example: mmspeech pretrain recipes/lrs3/conf/uhubert/pretrain/synth-1.yaml exp/mine --set data.units=km --set
    "data.cuts=[exp/iter1/units/cuts_pretrain.jsonl.gz]"
    """
    config = read(conf, overrides or [], dry_run=dry_run)
    objective_class = RUNS[config.system][1]
    if dry_run:
        device = dist.start()
        encoder = AVEncoder(config.model, inputs=config.data.streams)
        objective = objective_class(encoder, config.objective, seed=config.seed)
        batch = dry.invented(encoder, config.data.streams, num_units=config.num_units)
        dry.one_update(objective, batch, config.training, device)
        return
    inputs = [*config.data.files(), *([config.init] if config.init else [])]
    # `origin` tells what must be the same: a run may go on for longer.
    stage = files.Stage(exp / "encoder", inputs=inputs, settings=origin.settings(config), anew=True)
    if stage.is_current():
        return
    device = dist.start()
    origin.check(exp, stage)
    torch.manual_seed(config.seed)
    encoder = AVEncoder(config.model, inputs=config.data.streams)
    if config.init:
        load_weights(encoder, config.init / "encoder.safetensors")
    objective = objective_class(encoder, config.objective, seed=config.seed)
    training = make_reading(config.data, seed=config.seed, train=True)
    watching = make_reading(config.data, seed=config.seed, train=False)
    stream = TrainingStream(config.data, training, seed=config.seed)
    before = configs.read(config.init / "config.yaml") if config.init else {}
    seen = {*stream.streams(), *before.get("trained_on", before.get("inputs") or ())}
    encoder.trained_on = [name for name in config.data.streams if name in seen]
    validation = validation_batches(config.data, watching) if config.data.valid_cuts else None
    size = sum(parameter.numel() for parameter in objective.parameters() if parameter.requires_grad)
    say(f"{exp}: {size / 1e6:.1f} M parameters, {stream.seconds:.0f} s x {stream.batches_per_update} per update")
    trainer.run(objective, stream, config.training, exp, validation=validation, device=device)
    weights = checkpoint.whole_weights(encoder)
    if dist.is_first():
        with stage.writing() as folder:
            save_encoder(encoder, folder, weights)
            files.write_json(folder / "data.json", configs.plain(config.data))  # where the cuts lie: no setting
        say(f"{exp / 'encoder'}: written")


def read(conf: Path, overrides: list[str], *, dry_run: bool) -> UHubertRun | AVData2vecRun:
    """The settings of a run; without `dry_run` it must name what it predicts. Raises UserError."""
    tree = configs.read(conf, overrides)
    check_no_plan(tree, conf, "pretrain")
    system = tree.get("system")
    if not isinstance(system, str) or system not in RUNS:
        raise UserError(f"{conf}: `system` is {system!r}; expected one of {', '.join(RUNS)}")
    config: UHubertRun | AVData2vecRun = configs.build(tree, RUNS[system][0], conf)  # type: ignore[arg-type]
    if config.num_units and not config.data.units and not dry_run:
        raise UserError(f"{conf}: `data.units` names no units to predict; e.g. --set data.units=mfcc")
    if config.data.units and not config.num_units:
        raise UserError(f"{conf}: `data.units` is {config.data.units}, but {system} predicts no units; leave it out")
    if unknown := sorted(config.data.streams.keys() - config.model.streams.keys()):
        raise UserError(
            f"{conf}: `data.streams.{unknown[0]}` is read, but the model has no such stream; add it to model.streams"
        )
    return config
