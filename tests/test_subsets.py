"""Features of the complete input or of subsets of streams, codebooks from any of them, and where units come from."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cuts import PRETRAIN, command, write_cuts, write_run

from mmspeech import config as configs
from mmspeech.cli import extract_features
from mmspeech.data import units
from mmspeech.data.cutfiles import open_cuts, writing_cuts
from mmspeech.errors import UserError
from mmspeech.models.av_encoder import AVEncoder, AVEncoderConfig, save_encoder

STREAMS = {"audio": {"reader": "logmel"}, "video": {"reader": "mouth", "size": 24, "crop": 20}}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A tiny encoder of sound and lips."""
    torch.manual_seed(0)
    model = PRETRAIN["model"] | {"layer_drop": 0.0}
    folder = tmp_path_factory.mktemp("encoder") / "encoder"
    save_encoder(AVEncoder(configs.build(model, AVEncoderConfig, folder), STREAMS), folder)
    return folder


@pytest.fixture(scope="module")
def cuts(tmp_path_factory):
    """Four cuts: two with sound and lips, one with sound alone, one with lips alone."""
    folder = tmp_path_factory.mktemp("cuts")
    both = write_cuts(folder, [1.0, 0.8, 1.2, 0.9], lips=[0, 1, 3], units=None)
    path = folder / "mixed.jsonl.gz"
    with writing_cuts(path) as writer:
        for i, cut in enumerate(open_cuts(both)):
            if i == 3:
                cut.recording = None
            writer.write(cut)
    return path


def frames(path):
    return {cut.id: (units.read_features(cut), cut.custom["features_from"]) for cut in open_cuts(path)}


def test_each_subset_has_a_folder_and_the_cuts_that_have_its_streams(cuts, encoder, tmp_path, capsys):
    """C^av, C^a, C^v: cuts that lack a stream are counted; complete input is what each cut has, and says what."""
    words = ["extract", "features", cuts, tmp_path / "out", "--encoder", encoder, "--layer", 2, "--jobs", 1]
    assert command(*words, "--modalities", "av,a,video") == 0
    said = capsys.readouterr().err
    assert f"{tmp_path / 'out/av'}: 2 cuts with frames, 2 left out that have not all of audio+video" in said
    found = {name: frames(tmp_path / "out" / name / cuts.name) for name in ("av", "a", "video")}
    assert {name: sorted(own) for name, own in found.items()} == {
        "av": ["clip000", "clip001"],
        "a": ["clip000", "clip001", "clip002"],
        "video": ["clip000", "clip001", "clip003"],
    }
    assert command(*words[:3], tmp_path / "all", *words[4:]) == 0
    whole = frames(tmp_path / "all" / cuts.name)
    assert {name: streams for name, (_, streams) in whole.items()} == {
        "clip000": "audio+video",
        "clip001": "audio+video",
        "clip002": "audio",
        "clip003": "video",
    }
    for cut, name in (("clip000", "av"), ("clip002", "a"), ("clip003", "video")):
        np.testing.assert_allclose(whole[cut][0], found[name][cut][0], atol=2e-3)
    assert np.abs(found["av"]["clip000"][0] - found["a"]["clip000"][0]).max() > 0.01
    capsys.readouterr()
    assert command(*words, "--modalities", "av,a,video") == 0
    assert capsys.readouterr().err.count("current, nothing to do") == 3


def test_a_codebook_is_learnt_from_any_subsets_together(cuts, encoder, tmp_path):
    """The union of C^av, C^a and C^v: `cluster fit` takes their files; labels keep where they come from."""
    subsets = tmp_path / "out"
    line = ["--encoder", encoder, "--layer", 2, "--jobs", 1]
    assert command("extract", "features", cuts, subsets, *line, "--modalities", "av,a,v") == 0
    files = [subsets / name / cuts.name for name in ("av", "a", "v")]
    assert command("cluster", "fit", *files, tmp_path / "union", "--clusters", 3) == 0
    assert command("cluster", "fit", files[0], tmp_path / "av", "--clusters", 3) == 0
    counts = [json.loads((tmp_path / name / "codebook.json").read_text())["frames"] for name in ("union", "av")]
    assert counts == [(25 + 20) + (25 + 20 + 30) + (25 + 20 + 22), 25 + 20]
    for name, path in zip(("av", "a", "v"), files, strict=True):
        assert command("cluster", "label", path, tmp_path / "union", tmp_path / "units" / name, "--name", "km") == 0
        for cut in open_cuts(tmp_path / "units" / name / cuts.name):
            assert units.made_from(cut, "km") == {"av": ["audio", "video"], "a": ["audio"], "v": ["video"]}[name]
            assert not cut.has_custom("features_from") and len(units.read_units(cut, "km")) >= 20


