"""Who may import whom (rooms to the right never import to the left), and that the core stands without extras."""

import ast
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from mmspeech.models.frontends import FRONTENDS

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


STREAMS = {"audio", "video", "lips", "lip", "mouth", "text", "phones", "phone"}
# What handles streams without knowing which: a new one costs a front-end, a reader and YAML. Of a file, the definitions
# that may name some: tables of defaults.
UNAWARE: dict[str, set[str]] = {
    "batch.py": set(),
    "blocks/*.py": set(),
    "cli/pretrain.py": set(),
    "data/loader.py": {"DataConfig"},
    "data/sizes.py": set(),
    "data/sources.py": set(),
    "data/units.py": set(),
    "training/*.py": set(),
    "models/av_encoder.py": {"public_streams"},
    "models/fusion.py": set(),
    "models/presence.py": set(),
    "pretraining/losses.py": set(),
    "pretraining/uhubert.py": {"public_input_masks", "UHubertConfig"},
    "pretraining/vatlm.py": {"VatlmConfig"},
    "pretraining/avdata2vec.py": {"sound_and_lips_then_lips", "sound_alone", "AVData2vecConfig"},
}
ORDINARY = {"read_text", "write_text"}  # of files
ORDINARY_IN = {
    "training/*.py": {"text", "_text"},  # of a log
    "data/loader.py": {"text", "encode_text"},  # which transcript, and its tokens
}


def streams_named(code: ast.AST, ordinary: Collection[str] = ORDINARY) -> Iterator[tuple[int, str]]:
    """Line and name of each stream that code, not its sentences, names: in a string, or as a word of an identifier.

    A front-end's class counts, too: who asks for it asks for its stream.
    """
    own_frontends = {kind.__name__ for name, kind in FRONTENDS.items() if name not in ("linear", "none")}
    for node in ast.walk(code):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not re.search(r"\s\S", node.value):
            found = STREAMS & set(re.split(r"\W+|_", node.value))
        else:
            fields = (getattr(node, field, None) for field in ("id", "attr", "arg", "name"))
            given = [name for name in fields if isinstance(name, str) and name not in ordinary]
            found = {name for name in given if name in own_frontends or STREAMS & set(name.lower().split("_"))}
        yield from ((getattr(node, "lineno", 0), name) for name in sorted(found))


def test_what_handles_streams_does_not_know_which():
    """No `if text`, nor one for another stream, outside the front-ends, the readers and the YAML."""
    wrong = []
    for pattern, defaults in UNAWARE.items():
        found = list(ROOT.glob(pattern))
        assert found, pattern
        ordinary = ORDINARY | ORDINARY_IN.get(pattern, set())
        for file in found:
            tree = ast.parse(file.read_text())
            kept = [node for node in tree.body if getattr(node, "name", None) not in defaults]
            assert len(tree.body) - len(kept) == len(defaults), f"{file}: defines {defaults} no longer"
            for node in kept:
                wrong += [
                    f"{file.relative_to(ROOT)}:{line} names {name}" for line, name in streams_named(node, ordinary)
                ]
    assert wrong == []


@pytest.mark.parametrize(
    "line",
    [
        'if "text" in batch.streams: pass',
        'x = self.frontends["phones"](x)',
        'parts["loss/text"] = 0.0',
        'shares = {"audio+text": 0.5}',
        'logs[f"text/{name}"] = 0',
        "if has_text: pass",
        'if name == "mouth": pass',
        "if self.phone: pass",
        "if batch.text: pass",
        "encode(text=x)",
        "def run_phones(x): pass",
        "x = isinstance(frontend, PhoneFrontend)",
        "from mmspeech.models.frontends import LipFrontend",
    ],
)
def test_a_line_that_asks_for_a_stream_is_found(line):
    assert list(streams_named(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    [
        '"""Phones and text, lips and sound: what a sentence says is for readers."""',
        'raise UserError("give the text of a cut, or leave audio out")',
        'context = batch.texts, "texture", contextual',
        "path.write_text(file.read_text())",
        "if name in streams and isinstance(frontend, NoFrontend | LinearFrontend): pass",
    ],
)
def test_ordinary_words_are_no_streams(line):
    assert not list(streams_named(ast.parse(line)))


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
