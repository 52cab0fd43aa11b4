"""VATLM's noise protocol: Table IV laid out from scores, its averages, and the command that prints it."""

from pathlib import Path

import numpy as np
import pytest
from cuts import command
from test_scoring import decoded

from mmspeech.data import noise
from mmspeech.errors import UserError
from mmspeech.scoring import noise_table, table

SNRS = (-10, -5, 0, 5, 10)
TABLE_IV = {  # VATLM, printed: rates by rising SNR and their average, for each kind; clean
    ("AV-HuBERT", "a"): (
        [120.1, 93.2, 44.7, 18.1, 9.6, 57.1], [120.0, 93.0, 59.2, 30.9, 15.0, 63.6],
        [72.1, 44.9, 21.8, 12.3, 8.4, 31.9], 6.2,
    ),
    ("VATLM", "a"): (
        [118.0, 91.4, 34.1, 12.3, 6.6, 52.5], [117.9, 91.5, 41.7, 20.4, 10.3, 56.4],
        [65.0, 35.2, 14.7, 7.9, 5.7, 25.7], 4.1,
    ),
    ("VATLM", "av"): (
        [45.8, 30.6, 13.4, 6.8, 4.9, 20.3], [45.6, 30.8, 10.9, 7.1, 5.0, 19.9],
        [25.2, 13.9, 7.7, 5.5, 4.8, 11.4], 3.6,
    ),
}  # fmt: skip


def score(label: str, modality: str, named: str, value: float, **more) -> table.Score:
    about = {
        "set": "test",
        "metric": "wer",
        "noise_hash": None,
        "low": value,
        "high": value,
        "sentences": 1,
        "words": 9,
    }
    about["folder"] = Path(f"{label}/{modality}-{named}")
    return table.Score(label=label, modality=modality, noise=named, value=value, **(about | more))


@pytest.fixture
def scores() -> list[table.Score]:
    """Table IV, in an order of its own, with lips beside it."""
    found = []
    for (label, modality), (*kinds, clean) in TABLE_IV.items():
        for kind, values in zip(("babble", "speech", "music"), kinds, strict=True):
            found += [score(label, modality, f"{kind}:{snr}", one) for snr, one in zip(SNRS, values, strict=False)]
        found.append(score(label, modality, "clean", clean))
    lips = [score("VATLM", "v", "clean", 48.0, hears_noise=False), score("floor", table.ANY, table.ANY, 99.0)]
    return [*lips, *reversed(found)]


def test_table_iv_comes_out_as_it_is_printed(scores):
    """Kinds and rising SNRs across, the average behind each, clean last; inputs of a system below each other."""
    (grid,) = noise_table.grids(scores)
    assert list(grid.rows) == [("VATLM", "AV"), ("VATLM", "A"), ("AV-HuBERT", "A")]
    columns = [(kind, name) for kind in ("babble", "speech", "music") for name in ("-10", "-5", "0", "5", "10", "avg")]
    assert grid.columns == [*columns, ("clean", "")]
    for (label, modality), (*kinds, clean) in TABLE_IV.items():
        ours = [grid.value((label, modality.upper()), column) for column in grid.columns]
        assert ours == pytest.approx([*np.concatenate(kinds), clean], abs=0.051)
    assert noise_table.markdown(grid).splitlines()[2] == (
        "| VATLM | AV | 45.8 | 30.6 | 13.4 | 6.8 | 4.9 | 20.3 | 45.6 | 30.8 | 10.9 | 7.1 | 5.0 | 19.9 | 25.2 | 13.9 | "
        "7.7 | 5.5 | 4.8 | 11.4 | 3.6 |"
    )


def test_an_average_needs_all_its_levels(scores):
    """One is missing: a dash for it and for its average; the others stay. Each kind alone for narrow terminals."""
    (grid,) = noise_table.grids([one for one in scores if (one.label, one.noise) != ("AV-HuBERT", "music:0")])
    assert grid.cells(("AV-HuBERT", "A"))[-7:] == ["72.1", "44.9", "–", "12.3", "8.4", "–", "6.2"]
    assert grid.cells(("AV-HuBERT", "A"))[5] == "57.1"
    assert [part.columns[0][0] for part in noise_table.by_kind(grid)] == ["babble", "speech", "music"]
    assert noise_table.grids([one for one in scores if one.noise == "clean"]) == []


