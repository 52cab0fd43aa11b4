"""The loop: updates, logs, validation, checkpoints, exact resume. It knows nothing of speech.

groups ──▶ draw (host) ──▶ step on all ranks ──▶ log ──▶ validate ──▶ checkpoint
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from mmspeech import config as configs
from mmspeech import dist, files
from mmspeech.batch import Batch
from mmspeech.errors import UserError
from mmspeech.training import checkpoint, optimizers, parallel, random_states
from mmspeech.training.log import Log
from mmspeech.training.rehearsal import rehearse
from mmspeech.training.report import Report
from mmspeech.training.schedules import SCHEDULES
from mmspeech.training.settings import TrainingConfig
from mmspeech.training.step import Group, agree, refuse_split, train_step
from mmspeech.training.validate import Best, validate

STOPPED = 143  # exit code after SIGTERM, as shells count it: 128 + 15


class Groups(Protocol):
    """The training data: what one rank sees in one update, again and again, and its position.

    The state is the same on every rank and says where the whole stream is: it is saved from the first rank and given to
    all, of which there may then be more or fewer. `longest()`, if there is one, yields (name, biggest batch) of
    each kind of batch.
    """

    def __iter__(self) -> Iterator[list[tuple[str, Batch]]]: ...
    def trained(self) -> None:
        """The group handed out before all others that are not yet trained is trained now."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def run(
    objective: nn.Module,
    groups: Groups,
    config: TrainingConfig,
    folder: Path,
    *,
    device: torch.device,
    validation: Iterable[tuple[str, Batch]] | None = None,
) -> None:
    """Train the objective; afterwards it holds the weights that `config.use` asks for. Goes on where a run stopped.

    Writes into `folder`: checkpoints/, log.txt, metrics.jsonl, tensorboard/.

    Args:
        objective: a module with draw(batch, update) and forward(batch, update) -> Loss, or a ModuleDict of such.
            `update` counts the updates that are finished. Optional: freeze(update), called before each step, which may
            turn parameters on and off (not under FSDP2); after_step(update, skipped), e.g. an EMA, where skipped is ()
            on the device, 1.0 if gradients were not finite and the weights stayed; watch(update, figures), given what
            is logged, which may return a warning; `couples_items` True: its batch is never split; `leaves_unused` or
            `freezes` True: some parameters may stay without gradient.
        validation: (name, batch) pairs of this rank, iterated anew each time.

    Raises UserError for what a user can mend; SystemExit(143) after SIGTERM, with a checkpoint written.
    """
    with files.alone_in(folder) if dist.is_first() else contextlib.nullcontext():
        trainer = Trainer(objective, groups, config, folder, device, validation)
        trainer.resume()
        with _sigterm(trainer), Log(folder, trainer.update, config.updates) as trainer.log:
            if trainer.update < config.updates:
                trainer.rehearse()
                trainer.train()
            trainer.finish()


