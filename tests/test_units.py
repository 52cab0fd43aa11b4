"""Frames and units on cuts: storage, spans, streams, and the commands that write and read them."""

import dataclasses
import json
import os
import pickle

import numpy as np
import pytest
import torch
from cuts import write_cuts
from lhotse.supervision import AlignmentItem

from mmspeech import dist
from mmspeech.cli import extract_features
from mmspeech.cli.cluster import app as cluster_app
from mmspeech.cli.extract import app as extract_app
from mmspeech.data import audio, units
from mmspeech.data.cutfiles import open_cuts, writing_cuts
from mmspeech.errors import BadItem, UserError
from mmspeech.files import Rejects
from mmspeech.models.av_encoder import AVEncoder, AVEncoderConfig, save_encoder


@pytest.fixture
def stored(tmp_path):
    """Cuts of 1.0, 2.0 and 0.72 s with random frames (T, 3), and the frames."""
    path = write_cuts(tmp_path / "data", [1.0, 2.0, 0.72], units=None)
    arrays = {}
    rng = np.random.default_rng(0)
    new = tmp_path / "cuts.jsonl.gz"
    with writing_cuts(new) as writer, units.RawShardsWriter(tmp_path / "features" / "shard-00000.bin") as shard:
        for cut in open_cuts(path):
            arrays[cut.id] = rng.standard_normal((audio.num_frames(cut), 3)).astype(np.float16)
            writer.write(cut.with_custom(units.FEATURES, shard.store(cut, arrays[cut.id])))
    return new, arrays


def test_stored_frames_come_back_whole_and_in_spans(stored):
    """Any span that a truncated cut asks for, also through a pickled cut."""
    path, arrays = stored
    for cut in open_cuts(path):
        np.testing.assert_array_equal(units.read_features(cut), arrays[cut.id])
        part = pickle.loads(pickle.dumps(cut.truncate(offset=0.2, duration=0.4)))
        np.testing.assert_array_equal(units.read_features(part), arrays[cut.id][5:15])


def test_stored_units_keep_their_type(tmp_path):
    """One-dimensional int32 goes through; three dimensions are refused."""
    values = np.arange(25, dtype=np.int32)
    with units.RawShardsWriter(tmp_path / "a.bin") as shard:
        shard.write("first", values[:3])
        key = shard.write("second", values)
        with pytest.raises(BadItem, match="third"):
            shard.write("third", np.zeros((1, 2, 3)))
    assert key == "12:25:0:<i4"
    found = units.RawShardsReader(tmp_path / "a.bin").read(key, 20, 23)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, [20, 21, 22])


