"""`bin/bench`: how fast the parts are on this machine, each beside a named peer in the same run."""

import datetime
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from mmspeech import __version__, files
from mmspeech.bench import decoding, features, measure, phone2unit, reading, training
from mmspeech.command import call
from mmspeech.console import say
from mmspeech.errors import UserError

ROWS = reading.rows() | features.rows() | training.rows() | phone2unit.rows() | decoding.rows()

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def bench(
    rows: Annotated[str, typer.Option(help=f"Which, joined by commas, of: {', '.join(ROWS)}.")] = "all",
    size: Annotated[
        Literal["tiny", "small", "base"],
        typer.Option(
            help="Of the models in training and decoding: small is the embedded corpus's, for CPUs; base is "
            "AV-HuBERT BASE on 88x88 pixels, for GPUs or patience (about a minute a step on 2 cores)."
        ),
    ] = "small",
    repetitions: Annotated[int, typer.Option(min=1, help="Of each side; the median counts.")] = 5,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Reading and the peers of features use the CPU anyway.")
    ] = "auto",
    out: Annotated[Path | None, typer.Option(help="JSON file to write, with every repetition's seconds.")] = None,
    quick: Annotated[bool, typer.Option(help="The least work: under a minute on 2 cores, figures that jump.")] = False,
    seed: Annotated[int, typer.Option(help="Of weights, frames, sounds and lengths.")] = 0,
) -> None:
    """Measure reading, features, training steps, phones to units and decoding, each beside a named peer.

    Every side of a row runs in a process of its own, which gives its own peak of memory; the sides take turns, so that
    a machine that is slow for a while is slow for all; and they must agree in what they compute before they are timed.
    `x faster` is the median over repetitions of the peer's seconds divided by ours; where ours does more than the peer
    (AV-data2vec's step beside u-HuBERT's), `x the time` is the same the other way round. Only such a ratio may be
    quoted: the figures beside it depend on the machine and on what else ran there (the load at the start is printed).

    A few minutes on 2 cores. OMP_NUM_THREADS sets the threads of every process.

    Example: bin/bench --rows mouth,training --out bench.json
    """
    names = list(ROWS) if rows == "all" else [name.strip() for name in rows.split(",")]
    for name in names:
        if name not in ROWS:
            raise UserError(f"--rows {name}: no such row; known: {', '.join(ROWS)}")
        for module in ROWS[name].needs:
            if importlib.util.find_spec(module) is None:
                raise UserError(f"--rows {name}: needs {module}; pip install 'mmspeech[dev]', or choose other rows")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; see `mmspeech doctor`, or take --device cpu")
    where = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    settings = measure.Settings(size=size, quick=quick, seed=seed, device=where)
    result: dict[str, Any] = {"machine": machine(where), "settings": vars(settings) | {"repetitions": repetitions}}
    result |= {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "version": __version__}
    result |= {"commit": commit(), "seed": seed, "rows": {}}
    for name in names:
        with tempfile.TemporaryDirectory(prefix="mmspeech-bench-") as folder:
            result["rows"][name] = measure.measure(ROWS[name], settings, repetitions, Path(folder))
        say(f"{name}: {', '.join(ratio(result['rows'][name], peer) for peer in result['rows'][name]['peers'])}")
        if out is not None:  # after every row: a later one may run out of memory
            files.write_json(out, result)
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table(result))
    if out is not None:
        say(f"{out}: written")


def table(result: dict[str, Any]) -> Table:
    """The rows, ours first, peers below with how many times faster ours is."""
    facts, settings = result["machine"], result["settings"]
    quick = ", quick" if settings["quick"] else ""
    caption = (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads, load {facts['load']:.1f} at the start; "
        f"torch {facts['torch']} on {facts['device']}; size {settings['size']}{quick}, median of "
        f"{settings['repetitions']}; seed {result['seed']}, commit {result['commit']}, {result['date']}"
    )
    shown = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left")
    shown.add_column("what", overflow="fold")
    shown.add_column("by", overflow="fold")
    for title in ("figure", "ours is", "peak memory (+ work)"):
        shown.add_column(title, justify="right", no_wrap=True)
    for row in result["rows"].values():
        for side in [row["ours"], *row["peers"]]:
            is_ours = side is row["ours"]
            shown.add_row(
                row["title"] if is_ours else "",
                side["name"],
                "\n".join(f"{_rounded(value)} {unit}" for unit, value in side["figures"].items()),
                "" if is_ours else ratio(row, side),
                _memory(side["memory"]),
                style="bold" if is_ours else None,
                end_section=side is row["peers"][-1],
            )
    return shown


def ratio(row: dict[str, Any], peer: dict[str, Any]) -> str:
    """`1.52x faster`, or, where ours does more than the peer, `1.29x the time`."""
    faster = peer["ours_is_times_faster"]
    return f"{1 / faster:.2f}x the time" if row["is_cost"] else f"{faster:.2f}x faster"


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }


def commit() -> str:
    """The checkout's commit, `-dirty` if files differ from it; "unknown" outside one."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _memory(memory: dict[str, float]) -> str:
    """The process's peak, and how much of it came after the libraries were loaded."""
    text = f"{memory['peak_mib']:,.0f} MiB (+{memory['above_libraries_mib']:,.0f})"
    return text + (f"\n{memory['device_peak_mib']:,.0f} MiB on the GPU" if "device_peak_mib" in memory else "")


if __name__ == "__main__":
    call(app, "bin/bench")
