"""`mmspeech pretrain`: a system's YAML and cuts, maybe with units -> an encoder, or VATLM's phoneme-to-unit model."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
import typer
from torch import nn

from mmspeech import config as configs
from mmspeech import dist, files
from mmspeech.cli import dry_run as dry
from mmspeech.console import say
from mmspeech.data import cutfiles
from mmspeech.data.loader import DataConfig, TrainingStream, make_reading, validation_batches
from mmspeech.data.phone_frames import FIELD
from mmspeech.data.units import made_from_field
from mmspeech.errors import UserError
from mmspeech.models.av_encoder import AVEncoder, AVEncoderConfig, load_weights, save_encoder
from mmspeech.models.phone2unit import Phone2Unit, Phone2UnitConfig, save_phone2unit
from mmspeech.plan import check_no_plan
from mmspeech.pretraining.avdata2vec import AVData2vec, AVData2vecConfig
from mmspeech.pretraining.phone2unit import Phone2UnitLossConfig, Phone2UnitObjective
from mmspeech.pretraining.uhubert import UHubert, UHubertConfig
from mmspeech.pretraining.vatlm import Vatlm, VatlmConfig
from mmspeech.training import checkpoint, origin, trainer
from mmspeech.training.trainer import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class PretrainRun:
    """What all pre-training runs have in common."""

    result: ClassVar[str] = "encoder"  # folder of the experiment that receives what was trained

    seed: int = 1337
    data: DataConfig
    training: TrainingConfig

    @property
    def num_units(self) -> int:
        """Size of the codebook that is predicted; 0: none is."""
        return 0

    @property
    def kinds(self) -> list[str]:
        """Which streams the items of a batch may have, if that is not all of them."""
        return []


@dataclass(frozen=True, kw_only=True)
class EncoderRun(PretrainRun):
    """The frame-synchronous family."""

    model: AVEncoderConfig = field(default_factory=AVEncoderConfig)
    init: Path | None = None  # folder of an encoder to start from; else from random weights


@dataclass(frozen=True, kw_only=True)
class UHubertRun(EncoderRun):
    """u-HuBERT or AV-HuBERT."""

    system: Literal["uhubert"]
    objective: UHubertConfig

    @property
    def num_units(self) -> int:
        return self.objective.num_units


@dataclass(frozen=True, kw_only=True)
class AVData2vecRun(EncoderRun):
    """AV-data2vec, or A-data2vec."""

    system: Literal["av-data2vec"]
    objective: AVData2vecConfig = field(default_factory=AVData2vecConfig)


@dataclass(frozen=True, kw_only=True)
class VatlmRun(EncoderRun):
    """VATLM."""

    system: Literal["vatlm"]
    objective: VatlmConfig

    @property
    def num_units(self) -> int:
        return self.objective.num_units

    @property
    def kinds(self) -> list[str]:
        return list(self.objective.weights)


@dataclass(frozen=True, kw_only=True)
class Phone2UnitRun(PretrainRun):
    """VATLM's phoneme-to-unit model: no encoder of speech, but trained like one."""

    result: ClassVar[str] = "model"

    system: Literal["phone2unit"]
    model: Phone2UnitConfig
    objective: Phone2UnitLossConfig = field(default_factory=Phone2UnitLossConfig)

    @property
    def num_units(self) -> int:
        return self.model.num_units


