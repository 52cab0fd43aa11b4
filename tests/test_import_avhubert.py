"""Public checkpoints as their authors publish them: what is in them, and the numbers that they give in ours."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from cuts import command, write_cuts
from public_models import public_inputs, public_lengths, reference
from safetensors.torch import load_file

from mmspeech import config as configs
from mmspeech.batch import Batch
from mmspeech.data.text import Tokenizer
from mmspeech.errors import UserError
from mmspeech.models import import_avhubert, public_model
from mmspeech.models.import_avhubert import load_encoder, load_pretrained, load_seq2seq
from mmspeech.pretraining.uhubert import UHubertConfig

PRETRAINED = ("tiny_base", "tiny_large", "tiny_postnorm", "short_labels")
CASES = [f"{given}.{padding}" for given in ("a", "v", "av") for padding in ("pad", "nopad")]
FAIRSEQ = "fairseq.data.dictionary"


@pytest.mark.parametrize("name", [*PRETRAINED, "real_base", "tiny_vatlm"])
def test_features_equal_the_public_models(shared, name):
    """The output and the raw output of every block, for every subset of streams, within 1e-4."""
    path, io = reference(shared, name)
    encoder = load_encoder(path)
    wanted = io["forward" if name == "tiny_vatlm" else "extract"]
    for case in ("av.pad",) if name == "real_base" else CASES:
        streams, lengths = public_inputs(io, case.split(".")[0]), public_lengths(io, case)
        numbers = wanted[case].get("layer_numbers") or range(1, 1 + len(wanted[case].get("layers", ())))
        with torch.no_grad():
            out = encoder.encode(streams, dict.fromkeys(streams, lengths), layers=tuple(numbers))
        real = torch.arange(out.frames.shape[1])[None, :] < lengths[:, None]
        torch.testing.assert_close(out.frames[real], wanted[case]["x"][real], atol=1e-4, rtol=0)
        for ours, theirs in zip(out.layers, wanted[case].get("layers", ()), strict=True):
            torch.testing.assert_close(ours[real], theirs[real], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", PRETRAINED)
def test_fused_features_are_layer_0(shared, name):
    path, io = reference(shared, name)
    streams, lengths = public_inputs(io), public_lengths(io, "av.nopad")
    with torch.no_grad():
        out = load_encoder(path).encode(streams, dict.fromkeys(streams, lengths), layers=(0,))
    torch.testing.assert_close(out.layers[0], io["features_layer0_av_nopad"], atol=1e-4, rtol=0)


def test_phones_of_vatlm_equal_the_public_models(shared):
    """Embedding and convolutions; phones beside audio, cut to its frames or ending before them; phones alone."""
    path, io = reference(shared, "tiny_vatlm")
    encoder = load_encoder(path)
    audio, lengths = public_inputs(io, "a")["audio"], io["inputs"]["lengths"]
    phones = io["phones"].view(2, 20, 4)
    with torch.no_grad():
        text = encoder.frontends["text"]
        torch.testing.assert_close(text.embedding(io["phones"]), io["phone_embed_out"], atol=1e-5, rtol=0)
        torch.testing.assert_close(text(phones, torch.tensor([20, 20])), io["phone_conv_out"], atol=1e-5, rtol=0)
        alone = encoder.encode({"text": phones}, {"text": torch.tensor([20, 20])}, layers=(0,))
        streams = {"audio": audio, "text": phones[:, :19]}
        paired = encoder.encode(streams, dict.fromkeys(streams, lengths)).frames
        ending = io["forward"]["a+short_phones.pad"]["phones"].view(2, 9, 4)
        streams["text"] = torch.nn.functional.pad(ending, (0, 0, 0, 10))  # as `collate` pads what ends early
        short = encoder.encode(streams, {"audio": lengths, "text": torch.tensor([9, 9])}).frames
    torch.testing.assert_close(alone.frames, io["forward"]["text"]["x"], atol=1e-4, rtol=0)
    torch.testing.assert_close(alone.layers[0], io["forward"]["text"]["features"], atol=1e-4, rtol=0)
    real = torch.arange(19)[None, :] < lengths[:, None]
    torch.testing.assert_close(paired[real], io["forward"]["a+phones.pad"]["x"][real], atol=1e-4, rtol=0)
    torch.testing.assert_close(short[real], io["forward"]["a+short_phones.pad"]["x"][real], atol=1e-4, rtol=0)
    assert (short - paired)[real].abs().max() > 1e-2


@pytest.mark.parametrize(("name", "facts"), [
    ("tiny_base", (2, 64, 128, 4, True, 24, 4, 16)),
    ("tiny_large", (3, 96, 160, 6, True, 37, 4, 24)),
    ("tiny_postnorm", (2, 64, 128, 4, False, 24, 4, 16)),
    ("real_base", (12, 768, 3072, 12, True, 2004, 4, 256)),
])  # fmt: skip
def test_sizes_are_those_of_the_file(shared, name, facts):
    """BASE names neither width nor depth: tensors and the public defaults do."""
    public = public_model.read(reference(shared, name)[0])
    config = public_model.encoder_config(public)
    units = public.units
    sizes = (config.num_layers, config.dim, config.ffn_dim, config.heads, config.pre_norm)
    assert (*sizes, units["classes"], units["offset"], public.encoder["label_embs_concat"].shape[1]) == facts
    assert (public.system, public.decoder, public.masking) == ("AV-HuBERT", None, "input")
    assert units["clusters"] == units["classes"] - 4 == len(public.unit_symbols) - 4


def test_settings_of_pretraining_are_the_files(shared):
    """What a published iteration 5 of BASE says, and LARGE's loss of visible frames."""
    base, large = (load_pretrained(reference(shared, name)[0]).config for name in ("tiny_base", "tiny_large"))
    assert (base.num_units, base.unit_dim, base.temperature, base.masking) == (24, 16, 0.1, "input")
    assert base.modality_dropout == {"audio+video": 0.5, "audio": 0.25, "video": 0.25}
    assert (base.input_masks["audio"].probability, base.input_masks["audio"].length) == (0.8, 10)
    assert (base.input_masks["video"].probability, base.input_masks["video"].length) == (0.3, 5)
    assert (base.masked_weight, base.unmasked_weight, base.feature_penalty) == (1.0, 0.0, 10.0)
    assert large.unmasked_weight == 1.0


