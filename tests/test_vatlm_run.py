"""VATLM is trained by the command line: four sources, each its own type of data, and a stop between updates."""

import json
from collections import Counter
from pathlib import Path

import pytest
from cuts import PRETRAIN, VATLM, command, write_cuts, write_run
from safetensors.torch import load_file

TYPES = ("audio+video", "audio", "audio+text", "text")


@pytest.fixture(scope="module")
def conf(tmp_path_factory) -> Path:
    """A run of four updates on four sources, all of which have a quarter of the seconds."""
    folder = tmp_path_factory.mktemp("vatlm")
    durations = {name: [0.6 + 0.1 * (i % 5) + 0.2 * (name == "text") for i in range(6)] for name in TYPES}
    has = {name: {"lips": range(6)} if name == "audio+video" else {} for name in TYPES}
    has["audio+text"] = has["text"] = {"phones": range(6)}
    has["text"] = has["text"] | {"silent": range(6)}
    paths = {name: str(write_cuts(folder / name, durations[name], **has[name])) for name in TYPES}
    sources = [{"cuts": [paths[name]], "weight": 1, "streams": name.split("+")} for name in TYPES]
    changes = {"training.updates": 4, "training.checkpoint_every": 2, "training.schedule": "constant"}
    return write_run(folder / "vatlm.yaml", PRETRAIN, VATLM | changes | {"data.sources": sources})


def losses(exp: Path) -> list[dict]:
    lines = map(json.loads, (exp / "metrics.jsonl").read_text().splitlines())
    return [{key: line[key] for key in line if key.startswith("loss") or key == "grad_norm"} for line in lines]


def test_vatlm_trains_on_four_sources_and_goes_on_where_it_stopped(conf, tmp_path, capsys):
    """Every type of data has its part of the loss; two updates and then two are, to the last bit, four."""
    assert command("pretrain", conf, tmp_path / "whole") == 0
    said = capsys.readouterr().err
    assert said.count("25.0% of a pass") == 4
    for kind in ("audio+video", "audio+text", "text"):  # sound alone is part of others and no longer
        assert f"frames of {kind}): peak memory" in (tmp_path / "whole/log.txt").read_text()
    whole = losses(tmp_path / "whole")
    assert len(whole) == 4 and all(line.keys() > {f"loss/{name}" for name in TYPES} for line in whole)
    seen = Counter(name for line in whole for name in TYPES if line[f"loss/{name}"] > 0)
    assert all(seen[name] >= 2 for name in TYPES), seen
    assert command("pretrain", conf, tmp_path / "parts", "--set", "training.updates=2") == 0
    assert command("pretrain", conf, tmp_path / "parts") == 0
    assert losses(tmp_path / "parts") == whole
    one, other = (load_file(tmp_path / name / "encoder/encoder.safetensors") for name in ("whole", "parts"))
    assert one.keys() == other.keys() and all(bool((one[name] == other[name]).all()) for name in one)