def test_first_units_are_of_the_anchor_alone(cuts, tmp_path, capsys):
    """MFCC of a cut without sound: set aside, with the rule of iterations in the reason; the others are labelled."""
    assert command("extract", "features", cuts, tmp_path / "mfcc", "--feature", "mfcc", "--jobs", 1) == 0
    reasons = (tmp_path / "mfcc/rejected.jsonl").read_text()
    assert reasons.count("\n") == 1 and "clip003: expected sound, found none" in reasons and "Sec. 3.2" in reasons
    assert {streams for _, streams in frames(tmp_path / "mfcc" / cuts.name).values()} == {"audio"}
    lips = tmp_path / "lips.jsonl.gz"
    with writing_cuts(lips) as writer:
        writer.write(list(open_cuts(cuts))[3])
    capsys.readouterr()
    assert command("extract", "features", lips, tmp_path / "none", "--feature", "mfcc", "--jobs", 1) == 2
    assert "Speech without the anchor modality has no units in the first iteration" in capsys.readouterr().err


def test_an_encoder_labels_only_what_it_has_learnt(cuts, encoder, tmp_path):
    """Trained on sound alone, it knows no lips: asked for them it says why; complete input is the sound."""
    conf = write_run(tmp_path / "a.yaml", PRETRAIN, {"data.streams": STREAMS})
    sound = write_cuts(tmp_path / "sound", [0.6, 0.8])
    assert command("pretrain", conf, tmp_path / "exp", "--set", f"data.cuts=[{sound}]") == 0
    words = ["extract", "features", cuts, tmp_path / "out", "--encoder", tmp_path / "exp/encoder", "--layer", 1]
    assert command(*words) == 0
    assert {streams for _, streams in frames(tmp_path / "out" / cuts.name).values()} == {"audio"}
    assert "clip003" in (tmp_path / "out/rejected.jsonl").read_text()
    assert command(*words, "--modalities", "v") == 2
    conf = write_run(tmp_path / "b.yaml", PRETRAIN, {"data.streams": STREAMS, "init": tmp_path / "exp/encoder"})
    lips = f"data.sources=[{{cuts: [{write_cuts(tmp_path / 'v', [0.6, 0.8], lips=[0, 1])}], streams: [video]}}]"
    assert command("pretrain", conf, tmp_path / "exp2", "--set", lips) == 0
    assert configs.read(tmp_path / "exp2/encoder/config.yaml")["trained_on"] == ["audio", "video"]


def test_subsets_that_nobody_has_are_named(cuts, encoder, tmp_path, capsys):
    line = ["--encoder", encoder, "--layer", 2, "--jobs", 1]
    sound = write_cuts(tmp_path / "sound", [0.6], units=None)
    assert command("extract", "features", sound, tmp_path / "out", *line, "--modalities", "v") == 2
    assert f"error: {sound}: no cut gave frames; none has video" in capsys.readouterr().err
    assert command("extract", "features", cuts, tmp_path / "out", *line, "--modalities", "x") == 2
    assert "--modalities x: the model knows audio, video; give letters or names" in capsys.readouterr().err
    assert command("extract", "features", cuts, tmp_path / "out", "--feature", "mfcc", "--modalities", "a") == 2
    assert "is for --encoder" in capsys.readouterr().err


def test_an_encoder_object_refuses_streams_it_was_not_trained_on():
    """From Python, too."""
    model = AVEncoder(configs.build(PRETRAIN["model"], AVEncoderConfig, Path("model.yaml")), STREAMS)
    model.trained_on = ["audio"]
    with pytest.raises(UserError, match=r"trained on audio alone; a modality N hops .* from iteration N \+ 1"):
        extract_features.wanted_streams(model, ["video"])
    assert list(extract_features.wanted_streams(model, None)) == ["audio"]