def key_list(shared: Path, name: str) -> dict[str, torch.Tensor]:
    """A checkpoint's `model` from the list of its entries: one number each, seen as whole tensors."""
    lines = [line.split("\t") for line in (shared / "reference" / name).read_text().splitlines()[1:]]
    types = {"float32": torch.float32, "int64": torch.int64}
    return {
        name: torch.zeros((), dtype=types[kind]).expand([int(n) for n in shape.split(",") if n])
        for name, shape, kind in lines
    }


class Dictionary:
    """Pickled under the public class's name."""

    def __init__(self, symbols: list[str]) -> None:
        self.symbols, self.count = symbols, [1] * len(symbols)


@pytest.fixture
def write_public(tmp_path, monkeypatch):
    """Write a checkpoint in the public layout: `write_public(model, cfg, task_state)` -> its path."""
    monkeypatch.setattr(Dictionary, "__module__", FAIRSEQ)

    def write(model: dict, cfg: object, task_state: dict | None = None, **options: object) -> Path:
        path = tmp_path / "public.pt"
        content = {"args": None, "cfg": cfg, "model": model, "task_state": task_state or {}}
        with monkeypatch.context() as patch:
            # pickle looks its classes up by name.
            module = type(torch)("dictionary")
            module.Dictionary = Dictionary
            for part in ("fairseq", "fairseq.data", FAIRSEQ):
                patch.setitem(__import__("sys").modules, part, module)
            torch.save(content, path, **options)
        return path

    return write


LARGE = {"encoder_attention_heads": 16, "layer_norm_first": True}


