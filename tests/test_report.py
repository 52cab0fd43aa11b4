"""The report: one page that holds the table, the curves, and clips with pictures and marked errors."""

import json
import math
import re

import numpy as np
import pytest
from cuts import write_cuts
from lhotse import Recording
from test_scoring import decoded

from mmspeech.cli import score
from mmspeech.data import cutfiles, video
from mmspeech.data.open_shards import forget_open_shards
from mmspeech.errors import UserError
from mmspeech.scoring import plots, report, table, wer


@pytest.fixture
def experiment(tmp_path):
    """Two systems' worth of files: decoded sets at three SNRs, metrics, and test cuts with mouth tracks."""
    exp = tmp_path / "exp"
    texts = [("one two three", "one three"), ("four & five", "four <b> five"), ("six", "six")]
    for noise in ("clean", "babble:10", "babble:0", "babble:-5"):
        name = f"test-av-{noise.replace(':', '')}"
        decoded(exp / "finetune/decode" / name, texts, noise=noise, noise_hash=None if noise == "clean" else "abcd1234")
    decoded(exp / "finetune/decode/test-v-clean", texts, modality="v")
    lines = [{"update": i, "loss": math.exp(-i / 300), "lr": 1e-3, "valid/loss": 1.0} for i in range(0, 2000, 2)]
    (exp / "finetune/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"update": 20')
    ramp = np.linspace(20, 220, 75).astype(np.uint8)[:, None, None]
    with video.MouthWriter(tmp_path / "shard.jpgs") as writer:
        key = writer.write("track", np.broadcast_to(ramp, (75, 96, 96)).copy())
    with cutfiles.writing_cuts(tmp_path / "cuts_test.jsonl.gz") as writer:
        for i in range(3):
            cut = Recording(f"u{i}", [], sampling_rate=16000, num_samples=48000, duration=3.0, channel_ids=[0]).to_cut()
            cut.id = f"u{i}"
            cut.mouth = video.track_manifest(tmp_path / "shard.jpgs", key)
            writer.write(cut)
    return exp


def test_report_scores_what_is_missing_and_shows_tables_curves_and_pictures(experiment, mmspeech):
    silent = decoded(experiment / "other/decode/clips-av-clean", [("", "one")], set="clips")
    (silent / "ref.jsonl").write_text("")
    done = mmspeech("score", "report", experiment, "--cuts", experiment.parent / "cuts_test.jsonl.gz")
    assert done.returncode == 0, done.stderr
    page = experiment / "report/index.html"
    assert str(page) in done.stderr.replace("\n", "")
    assert "decoded without transcripts" in done.stderr
    assert "WER in % on test" in done.stdout
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 3
    assert text.count("<svg") == 2  # the training curves, and WER over SNR
    assert "#abcd1234" in text
    assert "four &amp; five" in text and "<b> five" not in text
    assert "<del>two</del>" in text
    assert not re.search(r'<script|(src|href)="(?!data:|#)', text)  # self-contained
    assert len(list((experiment / "finetune/decode").glob("*/score.json"))) == 5


def test_strip_holds_frames_in_their_order():
    frames = np.broadcast_to(np.arange(60, dtype=np.uint8)[:, None, None], (60, 8, 8))
    strip = report.strip_of(frames)
    assert strip.shape == (8, 8 * report.FRAMES)
    shown = strip[0, ::8].astype(int)
    assert (np.diff(shown) > 0).all()
    assert report.strip_of(frames[:1]).shape == strip.shape  # a clip of one frame


def test_the_same_seed_shows_the_same_clips(experiment):
    for folder in (experiment / "finetune/decode").iterdir():
        wer.score_folder(folder)
    scores = table.collect([experiment])
    first, again = (report.pick_clips(scores, 2, seed=5) for _ in range(2))
    assert [clip.id for clip in first] == [clip.id for clip in again]
    assert len(first) == 2
    assert ("finetune", "V clean") in first[0].hypotheses
    assert report.pick_clips(scores, 0) == []


def test_curves_of_a_resumed_run_count_each_update_once(tmp_path):
    """The later line of an update counts; a nan is left out; a broken line names its place."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"update": 1, "loss": 3}\n{"update": 2, "loss": 9}\n{"update": 2, "loss": 2}\n{"update": 3, "loss": NaN}\n'
    )
    assert plots.read_metrics(path)["loss"].tolist() == [[1, 3], [2, 2]]
    path.write_text("oops\n" + path.read_text())
    with pytest.raises(UserError, match=r"metrics.jsonl:1: expected"):
        plots.read_metrics(path)


def test_figures_of_validation_are_curves_of_their_own(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"update": 1, "kind": "train", "loss": 3}\n{"update": 1, "kind": "valid", "loss": 4}\n')
    curves = plots.read_metrics(path)
    assert {name: curve.tolist() for name, curve in curves.items()} == {"loss": [[1, 3]], "valid/loss": [[1, 4]]}


def test_long_curves_are_thinned_to_means():
    curve = np.stack([np.arange(10_000), np.arange(10_000) * 2.0], axis=1)
    thin = plots.thinned(curve)
    assert len(thin) == plots.POINTS
    np.testing.assert_allclose(thin[:, 1], 2 * thin[:, 0])
    np.testing.assert_allclose(thin[0], curve[:34].mean(axis=0))


def test_one_snr_makes_no_plot_over_snr(experiment):
    for folder in (experiment / "finetune/decode").iterdir():
        wer.score_folder(folder)
    scores = table.collect([experiment])
    assert plots.rate_over_snr(scores).startswith("<svg")
    assert plots.rate_over_snr([score for score in scores if score.noise in ("clean", "babble:0")]) == ""


def test_a_clip_whose_frames_are_gone_has_no_picture(tmp_path, capsys):
    """Pictures are an extra: one that cannot be read is told, and the report is written without it."""
    here, gone = (write_cuts(tmp_path / name, [1.0], lips=[0]) for name in ("here", "gone"))
    (tmp_path / "gone/cuts.jsonl.gz.jpgs").unlink()
    forget_open_shards()
    assert list(score.mouth_frames(here, {"clip000"})) == ["clip000"]
    assert score.mouth_frames(gone, {"clip000"}) == {}
    said = capsys.readouterr().err
    assert "no picture: clip000: " in said and "no such file" in said and "the report shows texts only" in said
