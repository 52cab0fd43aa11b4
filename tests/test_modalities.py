"""Telling modalities apart: a classifier's laws, the command on a tiny encoder, differences of models, the report."""

import json

import numpy as np
import pytest
import torch
from cuts import command, write_cuts
from test_codebooks import DURATIONS, align, save_tiny
from test_scoring import decoded

from mmspeech.errors import UserError
from mmspeech.models.av_encoder import AVEncoder, AVEncoderConfig, save_encoder
from mmspeech.scoring import modalities

WORDS = ["--frames", 60, "--points", 20, "--resamples", 200, "--device", "cpu"]


def frames_of(number: int, inputs: int, shift: float, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """(number, inputs, 6) frames of ten utterances; each input moves them by `shift` in a direction of its own."""
    rng = np.random.default_rng(seed)
    frames = rng.standard_normal((number, inputs, 6))
    frames[:, np.arange(inputs), np.arange(inputs)] += shift
    return frames, [f"u{i % 10}" for i in range(number)]


@pytest.mark.parametrize("inputs", [2, 4])
def test_one_space_is_at_chance_and_apart_ones_are_known(inputs):
    """Frames that do not depend on the input: 1 / M right, log2 M bits; far apart: all right, no bits left."""
    answers = modalities.classify(*frames_of(400, inputs, 0.0))
    found = modalities.summary(answers, seed=0, resamples=300)
    assert found["chance"] == 100 / inputs and found["accuracy"] == pytest.approx(100 / inputs, abs=4)
    assert found["bits"] == pytest.approx(np.log2(inputs), abs=0.06)
    found = modalities.summary(modalities.classify(*frames_of(400, inputs, 20.0)), seed=0, resamples=300)
    assert (found["accuracy"], found["low"], found["high"]) == (100, 100, 100) and found["bits"] < 0.05
    assert np.array_equal(found["confusion"], 100 * np.eye(inputs))


def test_the_further_apart_the_surer():
    """Accuracy rises and bits fall with the distance; the same seed gives the same figures."""
    found = [
        modalities.summary(modalities.classify(*frames_of(300, 3, by)), seed=0, resamples=200) for by in (0, 1, 2, 4)
    ]
    accuracies, bits = [one["accuracy"] for one in found], [one["bits"] for one in found]
    assert accuracies == sorted(accuracies) and bits == sorted(bits, reverse=True)
    assert found[1] == modalities.summary(modalities.classify(*frames_of(300, 3, 1)), seed=0, resamples=200)


def test_no_utterance_is_learnt_and_asked_about():
    """What tells the inputs apart in one utterance alone does not help: it is never both learnt and asked about."""
    rng = np.random.default_rng(0)
    frames, owners = np.zeros((200, 2, 11)), [f"u{i % 10}" for i in range(200)]
    for number, turned in enumerate(rng.permuted([1.0, -1.0] * 5)):
        frames[number::10, 0, number], frames[number::10, 1, number] = turned, -turned
    frames += 0.01 * rng.standard_normal(frames.shape)
    assert modalities.classify(frames, owners).rows[:, 0].sum() / 400 < 0.7
    with pytest.raises(UserError, match="frames of 1 utterance; at least two are needed"):
        modalities.classify(frames[:3], ["a"] * 3)


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A three-stream encoder with random weights, cuts with all its streams, and what the command writes of them."""
    place = tmp_path_factory.mktemp("modalities")
    cuts = write_cuts(place / "data", DURATIONS, units=None, emg=True, lips=range(len(DURATIONS)))
    encoder = save_tiny(place / "run/encoder")
    assert command("score", "modalities", encoder, cuts, place / "out", *WORDS) == 0
    return encoder, cuts, place


def test_streams_come_from_the_encoder_and_phones_are_not_needed(material):
    """All together and each alone, an invented one among them; the same frames of each."""
    _, _, place = material
    found = modalities.load(place / "out/modalities.json")
    assert found.modalities == ["audio+video+emg", "audio", "video", "emg"]
    assert (found.frames, found.utterances, found.chance, found.layer, found.label) == (60, 8, 25.0, 2, "run")
    assert found.low <= found.accuracy <= found.high and found.bits >= 0
    assert np.sum(found.confusion, axis=1) == pytest.approx([100] * 4, abs=0.01)
    points = json.loads((place / "out/tsne.json").read_text())
    assert points["features"] == [name for name in found.modalities for _ in range(20)] and set(points["phones"]) == {
        "-"
    }
    assert {path.name for path in (place / "out").iterdir()} == {
        "modalities.json", "modalities.safetensors", "modalities.md", "tsne.json", "tsne.png", "rejected.jsonl",
        "stage.json",
    }  # fmt: skip
    assert "taken for" in (place / "out/modalities.md").read_text()


def test_named_inputs_need_no_other_stream(material, tmp_path, capsys):
    """Cuts without lips do for sound and emg; with phones the picture is coloured by them, too."""
    encoder, _, _ = material
    cuts = align(write_cuts(tmp_path / "data", DURATIONS, units=None, emg=True), tmp_path / "cuts.jsonl.gz")
    given = ["score", "modalities", encoder, cuts, tmp_path / "out", *WORDS, "--modalities", "a,e,ae"]
    assert command(*given) == 0
    found = modalities.load(tmp_path / "out/modalities.json")
    assert found.modalities == ["audio", "emg", "audio+emg"] and found.corpus == "synth digits"
    assert set(json.loads((tmp_path / "out/tsne.json").read_text())["phones"]) > {"a", "b"}
    capsys.readouterr()
    assert command(*given) == 0
    assert "current, nothing to do" in capsys.readouterr().err


def test_phones_that_end_before_the_sound_are_compared_as_far_as_they_go(tmp_path):
    """Figure 3's text: aligned, as long as the sound; at a fixed rate shorter, and the other inputs are cut to it."""
    streams = {"audio": {"frontend": "linear", "size": 104}, "text": {"frontend": "phones", "size": 46}}
    sizes = {"num_layers": 1, "dim": 16, "ffn_dim": 32, "heads": 2, "position_groups": 4, "position_kernel": 7}
    inputs = {"audio": {"reader": "logmel"}, "text": {"reader": "phones"}}
    torch.manual_seed(0)
    save_encoder(AVEncoder(AVEncoderConfig(streams=streams, **sizes), inputs), tmp_path / "run/encoder")
    (tmp_path / "lexicon.txt").write_text("one W AH N\n")
    path = write_cuts(tmp_path / "data", DURATIONS, units=None, texts=["one"] * 4 + ["one one one"] * 4)
    options = ("--durations", "cut-or-pad", "--lexicon", tmp_path / "lexicon.txt")
    assert command("extract", "phones", path, tmp_path / "phones", *options) == 0
    given = ["score", "modalities", tmp_path / "run/encoder", tmp_path / "phones" / path.name, tmp_path / "out", *WORDS]
    assert command(*given, "--modalities", "at,a,text", "--strict") == 0
    found = modalities.load(tmp_path / "out/modalities.json")
    assert (found.modalities, found.utterances) == (["audio+text", "audio", "text"], 8)
    assert found.frames == 60 <= 4 * 6 + 4 * 18  # two frames a phone


def test_two_models_are_compared_on_the_same_frames(material, tmp_path):
    """With itself: nothing; with another encoder: an interval; on other frames it is refused."""
    _, cuts, place = material
    nothing = modalities.difference(place / "out", place / "out")
    assert (nothing.value, nothing.low, nothing.high) == (0, 0, 0)
    given = [*WORDS, "--layer", 0]
    assert command("score", "modalities", place / "run/encoder", cuts, tmp_path / "zero", *given) == 0
    found = [modalities.load(folder / "modalities.json") for folder in (place / "out", tmp_path / "zero")]
    one = modalities.difference(place / "out", tmp_path / "zero")
    assert one.value == pytest.approx(found[1].accuracy - found[0].accuracy) and one.low <= one.value <= one.high
    assert command("score", "modalities", place / "run/encoder", cuts, tmp_path / "seed", *WORDS, "--seed", 1) == 0
    with pytest.raises(UserError, match="other frames or other inputs"):
        modalities.difference(place / "out", tmp_path / "seed")


def test_the_report_shows_it(material, capsys):
    _, _, place = material
    decoded(place / "run/decode/test-av-clean", [("one two", "one two")])
    assert command("score", "report", place) == 0
    page = (place / "report/index.html").read_text()
    assert "Modalities in one space" in page and "run: AVE, A, V, E are told apart in" in page
    assert page.count('src="data:image/png;base64,') == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--modalities", "a"], "--modalities a: one input; name two or more"),
        (["--modalities", "a,x"], "--modalities x: the model knows audio, video, emg"),
        (["--layer", 9], "--layer 9: the encoder has 0 (fused features) to 2"),
    ],
)
def test_what_cannot_be_told_apart_is_one_line(material, tmp_path, capsys, words, message):
    encoder, cuts, _ = material
    assert command("score", "modalities", encoder, cuts, tmp_path / "out", *WORDS, *words) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and message in last and not (tmp_path / "out").exists()
