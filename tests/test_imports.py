"""Who may import whom (rooms to the right never import to the left), and that the core stands without extras."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1] / "mmspeech"
FOUNDATION = {
    "__version__",
    "batch",
    "command",
    "config",
    "console",
    "containers",
    "dist",
    "errors",
    "files",
    "media",
    "plan",
    "plan_sources",
    "seeds",
}
MAY_IMPORT = {
    "cli": {
        "cli",
        "training",
        "corpora",
        "data",
        "scoring",
        "pretraining",
        "finetuning",
        "decoding",
        "models",
        "blocks",
    },
    "training": {"training"},
    "corpora": {"corpora", "data"},
    "data": {"data"},
    "scoring": {"scoring", "data"},
    "pretraining": {"pretraining", "models", "blocks"},
    "finetuning": {"finetuning", "decoding", "models", "blocks"},
    "decoding": {"decoding", "models", "blocks"},
    "models": {"models", "blocks"},
    "blocks": {"blocks"},
    "bench": {"bench", "training", "data", "pretraining", "finetuning", "decoding", "models", "blocks"},
}
# Published models become ours through one file, wherever their parts lie: `from mmspeech.models.import_avhubert import
# load_encoder, load_seq2seq` is what people type. It imports these rooms when it is called, never with models/.
DOORS = {"models/import_avhubert.py": {"data", "finetuning", "pretraining"}}


def imported_rooms(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mmspeech"):
            below = node.module.split(".")[1:]
            names |= {below[0]} if below else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mmspeech.")}
    return names


def test_rooms_import_only_what_they_may():
    """Models never import data, data never imports models, the trainer knows nothing of speech."""
    wrong = []
    for room, allowed in MAY_IMPORT.items():
        for file in (ROOT / room).glob("*.py"):
            place = str(file.relative_to(ROOT))
            rooms = imported_rooms(file) - allowed - FOUNDATION - DOORS.get(place, set())
            wrong += [f"{place}: {name}" for name in rooms]
    assert wrong == []


def test_doors_open_when_they_are_called():
    """What a door imports from other rooms, it imports in its functions."""
    for place in DOORS:
        code = f"import sys, mmspeech.{place[:-3].replace('/', '.')}; print(*sys.modules)"
        loaded = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
        ).stdout.split()
        assert {name.split(".")[1] for name in loaded if name.startswith("mmspeech.")}.isdisjoint(DOORS[place])


def test_the_foundation_imports_nothing_but_itself():
    for name in FOUNDATION - {"__version__"}:
        assert imported_rooms(ROOT / f"{name}.py") <= FOUNDATION, name


def test_blocks_and_trainer_do_not_know_the_streams():
    """Nothing in blocks/ or training/ names audio, video or lips in code."""
    for file in [*(ROOT / "training").glob("*.py"), *(ROOT / "blocks").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and node.value in ("audio", "video", "lips"):
                raise AssertionError(f"{file.name}:{node.lineno} names {node.value!r}")


def test_the_core_imports_without_any_extra():
    """With mediapipe, espeak-ng, k2 and kaldifeat hidden, every module imports."""
    modules = [
        ".".join(("mmspeech", *file.relative_to(ROOT).with_suffix("").parts))
        for file in sorted(ROOT.rglob("*.py"))
        if file.name not in ("__init__.py", "__main__.py")
    ]
    hidden = ["mediapipe", "espeakng_loader", "k2", "kaldifeat", "python_speech_features"]
    code = f"import sys\nfor name in {hidden!r}: sys.modules[name] = None\n" + "\n".join(f"import {m}" for m in modules)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