@pytest.mark.parametrize(("names", "entries", "reshaped"), [
    ("avhubert/keys_base.tsv", 346, 73),
    ("avhubert/keys_large.tsv", 538, 145),
    ("avhubert/keys_seq2seq_base.tsv", 504, 73),
    ("avhubert/keys_seq2seq_large.tsv", 774, 145),
    ("vatlm/keys_vatlm_base.tsv", 351, 73),
])  # fmt: skip
def test_every_published_entry_has_its_place(shared, write_public, names, entries, reshaped):
    """Nothing of the published files is unknown or missing; q, k and v of a block become one, and the stem is 2-D."""
    large, tuned = "large" in names, "seq2seq" in names
    before = {"model": LARGE if large else {"layer_norm_first": True}}
    after = {"model": {"w2v_args": before, "decoder_attention_heads": 8 if large else 4}}
    public = public_model.read(write_public(key_list(shared, names), after if tuned else before))
    report = import_avhubert.compare(public)
    assert report.unknown == report.missing == [] and len(report.reshaped) == reshaped
    assert len(report.matched) + len(report.reshaped) + len(report.left_out) == entries
    assert len(report.left_out) == (3 if tuned else 0) and (public.system == "VATLM") == ("vatlm" in names)


def shorter(shared: Path, name: str = "tiny_base") -> tuple[dict, dict]:
    """The stored plain checkpoint's model and settings, to be changed."""
    content = torch.load(shared / "reference" / "avhubert" / f"{name}_plain.pt", weights_only=True)
    return content["model"], content["cfg"]


@pytest.mark.parametrize("older", [False, True])
def test_a_dictionary_that_counts_from_1_shifts_the_classes(shared, write_public, older):
    """Cluster 0 is then <unk>: K + 3 classes, cluster c is class c + 3; in both layouts of the file."""
    model, cfg = shorter(shared)
    model["label_embs_concat"] = model["label_embs_concat"][:23]
    symbols = ["<s>", "<pad>", "</s>", "<unk>", *map(str, range(1, 20))]
    task = {"dictionaries": [Dictionary(symbols)]}
    path = write_public(model, cfg, task, _use_new_zipfile_serialization=not older)
    assert public_model.read(path).units == {"classes": 23, "offset": 3, "clusters": 20}


def test_halves_and_odd_sizes_are_read(shared, write_public):
    """fp16 weights become single precision; a batch-norm count that old files lack is 0."""
    model, cfg = shorter(shared)
    counts = [name for name in model if name.endswith("num_batches_tracked")]
    model = {name: t.half() if t.is_floating_point() else t for name, t in model.items() if name not in counts}
    encoder = load_encoder(write_public(model, cfg))
    assert all(p.dtype == torch.float32 for p in encoder.parameters())
    assert all(int(buffer) == 0 for name, buffer in encoder.named_buffers() if name.endswith("tracked"))
    wanted = model["post_extract_proj.weight"].float()
    torch.testing.assert_close(encoder.fusion.project.weight.detach(), wanted, atol=0, rtol=0)


def wrong(name: str, model: dict, cfg: dict) -> None:
    if name == "missing":
        del model["encoder.layers.1.fc2.bias"]
    elif name == "shape":
        model["encoder.layers.1.fc2.bias"] = torch.zeros(3)
    elif name == "kind":
        model["encoder.layers.1.fc2.bias"] = model["encoder.layers.1.fc2.bias"].long()
    elif name == "hole":
        for entry in [entry for entry in model if entry.startswith("encoder.layers.0.")]:
            model[entry.replace(".0.", ".7.", 1)] = model[entry]
    elif name == "contradiction":
        cfg["model"]["encoder_layers"] = 24
    elif name == "heads":
        cfg["model"]["encoder_attention_heads"] = 7
    elif name == "reader":
        cfg["task"]["stack_order_audio"] = 2
    elif name == "settings":
        cfg.clear()
    elif name == "no tensor":
        model["mask_emb"] = "x"
    elif name == "other model":
        del model["encoder.pos_conv.0.weight_v"]


