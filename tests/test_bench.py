"""The bench: its sides compute the same, and what it measures is told completely."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmspeech.bench import __main__ as bench
from mmspeech.bench.measure import Ready, Row, Settings, measure
from mmspeech.errors import UserError

pytest.importorskip("python_speech_features")

SETTINGS = Settings(size="tiny", quick=True, seed=0, device="cpu")
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", bench.ROWS)
def test_ours_and_peers_do_the_same_work_with_the_same_result(name, tmp_path):
    """Frames in grey levels, features in numbers, the training step in its loss, searches in their hypotheses."""
    row = bench.ROWS[name]
    builders = [row.ours[1], *row.peers.values()]
    sides = []
    for i, builder in enumerate(builders):
        (tmp_path / str(i)).mkdir()
        sides.append(builder(SETTINGS, tmp_path / str(i)))
    answer = sides[0].answer()
    for peer in sides[1:]:
        assert peer.work == sides[0].work
        difference, allowed = row.difference(answer, peer.answer())
        assert difference <= allowed
    for side in sides:
        side.run(1)


def test_the_command_writes_figures_ratio_memory_and_machine(tmp_path):
    """The real bin/bench on the cheapest row."""
    words = [ROOT / "bin" / "bench", "--quick", "--rows", "fbank", "--repetitions", "2", "--out", tmp_path / "b.json"]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHON": sys.executable}
    )
    assert done.returncode == 0, done.stderr
    assert "kaldi-native-fbank" in done.stdout
    found = json.loads((tmp_path / "b.json").read_text())
    assert {"cpu", "cores", "threads", "torch", "device", "load"} <= found["machine"].keys()
    assert {"date", "commit", "seed", "settings"} <= found.keys()
    (row,) = found["rows"].values()
    (peer,) = row["peers"]
    for side in (row["ours"], peer):
        assert side["figures"]["x real time"] > 0
        assert len(side["seconds"]) == 2
        assert side["memory"]["peak_mib"] > side["memory"]["above_libraries_mib"] > 0
    assert peer["ours_is_times_faster"] > 0
    assert peer["difference_from_ours"] <= 0.05


def test_what_does_more_than_its_peer_is_told_as_a_cost(tmp_path):
    """AV-data2vec's step: `1.25x the time`, not 0.80x faster; the teacher's memory, of which u-HuBERT has nothing."""
    peer = {"ours_is_times_faster": 0.8}
    assert bench.ratio({"is_cost": True}, peer) == "1.25x the time"
    assert bench.ratio({"is_cost": False}, peer) == "0.80x faster"
    row = bench.ROWS["data2vec"]
    ready = row.ours[1](SETTINGS, tmp_path)
    ((unit, mib),) = ready.facts.items()
    assert row.is_cost and "the teacher's weights and buffers" in unit and 0.1 < mib < 100


def test_an_unknown_row_is_named_with_those_that_exist():
    result = CliRunner().invoke(bench.app, ["--rows", "mouths"])
    assert isinstance(result.exception, UserError)
    assert str(result.exception).startswith("--rows mouths: no such row; known: mouth, ")


def answers_one(settings, folder):
    return Ready(lambda number: None, lambda: 1.0, {"frames": 1.0})


def answers_two(settings, folder):
    return Ready(lambda number: None, lambda: 2.0, {"frames": 1.0})


def test_a_peer_that_computes_something_else_is_not_timed(tmp_path):
    row = Row("toy", ("one", answers_one), {"two": answers_two}, ("frames/s",), lambda a, b: (abs(a - b), 0.5))
    with pytest.raises(UserError, match="toy: two differs from ours by 1, not 0"):
        measure(row, SETTINGS, 1, tmp_path)
