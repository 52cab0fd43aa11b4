"""A public VATLM is a model like another: its text stream, its objective, what it says where ours is not its own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cuts import attach, command, write_cuts
from lhotse import MonoCut, NumpyFilesWriter
from public_models import public_inputs, reference
from safetensors.torch import load_file
from torch import Tensor

from mmspeech import config as configs
from mmspeech.batch import Batch
from mmspeech.data import phones, units
from mmspeech.data.cutfiles import open_cuts, writing_cuts
from mmspeech.errors import UserError
from mmspeech.models.av_encoder import load_encoder as load_folder
from mmspeech.models.import_avhubert import load_encoder, load_pretrained, load_seq2seq
from mmspeech.pretraining.vatlm import Vatlm, VatlmConfig

RECIPE = Path(__file__).parents[1] / "recipes/lrs3/conf/vatlm/pretrain/base-lrs3.yaml"
WORDS = ["--frames", 40, "--points", 20, "--resamples", 200, "--device", "cpu"]
TYPES = ("audio+video", "audio", "audio+text", "text")


@pytest.fixture(scope="module")
def imported(shared, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vatlm") / "imported"
    assert command("import", reference(shared, "tiny_vatlm")[0], folder) == 0
    return folder


def plain(shared: Path) -> dict:
    """The stored checkpoint, to be changed."""
    return torch.load(shared / "reference/vatlm/tiny_vatlm_plain.pt", weights_only=True)


def masks_fused(content: dict) -> dict:
    """The checkpoint as `masking_type: feature` makes them: a mask embedding of width D, the same masks for all."""
    content["model"]["mask_emb"] = torch.linspace(-1, 1, 64)
    content["cfg"]["model"] |= {"masking_type": "feature", "mask_prob_image": 0.8, "mask_length_image": 10}
    return content


def write(content: dict, folder: Path) -> Path:
    torch.save(content, folder / "vatlm.pt")
    return folder / "vatlm.pt"


def test_streams_are_read_as_our_own_pretraining_writes_them(imported):
    tree = configs.read(imported / "config.yaml")
    assert tree["inputs"] == configs.read(RECIPE)["data"]["streams"]
    assert tree["trained_on"] == list(tree["model"]["streams"]) == ["audio", "video", "text"]
    # The ids that the reader lets through are the rows of the public table: 41 phones behind 4 special ones, 1 spare.
    assert tree["model"]["streams"]["text"]["size"] == len(phones.SYMBOLS) == 46
    assert phones.SYMBOLS[:4] == ("<s>", "<pad>", "</s>", "<unk>") and len(phones.CATEGORIES) == 41


def test_text_features_of_the_command_line_are_the_public_models(shared, imported, tmp_path):
    """Phones in cuts, import, extract features: the raw output of block 2, in half precision."""
    io = reference(shared, "tiny_vatlm")[1]
    with writing_cuts(tmp_path / "cuts.jsonl.gz") as writer, NumpyFilesWriter(tmp_path / "phones") as arrays:
        for number, ids in enumerate(io["phones"].view(2, 20, 4).numpy()):
            writer.write(attach(MonoCut(f"text{number}", 0, 0.8, 0), arrays, "phones", ids.astype(np.uint8)))
    options = ("--encoder", imported, "--layer", 2, "--modalities", "text", "--device", "cpu", "--strict")
    assert command("extract", "features", tmp_path / "cuts.jsonl.gz", tmp_path / "out", *options) == 0
    found = list(open_cuts(next((tmp_path / "out").rglob("cuts.jsonl.gz"))))
    assert [cut.id for cut in found] == ["text0", "text1"]
    for cut, wanted in zip(found, io["forward"]["text"]["layers"][1], strict=True):
        own = torch.from_numpy(units.read_features(cut, units.FEATURES)).float()
        torch.testing.assert_close(own, wanted, atol=1e-3, rtol=1e-3)


def test_modalities_of_the_imported_model_are_compared(imported, tmp_path, capsys):
    """Figure 3's inputs, on cuts that have them all; what nobody knows is one line that names the text stream."""
    cuts = write_cuts(tmp_path / "data", [0.4, 0.5, 0.6], lips=range(3), phones=range(3), units=None)
    given = ["score", "modalities", imported, cuts, tmp_path / "out", *WORDS, "--modalities"]
    assert command(*given, "av,a,v,text") == 0
    found = json.loads((tmp_path / "out/modalities.json").read_text())
    assert found["modalities"] == ["audio+video", "audio", "video", "text"] and found["utterances"] == 3
    capsys.readouterr()
    assert command(*given, "av,x") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: --modalities x: the model knows audio, video, text")