def test_shard_appears_only_when_complete(tmp_path):
    """A writer that fails leaves what was there, and no temporary file."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), units.RawShardsWriter(path) as shard:
        shard.write("a", np.zeros(3))
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_stream_holds_every_frame_once_in_batches_of_the_wanted_size(stored):
    """In order; a share takes whole utterances, the same for a seed."""
    path, arrays = stored
    batches = list(units.stream_frames([path, path], batch_frames=20))
    assert {len(batch) for batch in batches[:-1]} == {20}
    assert all(batch.dtype == np.float32 for batch in batches)
    np.testing.assert_array_equal(np.concatenate(batches), np.concatenate([*arrays.values(), *arrays.values()]))
    sizes = {seed: sum(map(len, units.stream_frames(path, share=0.5, seed=seed))) for seed in range(8)}
    assert len(set(sizes.values())) > 1
    assert sizes[3] == sum(map(len, units.stream_frames(path, share=0.5, seed=3)))


def test_units_of_another_length_than_the_frames_are_refused(tmp_path):
    """Two may be missing, three not; the message has both numbers."""
    (cut,) = open_cuts(write_cuts(tmp_path, [1.0], units=None))
    with units.RawShardsWriter(tmp_path / "u.bin") as shard:
        cuts = {n: cut.with_custom("units_km", shard.store(cut, np.zeros(n, np.int32))) for n in (22, 23, 25)}
    assert len(units.read_units(cuts[25], "km")) == 25
    assert len(units.read_units(cuts[23], "km")) == 23
    with pytest.raises(BadItem, match=r"clip000: has 22 units `km`, but its 1.00 s need 25 .*cluster label"):
        units.read_units(cuts[22], "km")
    with pytest.raises(BadItem, match="expected `units_other`"):
        units.read_units(cuts[25], "other")


def test_commands_go_from_sound_to_units_and_their_purity(tmp_path, capsys):
    """extract features, cluster fit, label, purity; each a second time does nothing."""
    path = write_cuts(tmp_path / "data", [1.0, 0.8, 1.3, 2.04], units=None)
    with writing_cuts(tmp_path / "aligned" / path.name) as writer:
        for cut in open_cuts(path):
            half = cut.duration / 2
            cut.supervisions[0].alignment = {"phone": [AlignmentItem("a", 0, half), AlignmentItem("b", half, half)]}
            writer.write(cut)
    mfcc, codebook, out = tmp_path / "mfcc", tmp_path / "codebook", tmp_path / "units"
    commands = [
        (extract_app, "features", tmp_path / "aligned" / path.name, mfcc, "--feature", "mfcc"),
        (cluster_app, "fit", mfcc / path.name, codebook, "--clusters", 5),
        (cluster_app, "label", mfcc / path.name, codebook, out, "--name", "mfcc"),
    ]
    for app, *words in commands + commands:
        app(list(map(str, words)), standalone_mode=False)
    assert capsys.readouterr().err.count("current, nothing to do") == len(commands)
    for cut in open_cuts(out / path.name):
        found = units.read_units(cut, "mfcc")
        assert found.dtype == np.int32
        assert audio.num_frames(cut) - 1 <= len(found) <= audio.num_frames(cut)
        assert found.max() < 5
        assert not cut.has_custom(units.FEATURES)
    words = ["purity", out / path.name, "--name", "mfcc", "--out", tmp_path / "purity.json"]
    cluster_app(list(map(str, words)), standalone_mode=False)
    measures = json.loads((tmp_path / "purity.json").read_text())
    assert measures == json.loads(capsys.readouterr().out)
    assert measures["phones"] == 2
    assert 0 <= measures["pnmi"] < 0.3
    assert 0.5 <= measures["phone_purity"] < 0.8


@pytest.mark.parametrize("device", ["cpu", None])
def test_frames_of_an_encoder_and_units_are_computed_on_the_gpu_if_there_is_one(tmp_path, monkeypatch, device):
    """Without --device where training would be (here a stand-in for a GPU, the CPU); with it, there."""
    asked = []
    monkeypatch.setattr(dist, "start", lambda device=None: asked.append(device) or torch.device("cpu"))
    path = write_cuts(tmp_path / "data", [1.0, 0.8], units=None, emg=True)
    save_encoder(tiny_encoder(), tmp_path / "encoder")
    frames, given = tmp_path / "frames", ["--device", device] if device else []
    extract_app(
        list(map(str, ["features", path, frames, "--encoder", tmp_path / "encoder", "--layer", 1, *given])),
        standalone_mode=False,
    )
    cluster_app(list(map(str, ["fit", frames / path.name, tmp_path / "book", "--clusters", 3])), standalone_mode=False)
    words = ["label", frames / path.name, tmp_path / "book", tmp_path / "units", "--name", "km", *given]
    cluster_app(list(map(str, words)), standalone_mode=False)
    assert asked == [device, device]


def test_sound_at_8_khz_is_set_aside_and_nothing_left_is_a_mistake(tmp_path, mmspeech):
    """One line, exit code 2, and the reason in rejected.jsonl."""
    path = write_cuts(tmp_path / "data", [1.0], units=None, rate=8000)
    done = mmspeech("extract", "features", path, tmp_path / "out", "--feature", "fbank26")
    assert done.returncode == 2
    assert "no cut gave frames" in done.stderr
    assert "found 8000 Hz" in (tmp_path / "out" / "rejected.jsonl").read_text()


def tiny_encoder() -> AVEncoder:
    torch.manual_seed(0)
    streams = {"audio": {"frontend": "linear", "size": 104}, "emg": {"frontend": "linear", "size": 8}}
    config = AVEncoderConfig(
        streams=streams, num_layers=2, dim=16, ffn_dim=32, heads=2, position_groups=4, position_kernel=8
    )
    return AVEncoder(config, {"audio": {"reader": "logmel"}, "emg": {"reader": "array", "field": "emg"}}).eval()


def extract(path, out, extractor, batch_s=60.0):
    with Rejects(out / "rejected.jsonl") as rejects:
        extract_features.extract(path, out, extractor, rejects, batch_s=batch_s, jobs=2)
    return {cut.id: units.read_features(cut) for cut in open_cuts(out / path.name)}


def test_frames_of_an_encoder_do_not_depend_on_the_batch(tmp_path):
    """Batches of one and of all; layer 0 and a block; a stream left out changes what comes out."""
    path = write_cuts(tmp_path / "data", [1.0, 2.32, 0.72, 1.6], units=None, emg=True)
    encoder, cpu = tiny_encoder(), torch.device("cpu")
    outcomes = []
    for layer in (0, 2):
        extractor = extract_features.from_encoder(encoder, layer, None, cpu)
        alone = extract(path, tmp_path / f"alone{layer}", extractor, batch_s=0.1)
        together = extract(path, tmp_path / f"together{layer}", extractor)
        assert {name: len(frames) for name, frames in alone.items()} == {
            cut.id: audio.num_frames(cut) for cut in open_cuts(path)
        }
        for name, frames in alone.items():
            np.testing.assert_allclose(frames, together[name], atol=2e-3)
        outcomes.append(together)
    only_audio = extract(path, tmp_path / "a", extract_features.from_encoder(encoder, 2, ["audio"], cpu))
    assert np.abs(only_audio["clip000"] - outcomes[1]["clip000"]).max() > 0.01
    with pytest.raises(UserError, match="--layer 3"):
        extract_features.from_encoder(encoder, 3, None, cpu)
    with pytest.raises(UserError, match="--modalities video"):
        extract_features.from_encoder(encoder, 2, ["video"], cpu)


def test_extraction_goes_on_after_the_last_whole_part(tmp_path, monkeypatch):
    """A part that has its record is not computed again; what comes out is the same."""
    monkeypatch.setattr(extract_features, "PART_CUTS", 2)
    path = write_cuts(tmp_path / "data", [1.0, 1.0, 0.7, 0.9, 0.8], units=None)
    extractor = extract_features.spectral("mfcc", torch.device("cpu"))
    seen, out = [], tmp_path / "out"

    def stopping(cuts, waves):
        seen.extend(cut.id for cut in cuts)
        if "clip004" in seen:
            raise KeyboardInterrupt
        return extractor.compute(cuts, waves)

    with pytest.raises(KeyboardInterrupt):
        extract(path, out, dataclasses.replace(extractor, compute=stopping))
    assert not (out / path.name).exists()
    seen.clear()
    resumed = extract(
        path,
        out,
        dataclasses.replace(extractor, compute=lambda *batch: seen.append(1) or extractor.compute(*batch)),
    )
    assert len(seen) == 1
    whole = extract(path, tmp_path / "whole", extractor)
    assert list(whole) == list(resumed)
    for name, frames in whole.items():
        np.testing.assert_array_equal(frames, resumed[name])


def test_features_command_takes_an_encoder(tmp_path, mmspeech):
    """A saved encoder knows how its streams are read; --feature and --encoder exclude each other."""
    path = write_cuts(tmp_path / "data", [1.0], units=None)
    save_encoder(tiny_encoder(), tmp_path / "encoder")
    words = ("extract", "features", path, tmp_path / "out", "--encoder", tmp_path / "encoder", "--layer", 2)
    done = mmspeech(*words)
    assert done.returncode == 0, done.stderr
    (cut,) = open_cuts(tmp_path / "out" / path.name)
    assert units.read_features(cut).shape == (25, 16)
    assert mmspeech(*words, "--feature", "mfcc").returncode == 2
