"""A fine-tuning YAML with `sweep:`, run for every combination of its values; the best on validation data is kept.

every combination ──▶ fine-tuned in EXP/NAME ──▶ decoded on the validation cuts ──▶ mean over streams and noises
                                                        EXP/model ──▶ NAME/model of the best mean ◀──┘
"""

import gc
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from rich import box
from rich.table import Table

from mmspeech import config as configs
from mmspeech import dist, files
from mmspeech.cli import beams, decode
from mmspeech.cli.score import metric_of
from mmspeech.console import console, say
from mmspeech.data.noise import parse_kind
from mmspeech.data.reading import named_streams
from mmspeech.errors import Diverged, UserError
from mmspeech.plan import SWEEP_NOISE
from mmspeech.training import origin

if TYPE_CHECKING:
    from mmspeech.cli.finetune import FinetuneRun

DIVERGED = "diverged.json"  # in the folder of a combination that gave no model


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
    noise: str = SWEEP_NOISE
    search: list[str] = field(default_factory=list)  # settings of the search, beam=5

    def __post_init__(self) -> None:
        if not self.grid or not all(self.grid.values()):
            raise UserError("grid: has nothing to vary; give settings with their values, training.lr: [1e-3, 5e-4]")


class Tried(NamedTuple):
    """One combination."""

    name: str
    rates: dict[str, float]  # condition as in `av-clean` -> WER (or BLEU) on the validation cuts; none: diverged

    @property
    def mean(self) -> float | None:
        """Over all conditions alike (the paper's Avg)."""
        return sum(self.rates.values()) / len(self.rates) if self.rates else None


def combinations(grid: dict[str, list[Any]]) -> Iterator[tuple[str, list[str]]]:
    """Every combination: its name, and its settings as --set takes them."""
    for values in itertools.product(*grid.values()):
        pairs = [pair for key, value in zip(grid, values, strict=True) for pair in _settings(key, value)]
        name = "-".join(f"{key.rpartition('.')[2]}={_text(value)}" for key, value in pairs)
        yield name.replace("/", "_").replace(" ", ""), [f"{key}={_text(value)}" for key, value in pairs]


def read(tree: dict[str, Any], conf: Path) -> Sweep:
    """The `sweep:` of a tree of settings. Raises UserError."""
    return configs.build({"sweep": tree["sweep"]}, _Holder, conf).sweep


def run(
    conf: Path,
    overrides: Sequence[str],
    exp: Path,
    noise_sets: Path | None,
    read_run: Callable[[list[str]], "FinetuneRun"],
    tune: Callable[[Any, Path, Path], None],
) -> None:
    """Tune every combination, compare, link EXP/model to the best; write EXP/sweep.json.

    Args:
        read_run: a combination's settings -> its run.
        tune: fine-tunes a run, whose file is named in errors, in a folder, if that is not done.

    Raises:
        UserError: a setting is wrong, validation data is missing, or no combination gave a model.
    """
    sweep = read(configs.read(conf, overrides), conf)
    runs = {name: read_run(settings) for name, settings in combinations(sweep.grid)}
    check(sweep, conf, overrides, exp, noise_sets, runs)
    tried: list[Tried] = []
    for name, config in runs.items():
        say(f"{exp}: {name} ({len(tried) + 1} of {len(runs)})")
        rates: dict[str, float] = {}
        if not _has_diverged(exp / name, config):
            try:
                tune(config, conf, exp / name)
                rates = _rates(exp / name, config.data.valid_cuts[0], sweep, noise_sets)
            except Diverged as error:
                say(f"{exp / name}: set aside, {error}")
                if dist.is_first():
                    files.write_json(exp / name / DIVERGED, _identity(config) | {"reason": str(error)})
        tried.append(Tried(name, rates))
        _free()
        if dist.is_first():
            files.write_json(exp / "sweep.json", [one._asdict() | {"mean": one.mean} for one in tried])
    trained = [one for one in tried if one.rates]
    if not trained:
        raise UserError(f"{exp}: none of {len(tried)} combinations gave a model; lower training.lr")
    translates = metric_of(next(iter(runs.values())).text) == "bleu"
    best = (max if translates else min)(trained, key=lambda one: one.mean or 0.0)
    if dist.is_first():
        _link(exp / "model", Path(best.name) / "model")
        console.print(table(tried, best))
        say(f"{exp / 'model'}: {best.name}, a mean of {best.mean:.2f} on validation, the best of {len(tried)}")