def test_a_fused_mask_gives_our_objective(shared, tmp_path):
    """Every tensor and setting that Vatlm has comes from the file, and import writes both as they are."""
    content = masks_fused(plain(shared))
    content["cfg"]["criterion"]["banlance_loss_weights"] = [0.5, 2.0]
    path, public = write(content, tmp_path), content["model"]
    model = load_pretrained(path)
    assert isinstance(model, Vatlm) and not model.training
    for own, name in {
        "mask_embedding": "mask_emb",
        "codebook": "label_embs_concat",
        "project.weight": "final_proj.weight",
        "project.bias": "final_proj.bias",
        "encoder.frontends.text.conv2.weight": "phone_conv.2.weight",
    }.items():
        assert torch.equal(model.state_dict()[own], public[name]), own
    config = model.config
    assert (config.num_units, config.temperature, config.feature_penalty) == (24, 0.1, 10.0)
    assert config.weights == {"audio+video": 1.0, "audio": 2.0, "audio+text": 1.0, "text": 0.5}
    assert config.modality_dropout == {"audio+video+text": 0.5, "audio+text": 0.25, "video+text": 0.25}
    assert (config.mask.probability, config.mask.length, config.mask.replace) == (0.8, 10, "embedding")

    out = tmp_path / "out"
    assert command("import", path, out) == 0
    assert configs.build(configs.read(out / "objective.yaml")["objective"], VatlmConfig, out) == config
    kept, wanted = load_file(out / "objective.safetensors"), model.state_dict()
    assert kept.keys() == {name for name in wanted if not name.startswith("encoder.")}
    assert all(torch.equal(kept[name], wanted[name]) for name in kept)
    entries = json.loads((out / "import.json").read_text())["entries"]
    assert entries["matched"]["mask_emb"] == "objective: mask_embedding" and not entries["unknown"]


def literal_loss(public: dict[str, Tensor], x: Tensor, targets: Tensor) -> Tensor:
    """sum over frames of -log softmax(cos(W x + b, e) / 0.1)[unit], from the checkpoint's weights, one by one."""
    total = torch.zeros(())
    for frame, unit in zip(x.flatten(0, 1), targets.flatten(), strict=True):
        h = public["final_proj.weight"] @ frame + public["final_proj.bias"]
        logits = torch.stack([h @ e / (h.norm() * e.norm()) for e in public["label_embs_concat"]]) / 0.1
        total = total + logits.exp().sum().log() - logits[unit]
    return total