RUNS = {
    "uhubert": (UHubertRun, UHubert),
    "av-data2vec": (AVData2vecRun, AVData2vec),
    "vatlm": (VatlmRun, Vatlm),
    "phone2unit": (Phone2UnitRun, Phone2UnitObjective),
}
Run = UHubertRun | AVData2vecRun | VatlmRun | Phone2UnitRun


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
    """Pre-train an encoder by masked prediction, or VATLM's phoneme-to-unit model (`system: phone2unit`).

    Reads cuts, with units where the system predicts them (AV-data2vec does not), writes EXP/encoder (config.yaml,
    encoder.safetensors), EXP/checkpoints, EXP/tensorboard and EXP/metrics.jsonl; a phoneme-to-unit model goes to
    EXP/model, its unit accuracy and duration error on held-out cuts are in EXP/metrics.jsonl. Started again after a
    stop, even kill -9, it goes on with the very next batch; with its output current it does nothing. On several GPUs:
    `torchrun --nproc-per-node 8 -m mmspeech pretrain CONF EXP`.

    --dry-run tells sizes and memory of a configuration without any corpus.

    Example: mmspeech pretrain recipes/lrs3/conf/uhubert/pretrain/synth-1.yaml exp/mine --set data.units=km --set
    "data.cuts=[exp/iter1/units/cuts_pretrain.jsonl.gz]"
    """
    config = read(conf, overrides or [], dry_run=dry_run)
    if dry_run:
        device = dist.start()
        model = build(config)
        takers = model.frontends if isinstance(model, AVEncoder) else dict.fromkeys(config.data.streams, model)
        batch = dry.invented(takers, config.data.streams, num_units=config.num_units, kinds=config.kinds)
        dry.one_update(objective_of(config, model), batch, config.training, device)
        return
    init = config.init if isinstance(config, EncoderRun) else None
    inputs = [*config.data.files(), *([init] if init else [])]
    # `origin` tells what must be the same: a run may go on for longer.
    stage = files.Stage(exp / config.result, inputs=inputs, settings=origin.settings(config), anew=True)
    if stage.is_current():
        return
    if isinstance(config, Phone2UnitRun):
        check_times([*config.data.train_files, *config.data.valid_cuts])
    device = dist.start()
    origin.check(exp, stage)
    torch.manual_seed(config.seed)
    model = build(config)
    if init:
        load_weights(model, init / "encoder.safetensors")
    objective = objective_of(config, model)
    training = make_reading(config.data, seed=config.seed, train=True)
    watching = make_reading(config.data, seed=config.seed, train=False)
    stream = TrainingStream(config.data, training, seed=config.seed)
    if isinstance(model, AVEncoder):
        before = configs.read(init / "config.yaml") if init else {}
        # Not lips that A-data2vec reads, for whatever reason, but never uses: nothing reaches their front-end.
        reached = {name for name, one in model.frontends.items() if any(p.requires_grad for p in one.parameters())}
        seen = {*(reached & set(stream.streams())), *before.get("trained_on", before.get("inputs") or ())}
        model.trained_on = [name for name in config.data.streams if name in seen]
    validation = validation_batches(config.data, watching) if config.data.valid_cuts else None
    size = sum(parameter.numel() for parameter in objective.parameters() if parameter.requires_grad)
    say(f"{exp}: {size / 1e6:.1f} M parameters, {stream.seconds:.0f} s x {stream.batches_per_update} per update")
    trainer.run(objective, stream, config.training, exp, validation=validation, device=device)
    weights = checkpoint.whole_weights(model)
    if dist.is_first():
        with stage.writing() as folder:
            if isinstance(model, AVEncoder):
                save_encoder(model, folder, weights)
            else:
                save_phone2unit(model, folder, weights)
            files.write_json(folder / "data.json", configs.plain(config.data))  # where the cuts lie: no setting
        say(f"{exp / config.result}: written")


def check_times(paths: Iterable[Path]) -> None:
    """Raise UserError for cuts whose phones have no times of their own: units beside them are nearly noise."""
    for path in paths:
        cut = None if cutfiles.is_empty(path) else next(iter(cutfiles.open_cuts(path)), None)
        if cut is not None and (cut.custom or {}).get(made_from_field(FIELD)) == "cut-or-pad":
            raise UserError(
                f"{path}: its phones are cut or padded to the sound, which tells nothing of when they are said; give "
                "cuts of `extract phones` from alignments or with --aligner"
            )


def build(config: Run) -> AVEncoder | Phone2Unit:
    """What is to be trained, with random weights."""
    if isinstance(config, EncoderRun):
        return AVEncoder(config.model, inputs=config.data.streams)
    return Phone2Unit(config.model, inputs=config.data.streams)


def objective_of(config: Run, model: AVEncoder | Phone2Unit) -> nn.Module:
    """The system's objective around the model."""
    return RUNS[config.system][1](model, config.objective, seed=config.seed)  # type: ignore[arg-type]


def read(conf: Path, overrides: list[str], *, dry_run: bool) -> Run:
    """The settings of a run; without `dry_run` it must name what it predicts. Raises UserError."""
    tree = configs.read(conf, overrides)
    check_no_plan(tree, conf, "pretrain")
    system = tree.get("system")
    if not isinstance(system, str) or system not in RUNS:
        raise UserError(f"{conf}: `system` is {system!r}; expected one of {', '.join(RUNS)}")
    config: Run = configs.build(tree, RUNS[system][0], conf)  # type: ignore[arg-type]
    if config.num_units and not config.data.units and not dry_run:
        raise UserError(f"{conf}: `data.units` names no units to predict; e.g. --set data.units=mfcc")
    if config.data.units and not config.num_units:
        raise UserError(f"{conf}: `data.units` is {config.data.units}, but {system} predicts no units; leave it out")
    if isinstance(config, Phone2UnitRun):
        if len(config.data.streams) != 1:
            raise UserError(
                f"{conf}: `data.streams` has {', '.join(config.data.streams)}; phone2unit reads one stream, of phones"
            )
    elif unknown := sorted(config.data.streams.keys() - config.model.streams.keys()):
        raise UserError(
            f"{conf}: `data.streams.{unknown[0]}` is read, but the model has no such stream; add it to model.streams"
        )
    return config
