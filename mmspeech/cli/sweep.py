"""A fine-tuning YAML with `sweep:`, run for every combination of its values; the best on validation data is kept.

every combination ──▶ fine-tuned in EXP/NAME ──▶ decoded on the validation cuts ──▶ mean over streams and noises
                                                        EXP/model ──▶ NAME/model of the lowest mean ◀──┘
"""

import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich import box
from rich.table import Table

from mmspeech import config as configs
from mmspeech import dist, files
from mmspeech.cli import decode
from mmspeech.cli.score import metric_of
from mmspeech.console import console, say
from mmspeech.errors import Diverged, UserError
from mmspeech.scoring import bleu, wer

if TYPE_CHECKING:
    from mmspeech.cli.finetune import FinetuneRun

RESAMPLES = 200  # intervals are not what is selected by


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is varied, and what the recognizers are compared on.

    u-HuBERT sweeps learning rate, updates and freezing for every model, and selects by the mean error rate over AV, A
    and V, clean and noisy (Sec. 4.1; Avg of Table 2), on validation data.
    """

    # training.lr: [1e-3, 5e-4]. A value may be a table of settings that belong together:
    # training: [{updates: 500, hold_updates: 200}, {updates: 900, hold_updates: 400}]
    grid: dict[str, list[Any]]
    modality: str = "av,a,v"
    noise: str = "clean,babble:0"
    search: list[str] = field(default_factory=list)  # settings of the search, beam=5

    def __post_init__(self) -> None:
        if not self.grid or not all(self.grid.values()):
            raise UserError("grid: has nothing to vary; give settings with their values, training.lr: [1e-3, 5e-4]")


class Tried(NamedTuple):
    """One combination."""

    name: str
    rates: dict[str, float]  # condition as in `av babble:0` -> WER (or BLEU) on the validation cuts; none: diverged

    @property
    def mean(self) -> float:
        """Over all conditions alike (the paper's Avg)."""
        return sum(self.rates.values()) / max(len(self.rates), 1)


def combinations(grid: dict[str, list[Any]]) -> Iterator[tuple[str, list[str]]]:
    """Every combination: its name, and its settings as --set takes them."""
    for values in itertools.product(*grid.values()):
        pairs = [pair for key, value in zip(grid, values, strict=True) for pair in _settings(key, value)]
        name = "-".join(f"{key.rpartition('.')[2]}={_text(value)}" for key, value in pairs)
        yield name.replace("/", "_").replace(" ", ""), [f"{key}={_text(value)}" for key, value in pairs]


def run(
    conf: Path,
    overrides: Sequence[str],
    exp: Path,
    noise_sets: Path | None,
    read: Callable[[list[str]], "FinetuneRun"],
    tune: Callable[[Any, Path, Path], None],
) -> None:
    """Tune every combination, compare, link EXP/model to the best; write EXP/sweep.json.

    Args:
        read: a combination's settings -> its run.
        tune: fine-tunes a run, whose file is named in errors, in a folder, if that is not done.

    Raises:
        UserError: a setting is wrong, validation data is missing, or no combination gave a model.
    """
    sweep = configs.build(configs.read(conf, overrides)["sweep"], Sweep, conf)
    for override in overrides:
        if override.partition("=")[0] in sweep.grid:
            raise UserError(f"--set {override}: is swept in {conf}; change its values there, or leave it out here")
    if noise_sets is None and set(sweep.noise.split(",")) != {"clean"}:
        raise UserError(
            f"{conf}: is selected under {sweep.noise}; give frozen noise of the validation cuts with --noise-sets"
        )
    runs = {name: read(settings) for name, settings in combinations(sweep.grid)}  # mistakes: before hours of training
    tried: list[Tried] = []
    for name, config in runs.items():
        if len(config.data.valid_cuts) != 1:
            raise UserError(
                f"data.valid_cuts: {len(config.data.valid_cuts)} files; a sweep is selected on one, give one"
            )
        say(f"{exp}: {name} ({len(tried) + 1} of {len(runs)})")
        try:
            tune(config, conf, exp / name)
            tried.append(Tried(name, _rates(exp / name, config.data.valid_cuts[0], sweep, noise_sets)))
        except Diverged as error:
            say(f"{exp / name}: set aside, {error}")
            tried.append(Tried(name, {}))
        if dist.is_first():
            files.write_json(exp / "sweep.json", [one._asdict() | {"mean": one.mean} for one in tried])
    trained = [one for one in tried if one.rates]
    if not trained:
        raise UserError(f"{exp}: none of {len(tried)} combinations gave a model; lower training.lr")
    translates = metric_of(next(iter(runs.values())).text) == "bleu"
    best = (max if translates else min)(trained, key=lambda one: one.mean)
    if dist.is_first():
        _link(exp / "model", Path(best.name) / "model")
        console.print(table(tried, best))
        say(f"{exp / 'model'}: {best.name}, a mean of {best.mean:.2f} on validation, the best of {len(tried)}")


def _rates(folder: Path, cuts: Path, sweep: Sweep, noise_sets: Path | None) -> dict[str, float]:
    """Decode the validation cuts with the recognizer in a folder and score them, condition by condition."""
    dist.barrier()  # the first rank has written the model
    decode.run(
        folder / "model", cuts, folder / "decode", modality=sweep.modality, noise=sweep.noise, noise_sets=noise_sets,
        search=sweep.search, label=folder.name,
    )  # fmt: skip
    found = {}
    if dist.is_first():
        for path in sorted((folder / "decode").glob("*/decode.json")):
            metric = metric_of(json.loads(path.read_text(encoding="utf-8"))["text"])
            score = {"wer": wer, "bleu": bleu}[metric].score_folder(path.parent, resamples=RESAMPLES)
            found[f"{score['modality']} {score['noise']}"] = float(score[metric])  # type: ignore[arg-type]
    return dist.gather_on_host(found)[0]


def table(tried: Sequence[Tried], best: Tried) -> Table:
    """For the terminal: combinations down, conditions across, the best in bold."""
    shown = Table(box=box.SIMPLE, title="validation cuts: WER in %, or BLEU")
    shown.add_column("settings")
    for condition in best.rates:
        shown.add_column(condition, justify="right")
    shown.add_column("mean", justify="right")
    for one in tried:
        cells = [f"{one.rates[name]:.1f}" for name in one.rates] or ["diverged"]
        mean = [f"{one.mean:.2f}"] if one.rates else []
        shown.add_row(one.name, *cells, *mean, style="bold" if one is best else "")
    return shown


def _settings(key: str, value: object) -> Iterator[tuple[str, object]]:
    """`training.lr`, 0.1 as it is; a table's settings one by one, but shares (`audio+video: 0.5`) as a whole."""
    if isinstance(value, dict) and value and all(str(name).isidentifier() for name in value):
        for name, inner in value.items():
            yield from _settings(f"{key}.{name}", inner)
    else:
        yield key, value


def _text(value: object) -> str:
    """As YAML on one line."""
    return json.dumps(value) if not isinstance(value, str) else value


def _link(path: Path, target: Path) -> None:
    """Make `path` a link to `target`, in place of an older link."""
    if path.exists() and not path.is_symlink():
        raise UserError(f"{path}: is of a run without `sweep`; give another folder")
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    temporary.symlink_to(target)
    os.replace(temporary, path)