@pytest.mark.parametrize(("name", "words"), [
    ("missing", "has nothing for our `transformer.blocks.1.contract.bias`"),
    ("shape", "`transformer.blocks.1.contract.bias` is \\(3,\\), expected \\(64,\\)"),
    ("kind", "`transformer.blocks.1.contract.bias` is torch.int64"),
    ("hole", "its tensors and settings make no model"),
    ("contradiction", "`encoder_layers` is 24 in its settings, but its tensors have 2"),
    ("heads", "heads: 7 do not divide dim 64"),
    ("reader", "`stack_order_audio` is 2 in its settings, but our readers have 4"),
    ("settings", "has no settings of the encoder \\(cfg.model\\)"),
    ("no tensor", "entry 'mask_emb' is no tensor"),
    ("other model", "no model of the AV-HuBERT family"),
])  # fmt: skip
def test_a_file_that_contradicts_itself_is_one_line(shared, write_public, name, words):
    model, cfg = shorter(shared)
    wrong(name, model, cfg)
    path = write_public(model, cfg)
    with pytest.raises(UserError, match=words) as caught:
        load_encoder(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_unknown_entries_are_named_and_left(shared, write_public, tmp_path, capsys):
    model, cfg = shorter(shared)
    model["feature_extractor_audio.encoder.layers.0.odd"] = torch.zeros(2)
    assert command("import", write_public(model, cfg), tmp_path / "out") == 0
    assert "not read: feature_extractor_audio.encoder.layers.0.odd; import.json lists all" in capsys.readouterr().err
    entries = json.loads((tmp_path / "out" / "import.json").read_text())["entries"]
    assert entries["unknown"] == ["feature_extractor_audio.encoder.layers.0.odd"] and entries["missing"] == []


def batch_of(io: dict, given: str) -> Batch:
    streams = public_inputs(io, given)
    return Batch(ids=["x", "y"], streams=streams, lengths=dict.fromkeys(streams, io["inputs"]["lengths"]))


def test_the_embedded_tokenizer_is_the_public_one(shared):
    path, io = reference(shared, "s2s_base")
    tokenizer = load_seq2seq(path).tokenizer
    for case in io["tokenizer"]:
        assert tokenizer.encode(case["text"]) == case["ids"].tolist()
        assert tokenizer.decode(case["ids"].tolist()) == case["decoded"]


def test_a_dictionary_in_another_order_keeps_its_ids(shared, write_public):
    """MuAViC: other languages, other dictionaries. Pieces get the ids of the dictionary, not of SentencePiece."""
    content = torch.load(shared / "reference" / "avhubert" / "s2s_base_plain.pt", weights_only=True)
    proto = bytes(content["task_state"]["s2s_tokenizer"]["sentencepiece_model_proto"].tolist())
    symbols = content["task_state"]["target_dictionary"]["symbols"]
    turned = symbols[:4] + symbols[:3:-1]
    task = {"target_dictionary": Dictionary(turned), "s2s_tokenizer": {"sp": proto}}
    path = write_public(content["model"], content["cfg"], task)
    tokenizer = load_seq2seq(path).tokenizer
    first = Tokenizer.from_sentencepiece(proto)
    text = first.decode(range(4, 30))
    assert [turned[i] for i in tokenizer.encode(text)] == [symbols[i] for i in first.encode(text)]
    assert tokenizer.decode(tokenizer.encode(text)) == first.decode(first.encode(text))
    short = write_public(content["model"], content["cfg"], task | {"target_dictionary": Dictionary(turned[:-1])})
    with pytest.raises(UserError, match="its decoder has 90 tokens, the dictionary 89"):
        load_seq2seq(short)


def test_a_tokenizer_may_lie_beside_the_checkpoint(shared, write_public, tmp_path, capsys):
    content = torch.load(shared / "reference" / "avhubert" / "s2s_base_plain.pt", weights_only=True)
    proto = bytes(content["task_state"]["s2s_tokenizer"]["sentencepiece_model_proto"].tolist())
    path = write_public(content["model"], content["cfg"])
    assert command("import", path, tmp_path / "out") == 2 and "give the one beside it" in capsys.readouterr().err
    (tmp_path / "spm.model").write_bytes(proto)
    assert command("import", path, tmp_path / "out", "--tokenizer", tmp_path / "spm.model") == 0
    assert Tokenizer.load(tmp_path / "out").size == 90
    (tmp_path / "spm.model").write_bytes(b"nonsense")
    assert command("import", path, tmp_path / "out", "--tokenizer", tmp_path / "spm.model") == 2


def test_imported_encoder_comes_back_from_disk_and_from_export(shared, tmp_path, capsys):
    """import -> export -> load: the same weights, units, objective and terms of use. Twice: nothing to do."""
    path, _ = reference(shared, "tiny_large")
    out, exported = tmp_path / "imported", tmp_path / "exported"
    assert command("import", path, out) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "research only, no commercial use" in said and "published at https://" in said
    assert "37 classes of units; cluster 0 is class 4" in said
    assert command("export", out, exported) == 0
    for again in (("import", path, out), ("export", out, exported)):
        assert command(*again) == 0 and "current, nothing to do" in capsys.readouterr().err
    public = load_encoder(path)
    for folder in (out, exported):
        encoder = load_encoder(folder)
        assert encoder.config == public.config and encoder.inputs == public.inputs and not encoder.training
        for name, tensor in public.state_dict().items():
            assert torch.equal(encoder.state_dict()[name], tensor), name
        tree = configs.read(folder / "objective.yaml")
        assert tree["units"] == {"classes": 37, "offset": 4, "clusters": 33}
        objective = load_pretrained(path)
        assert configs.build(tree["objective"], UHubertConfig, folder / "objective.yaml") == objective.config
        kept = load_file(folder / "objective.safetensors")
        wanted = {name: t for name, t in objective.state_dict().items() if not name.startswith("encoder.")}
        assert kept.keys() == wanted.keys() and all(torch.equal(kept[name], wanted[name]) for name in wanted)
        facts = json.loads((folder / "import.json").read_text())
        assert "research only" in facts["licence"] and facts["kind"] == "pre-trained AV-HuBERT"
        assert facts["settings"]["model"]["encoder_layers"] == 3 and facts["entries"]["unknown"] == []


def test_imported_recognizer_decodes_and_is_exported(shared, tmp_path, capsys):
    """The folder is one of `mmspeech decode`; its encoder alone is one of `mmspeech finetune`."""
    path, io = reference(shared, "s2s_base")
    out, exported = tmp_path / "imported", tmp_path / "exported"
    assert command("import", path, out) == 0
    assert "mmspeech decode" in capsys.readouterr().err
    assert command("export", out, exported) == 0
    wanted = load_seq2seq(path)
    for folder in (out, exported):
        model = load_seq2seq(folder)
        assert model.config == wanted.config and model.tokenizer.symbols == wanted.tokenizer.symbols
        assert model.generate(batch_of(io, "v")) == wanted.generate(batch_of(io, "v"))
    cuts = write_cuts(tmp_path, [0.6, 0.8], name="cuts_test.jsonl.gz", lips=[0, 1])
    assert command("decode", out, cuts, tmp_path / "decode", "--modality", "av,v", "--set", "beam=2") == 0
    for condition in ("test-av-clean", "test-v-clean"):
        assert len((tmp_path / "decode" / condition / "hyp.jsonl").read_text().splitlines()) == 2
    capsys.readouterr()
    encoder = load_encoder(out)
    assert "only the encoder is taken" in capsys.readouterr().err
    for name, tensor in wanted.encoder.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], tensor), name


def test_a_folder_of_other_files_is_not_replaced(shared, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("x")
    assert command("import", reference(shared, "tiny_base")[0], tmp_path / "out") == 2
    assert "holds files of another origin" in capsys.readouterr().err
    assert (tmp_path / "out" / "thesis.txt").exists()


def test_files_of_the_other_kind_say_what_they_are(shared):
    with pytest.raises(UserError, match="fine-tuned AV-HuBERT, tuned on video and audio; expected a pre-trained"):
        load_pretrained(reference(shared, "s2s_base")[0])
    with pytest.raises(UserError, match="pre-trained AV-HuBERT; expected a fine-tuned model"):
        load_seq2seq(reference(shared, "tiny_base")[0])
    assert load_encoder(reference(shared, "s2s_base")[0]).config.num_layers == 3


def test_the_reference_files_hold_pickled_classes(shared):
    """Else these tests would show less: a tensors-only load refuses them."""
    with pytest.raises(pickle.UnpicklingError, match="Dictionary"):
        torch.load(reference(shared, "tiny_base")[0], weights_only=True)