@pytest.mark.parametrize("kind", ["text", "audio+video", "audio", "audio+text"])
def test_loss_is_the_formula_on_the_public_models_outputs(shared, tmp_path, kind):
    """Nothing masked: the public model's stored output, its raw projection and unit embeddings; ours within 1e-4."""
    content, io = masks_fused(plain(shared)), reference(shared, "tiny_vatlm")[1]
    model, given = load_pretrained(write(content, tmp_path)), io["phones"].view(2, 20, 4)
    inputs = public_inputs(io)
    case, streams = {
        "text": ("text", {"text": given}),
        "audio+video": ("av.nopad", inputs),
        "audio": ("a.nopad", {"audio": inputs["audio"]}),
        "audio+text": ("a+phones.pad", {"audio": inputs["audio"], "text": given[:, :19]}),
    }[kind]
    x = io["forward"][case]["x"]
    lengths = io["inputs"]["lengths"] if case.endswith(".pad") else torch.full((2,), x.shape[1])
    batch = batch_of(streams, lengths, masked=torch.zeros(x.shape[:2], dtype=torch.bool))
    real = torch.arange(x.shape[1])[None, :] < lengths[:, None]
    batch.drawn[f"predicted/{kind}"] = real.flatten().nonzero().squeeze(1)
    with torch.no_grad():
        found = model(batch, 0).parts
    wanted = literal_loss(content["model"], x[real][None], batch.targets["units"][real][None])
    count = int(real.sum())
    torch.testing.assert_close(found[kind][0] / count, wanted / count, atol=1e-4, rtol=0)
    assert all(float(found[other][0]) == 0 for other in TYPES if other != kind)


def test_masked_frames_are_replaced_behind_the_fusion(shared, tmp_path):
    """Frames under the mask enter the Transformer as the checkpoint's mask_emb, those beside it as the public ones."""
    content, io = masks_fused(plain(shared)), reference(shared, "tiny_vatlm")[1]
    model, masked = load_pretrained(write(content, tmp_path)), torch.rand(2, 20) < 0.5
    batch = batch_of({"text": io["phones"].view(2, 20, 4)}, torch.tensor([20, 20]), masked)
    batch.drawn["predicted/text"] = masked.flatten().nonzero().squeeze(1)
    fused = torch.where(masked[..., None], content["model"]["mask_emb"], io["forward"]["text"]["features"])
    with torch.no_grad():
        x = model.encoder.transformer(fused, torch.ones(2, 20, dtype=torch.bool))[0]
        found = model(batch, 0).parts["text"][0]
    wanted = literal_loss(content["model"], x[masked][None], batch.targets["units"][masked][None])
    torch.testing.assert_close(found / masked.sum(), wanted / masked.sum(), atol=1e-4, rtol=0)


def batch_of(streams: dict[str, Tensor], lengths: Tensor, masked: Tensor) -> Batch:
    """Two items with random units; nothing is predicted yet."""
    nothing = torch.empty(0, dtype=torch.int64)
    return Batch(
        ids=["x", "y"],
        streams=streams,
        lengths=dict.fromkeys(streams, lengths),
        targets={"units": torch.randint(24, masked.shape, generator=torch.Generator().manual_seed(0))},
        drawn={"mask/fused": masked} | {f"predicted/{kind}": nothing for kind in TYPES},
    )


def test_masked_inputs_are_one_line_and_the_encoder_is_written(shared, imported, tmp_path, capsys):
    """As published: ours has no such masks. The tensors of the loss are kept as they are."""
    path = reference(shared, "tiny_vatlm")[0]
    with pytest.raises(UserError, match="pre-trained VATLM with masked inputs") as one:
        load_pretrained(path)
    assert "104 values" in str(one.value) and "masks fused frames" in str(one.value) and "\n" not in str(one.value)
    assert command("import", path, tmp_path / "out") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "with masked inputs" in said and "(the encoder is written; of the objective its tensors alone)" in said
    assert "losses are not" not in said
    kept, public = load_file(imported / "objective.safetensors"), plain(shared)["model"]
    assert torch.equal(kept["mask_embeddings.audio"], public["mask_emb"])
    assert torch.equal(kept["codebook"], public["label_embs_concat"]) and len(kept) == 4
    assert "objective" not in configs.read(imported / "objective.yaml")
    assert load_folder(imported).config == load_encoder(path).config


