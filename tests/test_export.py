"""`mmspeech export`: what comes out of a run is what went in, from its folders and from its checkpoints."""

import pytest
import torch
from cuts import FINETUNE, PRETRAIN, command, write_cuts, write_run

from mmspeech.models.import_avhubert import load_encoder, load_seq2seq


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A pre-training and a fine-tuning of two updates each."""
    folder = tmp_path_factory.mktemp("runs")
    cuts = write_cuts(folder, [0.6, 0.8], lips=[0, 1])
    pretrain = write_run(folder / "pretrain.yaml", PRETRAIN, {"data.cuts": [cuts]})
    finetune = write_run(folder / "finetune.yaml", FINETUNE, {"data.cuts": [cuts]})
    assert command("pretrain", pretrain, folder / "pre") == 0
    assert command("finetune", finetune, folder / "fine", "--encoder", folder / "pre/encoder") == 0
    return folder


@pytest.mark.parametrize("source", ["encoder", "checkpoints/step-0000002.ckpt"])
def test_exported_encoder_is_that_of_the_run(runs, source, tmp_path):
    assert command("export", runs / "pre" / source, tmp_path / "out") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.yaml", "encoder.safetensors", "stage.json"}
    ours, wanted = load_encoder(tmp_path / "out"), load_encoder(runs / "pre/encoder")
    assert ours.config == wanted.config and ours.inputs == wanted.inputs
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in wanted.state_dict().items())


@pytest.mark.parametrize("source", ["model", "checkpoints/step-0000002.ckpt"])
def test_exported_recognizer_is_that_of_the_run(runs, source, tmp_path):
    assert command("export", runs / "fine" / source, tmp_path / "out") == 0
    ours, wanted = load_seq2seq(tmp_path / "out"), load_seq2seq(runs / "fine/model")
    assert ours.config == wanted.config and ours.tokenizer.symbols == wanted.tokenizer.symbols
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in wanted.state_dict().items())


def test_what_cannot_be_exported_is_one_line(runs, tmp_path, capsys):
    """Nothing there; no model; a checkpoint far from its run; a folder of something else in the way."""
    stray = tmp_path / "stray" / "checkpoints" / "step-0000002.ckpt"
    stray.parent.mkdir(parents=True)
    stray.write_bytes((runs / "pre/checkpoints/step-0000002.ckpt").read_bytes())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    for model, out, words in (
        (tmp_path / "nowhere", tmp_path / "out", "no such file or folder"),
        (tmp_path / "mine", tmp_path / "out", "expected config.yaml and encoder.safetensors"),
        (runs / "pretrain.yaml", tmp_path / "out", "expected the folder of a model"),
        (stray, tmp_path / "out", "export it from its run"),
        (runs / "pre/encoder", tmp_path / "mine", "holds files of another origin"),
    ):
        assert command("export", model, out) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and words in said and said.count("\n") == 1, said
        assert not (tmp_path / "out").exists()