def check(
    sweep: Sweep,
    conf: Path,
    overrides: Sequence[str],
    exp: Path,
    noise_sets: Path | None,
    runs: Mapping[str, "FinetuneRun"],
) -> None:
    """Raise UserError for what would only be told after the first fine-tuning, or the last."""
    swept = {key for values in sweep.grid.items() for value in values[1] for key, _ in _settings(values[0], value)}
    for override in overrides:
        key = override.partition("=")[0]
        if any(f"{one}.".startswith(f"{key}.") or f"{key}.".startswith(f"{one}.") for one in swept):
            raise UserError(f"--set {override}: is swept in {conf}; change its values there, or leave it out here")
    if (exp / "model").exists() and not (exp / "model").is_symlink():
        raise UserError(f"{exp / 'model'}: is of a run without `sweep`; give another folder")
    for kind in dict.fromkeys(sweep.noise.split(",")):
        if kind == "clean":
            continue
        name = parse_kind(kind).file_name
        if noise_sets is None or not (noise_sets / name).exists():
            raise UserError(
                f"{conf}: is selected under {kind}, and {noise_sets or '--noise-sets'} has no {name}; freeze it "
                f"for the validation cuts: `mmspeech prepare noisy CUTS NOISE_DIR DIR --noise {kind}`"
            )
    for config in runs.values():
        if len(config.data.valid_cuts) != 1:
            raise UserError(
                f"data.valid_cuts: {len(config.data.valid_cuts)} files; a sweep is selected on one, give one"
            )
        decode.searches_of(sweep.search, "", decode.SEARCHES[config.task])  # type: ignore[attr-defined]
        place = config.encoder
        if place is not None and (place / "config.yaml").exists():
            for typed in sweep.modality.split(","):
                named_streams(typed, configs.read(place / "config.yaml").get("inputs") or {}, "sweep.modality")


def _rates(folder: Path, cuts: Path, sweep: Sweep, noise_sets: Path | None) -> dict[str, float]:
    """Decode the validation cuts with the recognizer in a folder and score them, condition by condition."""
    dist.barrier()  # the first rank has written the model
    decoded = decode.run(
        folder / "model", cuts, folder / "decode", modality=sweep.modality, noise=sweep.noise, noise_sets=noise_sets,
        search=sweep.search, label=folder.name,
    )  # fmt: skip
    found = {}
    if dist.is_first():
        for place in decoded:
            name = json.loads((place / "decode.json").read_text(encoding="utf-8"))["set"]
            found[place.name.removeprefix(f"{name}-")] = beams.figure(place)[1]
    return dist.gather_on_host(found)[0]


def _has_diverged(folder: Path, config: "FinetuneRun") -> bool:
    """Whether this very run diverged before: it would again."""
    note = folder / DIVERGED
    before = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
    reason = before.pop("reason", "")
    same = before == json.loads(json.dumps(_identity(config), default=str))
    if same:
        say(f"{folder}: set aside before, {reason}")
    return same


def _identity(config: "FinetuneRun") -> dict[str, object]:
    places = [config.encoder, *config.data.files()]
    return {"settings": origin.settings(config), "inputs": sorted(files.digest(place) for place in places if place)}


def _free() -> None:
    """Let go of the last model: what DDP and FSDP2 wrap around it refers to itself."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def table(tried: Sequence[Tried], best: Tried) -> Table:
    """For the terminal: combinations down, conditions across, the best in bold."""
    shown = Table(box=box.SIMPLE, title="validation cuts: WER in %, or BLEU")
    shown.add_column("settings")
    for condition in [*best.rates, "mean"]:
        shown.add_column(condition, justify="right")
    for one in tried:
        cells = [f"{one.rates[name]:.1f}" for name in best.rates] if one.rates else ["diverged"]
        mean = [f"{one.mean:.2f}"] if one.mean is not None else []
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
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, path)


@dataclass(frozen=True, kw_only=True)
class _Holder:
    """So that errors name `sweep.KEY`."""

    sweep: Sweep