@pytest.mark.parametrize(("section", "changes", "words"), [
    ("model", {"mask_prob_image": 0.3, "mask_length_image": 5}, "has 0.8/10 for sound and 0.3/5 for lips"),
    ("criterion", {"pred_nomask_weight": 1.0}, "`pred_nomask_weight` is 1.0 in its settings, but our losses of VATLM"),
    ("criterion", {"banlance_loss_weights": [1.0]}, "its tensors and settings make no model"),
    ("model", {"masking_type": "feature", "logit_temp": "warm"}, "its tensors and settings make no model"),
])  # fmt: skip
def test_a_loss_that_ours_is_not_is_one_line(shared, tmp_path, section, changes, words):
    content = masks_fused(plain(shared))
    content["cfg"][section] |= changes
    path = write(content, tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        load_pretrained(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert load_encoder(path).inputs.keys() == {"audio", "video", "text"}


def test_named_phones_get_our_ids(shared, imported, tmp_path, capsys):
    """Whatever the file's order: the row of a phone is the one that our reader asks for. Numbers name nothing."""
    content = plain(shared)
    table = content["model"]["phone_embed.weight"]
    symbols = [*phones.SYMBOLS[:4], *reversed(phones.CATEGORIES), "madeupword0000"]
    content["task_state"]["phone_dictionary"] = [{"symbols": symbols, "count": [1] * 46}]
    path = write(content, tmp_path)
    assert command("import", path, tmp_path / "out") == 0
    assert "does not name each of the 41 phones once" not in capsys.readouterr().err
    own = load_folder(tmp_path / "out").frontends["text"].embedding.weight.detach()
    for name in phones.CATEGORIES:
        assert torch.equal(own[phones.ID[name]], table[symbols.index(name)]), name
    assert torch.equal(own[:4], table[:4]) and torch.equal(own[45], table[45])
    assert torch.equal(load_folder(imported).frontends["text"].embedding.weight.detach(), table)

    for other in (symbols[:40], [*symbols[:45], "AH0"], []):
        content["task_state"]["phone_dictionary"] = [{"symbols": other, "count": [1] * len(other)}]
        path = write(content, tmp_path)
        assert torch.equal(load_encoder(path).frontends["text"].embedding.weight.detach(), table)
    assert command("import", path, tmp_path / "again") == 0
    assert "does not name each of the 41 phones once" in " ".join(capsys.readouterr().err.split())


def test_a_recognizer_reads_what_it_was_tuned_on(shared, tmp_path):
    """A fine-tuned VATLM, tuned without text: its phone front-end is there, and no cut is asked for phones."""
    content = torch.load(shared / "reference/avhubert/s2s_base_plain.pt", weights_only=True)
    model, w2v, dim = content["model"], "encoder.w2v_model.", 80
    for name in ("layer_norm.weight", "layer_norm.bias", "post_extract_proj.weight"):
        model[w2v + name] = torch.cat([model[w2v + name], torch.rand_like(model[w2v + name])[..., :dim]], dim=-1)
    model[f"{w2v}phone_embed.weight"] = torch.rand(46, dim)
    for part in (0, 2):
        model |= {
            f"{w2v}phone_conv.{part}.weight": torch.rand(dim, dim, 3),
            f"{w2v}phone_conv.{part}.bias": torch.rand(dim),
        }
    path = write(content, tmp_path)
    assert list(load_encoder(path).inputs) == ["audio", "video"]
    assert load_seq2seq(path).encoder.modalities == ("audio", "video", "text")
    assert command("import", path, tmp_path / "out") == 0
    cuts = write_cuts(tmp_path, [0.6], name="cuts_test.jsonl.gz", lips=[0])
    assert command("decode", tmp_path / "out", cuts, tmp_path / "decode", "--all", "--set", "beam=1") == 0
    written = sorted(one.name for one in (tmp_path / "decode").glob("test-*"))
    assert written == ["test-a-clean", "test-av-clean", "test-v-clean"]
    with pytest.raises(UserError, match="fine-tuned VATLM, tuned on video and audio; expected a pre-trained model"):
        load_pretrained(path)
