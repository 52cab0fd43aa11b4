"""A stream that nobody thought of, eight channels of muscle currents: from YAML to trained weights."""

import pytest
import torch
from cuts import PRETRAIN, command, write_cuts, write_run
from safetensors.torch import load_file

from mmspeech.models.av_encoder import AVEncoder, load_encoder


@pytest.mark.parametrize("masking", ["input", "feature"])
def test_invented_stream_pretrains_by_yaml(tmp_path, masking):
    """A front-end, a reader, a mask and shares of dropout, all in YAML: two updates change the front-end's weights."""
    cuts = write_cuts(tmp_path / "data", [1.0, 1.2, 0.8, 1.6], emg=True)
    changes = {
        "model.streams": {"audio": {"frontend": "linear", "size": 104}, "emg": {"frontend": "linear", "size": 8}},
        "data.streams": {"audio": {"reader": "logmel"}, "emg": {"reader": "array", "field": "emg"}},
        "data.cuts": [cuts],
        "objective.masking": masking,
        "objective.modality_dropout": {"audio+emg": 0.5, "emg": 0.5},
        "objective.input_masks": {
            "audio": {"probability": 0.8, "length": 10},
            "emg": {"probability": 0.5, "length": 5},
        },
    }
    conf = write_run(tmp_path / "emg.yaml", PRETRAIN, changes)
    assert command("pretrain", conf, tmp_path / "exp") == 0

    encoder = load_encoder(tmp_path / "exp" / "encoder")
    assert encoder.inputs["emg"] == {"reader": "array", "field": "emg"}
    torch.manual_seed(PRETRAIN["seed"])
    before = AVEncoder(encoder.config).state_dict()
    after = load_file(tmp_path / "exp" / "encoder" / "encoder.safetensors")
    for name in ("frontends.emg.project.weight", "frontends.emg.project.bias"):
        assert (after[name] != before[name]).any(), name
        assert torch.isfinite(after[name]).all(), name
