"""`mmspeech schedule`: a pre-training YAML -> what its settings do over the updates, as pictures and numbers."""

from pathlib import Path
from typing import Annotated

import typer

from mmspeech import config as configs
from mmspeech import files
from mmspeech.cli.pretrain import AVData2vecRun, read
from mmspeech.console import say
from mmspeech.errors import UserError
from mmspeech.models.presence import ModalitySchedule, check_named
from mmspeech.scoring import plots
from mmspeech.training.schedules import SCHEDULES

POINTS = 200  # of each curve


def run(
    conf: Annotated[Path, typer.Argument(help="YAML of the run, e.g. .../conf/av-data2vec/pretrain/base-433h.yaml.")],
    out: Annotated[Path, typer.Argument(help="Picture to write, e.g. schedule.png.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting: --set training.updates=100. Repeatable.")
    ] = None,
) -> None:
    """Draw what a pre-training does over its updates: learning rate; of AV-data2vec which streams are kept, and tau.

    Streams are drawn as the paper does (Figures 4-11): the shares that items get, and the probabilities that are set,
    conditional ones among them. OUT.png is the picture, OUT.tsv has its numbers.

    Example: mmspeech schedule recipes/lrs3/conf/av-data2vec/pretrain/synth.yaml schedule.png
    """
    config = read(conf, overrides or [], dry_run=True)
    training = config.training
    at = sorted({round(training.updates * point / POINTS) for point in range(POINTS + 1)})
    panels = {"learning rate": {"lr": [training.lr * SCHEDULES[training.schedule](x, training) for x in at]}}
    if out.suffix != ".png":
        raise UserError(f"{out}: expected a name that ends in .png; the numbers go beside it, as .tsv")
    if isinstance(config, AVData2vecRun):
        objective = config.objective
        for name, schedule in (("student", objective.student), ("teacher", objective.teacher)):
            check_named(schedule.otherwise, config.model.streams, f"objective.{name}.otherwise")
            panels |= shares(name, schedule, at, "+".join(config.model.streams))
        panels["teacher's tau"] = {"tau": [objective.ema.rate(x) for x in at]}
    with files.replacing(out) as temporary:
        plots.to_png(plots.panels_over(panels, at, "update"), temporary)
    with files.replacing(out.with_suffix(".tsv")) as temporary:
        curves = {f"{panel}: {name}": values for panel, lines in panels.items() for name, values in lines.items()}
        rows = [[str(x), *(f"{values[i]:.8g}" for values in curves.values())] for i, x in enumerate(at)]
        temporary.write_text("\n".join("\t".join(row) for row in [["update", *curves], *rows]) + "\n")
    say(f"{out}, {out.with_suffix('.tsv')}: {configs.read(conf)['system']}, {training.updates} updates")


def shares(name: str, schedule: ModalitySchedule, at: list[int], everything: str) -> dict[str, dict[str, list[float]]]:
    """Two panels: how often items keep each subset, and the probabilities as they are set."""
    kept = [schedule.shares(x, everything) for x in at]
    given = [schedule.conditional(x) for x in at]
    return {
        f"{name}: share of the items": {subset: [one[subset] for one in kept] for subset in kept[0]},
        f"{name}: probabilities": {everything: [one[everything] for one in kept]}
        | {f"{subset}, if not all": [one[subset] for one in given] for subset in given[0]},
    }