def test_the_command_prints_and_writes_it(tmp_path, capsys):
    """From what decode and score left; the report has it, too."""
    for modality in ("a", "av"):
        for number, named in enumerate(["clean", *(str(kind) for kind in noise.parse_kinds(["grid"]))]):
            name = f"test-{modality}-{named.replace(':', '_')}"
            texts = [("one two three four", "one two three four"[: 18 - number])]
            mark = None if named == "clean" else f"{number:08d}"
            decoded(tmp_path / "exp/decode" / name, texts, modality=modality, noise=named, noise_hash=mark)
    assert command("score", "noise", tmp_path / "exp") == 0  # scores them first
    assert command("score", "report", tmp_path / "exp") == 0
    said = capsys.readouterr().out
    assert "WER in % on test in noise, by SNR in dB" in said and "babble" in said and "avg" in said
    head, _, *rows = (tmp_path / "exp/report/noise.md").read_text().splitlines()
    assert head.count("avg") == 3 and len(rows) == 2
    lines = (tmp_path / "exp/report/noise.tsv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 19 and lines[1].split("\t")[:5] == ["test", "exp", "AV", "babble", "-10"]
    page = (tmp_path / "exp/report/index.html").read_text()
    assert page.count("by SNR in dB</caption>") == 1 and "Word error rate over noise" in page


def test_a_model_that_was_decoded_twice_has_a_row_for_each_time(tmp_path):
    """Named by the folders that were given to decode; only sets of one name in one of them by their own."""
    found = [
        score("ours", modality, named, value, folder=Path(f"exp/{out}/test-{modality}-{named}"))
        for out, value in (("all", 10.0), ("grid", 20.0))
        for modality in ("a", "av")
        for named in ("clean", "babble:0")
    ]
    (grid,) = noise_table.grids(found)
    labels = ["ours (exp/all)", "ours (exp/grid)"]
    assert list(grid.rows) == [(label, streams) for label in labels for streams in ("AV", "A")]
    assert grid.cells((labels[1], "A")) == ["20.0", "20.0", "20.0"]
    twice = [
        score("ours", "a", "clean", 1.0, folder=Path(f"exp/all/{name}")) for name in ("test-a-clean", "dev-a-clean")
    ]
    assert [one.label for one in table.with_distinct_labels(twice)] == [f"ours ({one.folder})" for one in twice]


def test_nothing_in_noise_is_one_line(tmp_path, capsys):
    decoded(tmp_path / "exp/decode/test-a-clean", [("one", "one")], modality="a")
    assert command("score", "wer", tmp_path / "exp/decode/test-a-clean") == 0
    assert command("score", "noise", tmp_path / "exp") == 2
    assert "nothing was decoded in noise; run `mmspeech decode --noise-grid`" in capsys.readouterr().err


def test_levels_in_training_are_drawn_uniformly(monkeypatch, tmp_path):
    """[0, 25] dB: each whole number as often as any other, both ends included; the draw depends on its key alone."""
    heard: list[int] = []
    monkeypatch.setattr(noise.Noises, "draw", lambda self, samples, rng: ("n", 0, np.ones(samples)))
    monkeypatch.setattr(noise.cutfiles, "is_empty", lambda path: False)
    monkeypatch.setattr(noise, "find_gain", lambda clean, added, snr_db: heard.append(snr_db) or 0.0)
    weights = dict.fromkeys(noise.GRID, 1.0)
    config = noise.NoiseConfig(cuts=tmp_path, probability=1.0, snr_db=(0, 25), categories=weights)
    pool = noise.NoisePool(config, seed=3)

    class Named:
        id = "clip"

    number = 5200
    for i in range(number):
        pool(np.ones(4, np.float32), Named(), i)
    counts = np.bincount(heard, minlength=26)
    assert len(counts) == 26
    assert ((counts - number / 26) ** 2 / (number / 26)).sum() < 52.6  # chi-square, 25 degrees of freedom, p = 0.001


def test_the_grid_has_fifteen_noises():
    kinds = noise.parse_kinds(["grid"])
    assert len(kinds) == 15 and {kind.category for kind in kinds} == {"babble", "speech", "music"}
    assert {kind.snr_db for kind in kinds} == set(SNRS)
    assert noise.parse_kinds(["grid", "all"])[:15] == kinds and len(noise.parse_kinds(["grid,all"])) == 20
    with pytest.raises(UserError, match="--noise grids: expected"):
        noise.parse_kinds(["grids"])