class Trainer:
    """The state of a run."""

    def __init__(
        self,
        objective: nn.Module,
        groups: Groups,
        config: TrainingConfig,
        folder: Path,
        device: torch.device,
        validation: Iterable[tuple[str, Batch]] | None,
    ) -> None:
        self.objective, self.groups, self.config, self.device = objective.to(device), groups, config, device
        self.validation, self.best = validation, Best(config.select)
        self.checkpoints = folder / "checkpoints"
        self.dispatch = parallel.Dispatch(objective)
        several = len(self.dispatch.all()) > 1
        asked = any(getattr(o, name, False) for o in self.dispatch.all() for name in ("leaves_unused", "freezes"))
        self.find_unused = several or asked or config.unused_parameters
        self.model: nn.Module = self.dispatch
        if config.parallel == "fsdp2":  # shards the parameters, before the optimizer takes them
            self._wrap()
        self.optimizer = optimizers.build(
            objective, config.optimizer, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
        )
        self.update = 0  # finished ones
        self.report = Report(device, max_nonfinite=config.max_nonfinite)
        self.stop = False  # set by SIGTERM
        self.log: Log

    def resume(self) -> None:
        """Take up the newest checkpoint, if there is one; else seed the global generators."""
        if dist.is_first():  # what a killed process was writing
            for part in self.checkpoints.glob(".*.step-*.ckpt"):
                part.unlink()
        content = checkpoint.newest(self.checkpoints)
        if content is None:
            random_states.seed_all(self.config.seed, self.update)
            return
        where = checkpoint.path_of(self.checkpoints, content["update"])
        if content["update"] > self.config.updates:
            raise UserError(
                f"{where}: {content['update']} updates are done, more than training.updates: {self.config.updates}; "
                "give another folder, or raise it"
            )
        checkpoint.load_model(self.objective, content["model"], where)
        checkpoint.load_optimizer(self.objective, self.optimizer, content["optimizer"])
        self.groups.load_state_dict(content["groups"])
        self.update = content["update"]
        self.report.frames, self.report.nonfinite_in_a_row = content["frames"], content["nonfinite"]
        if content["best"]["select"] == self.best.select:
            self.best.value, self.best.update = content["best"]["value"], content["best"]["update"]
        if len(content["random"]) == dist.world_size():
            random_states.put_back(content["random"][dist.rank()])
        else:  # other ranks than before: nothing to go on from
            random_states.seed_all(self.config.seed, self.update)

    def rehearse(self) -> None:
        """Try the longest batches, if the data can tell which they are."""
        self._freeze()
        self.log.line(f"resumed after update {self.update}" if self.update else "begun", quiet=not self.update)
        for name, batch in getattr(self.groups, "longest", tuple)():
            line = rehearse(
                self.dispatch,
                name,
                batch,
                self.optimizer,
                update=self.config.updates,
                device=self.device,
                precision=self.config.precision,
            )
            self.log.line(line)

    def train(self) -> None:
        """Updates until there have been enough, or SIGTERM."""
        config = self.config
        if config.parallel == "ddp":  # only now: DDP would remember which parameters the rehearsal had used
            self._wrap()
        self.report.begin()
        for group in self.groups:
            stop = self._step(group)
            self.log.advance()
            last = self.update == config.updates
            if self.update % config.log_every == 0 or last:
                self._report()
            is_best = False
            if self.validation is not None and (self.update % config.validate_every == 0 or last):
                is_best = self._validate()
            if is_best or last or stop or self.update % config.checkpoint_every == 0:
                self._save()
            if stop and not last:
                self.log.line(f"SIGTERM: stopped after update {self.update}; run again to go on")
                raise SystemExit(STOPPED)
            if last:
                return
        raise UserError(f"the training data ended after {self.update} of {config.updates} updates; it must be endless")

    def finish(self) -> None:
        """Average, and load the weights to use."""
        config = self.config
        if config.average_last:
            recent = self._regular(checkpoint.kept(self.checkpoints))[-config.average_last :]
            averaged = checkpoint.average([checkpoint.path_of(self.checkpoints, update) for update in recent])
            path = self.checkpoints / f"average-{len(recent)}.safetensors"
            if dist.is_first():
                checkpoint.write_weights(path, averaged)
            if config.use == "average":
                checkpoint.load_model(self.objective, averaged, path)
                self.log.line(f"using the mean of the checkpoints of updates {', '.join(map(str, recent))}")
        if config.use == "best" and self.best.update is not None:
            path = checkpoint.path_of(self.checkpoints, self.best.update)
            checkpoint.load_model(self.objective, checkpoint.read(path)["model"], path)
            self.log.line(f"using update {self.best.update}: {self.best.select} {self.best.value:.4g}")
        elif config.use == "best":
            self.log.line("using the last update: without validation there is no best one")
        dist.barrier()

    def _step(self, group: Group) -> bool:
        """Draw and train one group; returns whether to stop: some rank was sent SIGTERM."""
        names = [name for name, _ in group]
        if (name := refuse_split(self.dispatch, names)) is not None:
            raise UserError(
                f"objective `{name}`: its loss couples the items of a batch, so an update cannot be "
                f"split into {names.count(name)} batches; raise data.max_batch_s until one batch holds a rank's share"
            )
        self._freeze()
        group = [(name, self.dispatch.named(name).draw(batch, self.update)) for name, batch in group]
        agreement = agree(self.model, group, stop=self.stop)
        scale = SCHEDULES[self.config.schedule](self.update, self.config)
        optimizers.set_rates(self.optimizer, self.config.lr * scale, self.update)
        outcome = train_step(
            self.model,
            [(name, batch.to(self.device)) for name, batch in group],
            agreement.counts,
            self.optimizer,
            update=self.update,
            clip_norm=self.config.clip_norm,
            precision=self.config.precision,
            most_batches=agreement.most_batches,
        )
        for objective in self.dispatch.all():
            if hasattr(objective, "after_step"):
                objective.after_step(self.update, outcome.skipped)
        self.groups.trained()
        self.update += 1
        self.report.add(self.update, outcome, [batch.ids for _, batch in group], agreement.frames)
        return agreement.stop

    def _report(self) -> None:
        self._watch(self.report.write(self.log, self.optimizer.param_groups[0]["lr"]))

    def _watch(self, figures: dict[str, float]) -> None:
        for objective in self.dispatch.all():
            if figures and hasattr(objective, "watch") and (warning := objective.watch(self.update, figures)):
                self.log.line(warning)

    def _validate(self) -> bool:
        """Figures of the validation batches; whether they are the best so far."""
        assert self.validation is not None
        began = time.monotonic()
        parallel.average_buffers(self.objective)
        figures = validate(
            self.dispatch, self.validation, update=self.update, device=self.device, precision=self.config.precision
        )
        self.log.report(self.update, "valid", figures)
        self._watch(figures)
        self.report.leave_out(time.monotonic() - began)
        return self.best.better(figures, self.update)

    def _save(self) -> None:
        self._report()
        parallel.average_buffers(self.objective)
        recent = self._regular({*checkpoint.kept(self.checkpoints), self.update})
        keep = {*recent[-max(self.config.keep_last, self.config.average_last) :], self.best.update}
        checkpoint.save(
            self.checkpoints,
            self.update,
            self.objective,
            self.optimizer,
            keep=keep,
            groups=self.groups.state_dict(),
            best=asdict(self.best),
            frames=self.report.frames,
            nonfinite=self.report.nonfinite_in_a_row,
            config=configs.plain(asdict(self.config)),
        )

    def _regular(self, updates: Iterable[int]) -> list[int]:
        """Those whose checkpoint is one of the schedule's, not only the best one or a stopped run's; ascending."""
        every, end = self.config.checkpoint_every, self.config.updates
        return sorted(update for update in updates if update % every == 0 or update == end)

    def _wrap(self) -> None:
        self.model = parallel.wrap(self.dispatch, self.config.parallel, find_unused=self.find_unused)

    def _freeze(self) -> None:
        for objective in self.dispatch.all():
            if hasattr(objective, "freeze"):
                objective.freeze(self.update)


@contextlib.contextmanager
def _sigterm(trainer: Trainer) -> Iterator[None]:
    """SIGTERM (Slurm's warning, `kill`) ends the run after the update in progress, with a checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: object) -> None:
        trainer.stop = True

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
