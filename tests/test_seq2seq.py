"""Sequence-to-sequence fine-tuning: the public model's loss, gradients and hypotheses; freezing; modality dropout."""

import pytest
import torch
from public_models import STREAMS, public_inputs, reference

from mmspeech.batch import Batch
from mmspeech.data.text import Tokenizer, TokenizerConfig, train_tokenizer
from mmspeech.decoding.beam import BeamConfig, beam_search
from mmspeech.errors import UserError
from mmspeech.finetuning import recognizer
from mmspeech.finetuning.ctc import CTC, CTCConfig, CTCSearchConfig
from mmspeech.finetuning.seq2seq import Seq2Seq, Seq2SeqConfig
from mmspeech.finetuning.tuning import TuningConfig
from mmspeech.models.av_encoder import AVEncoder, AVEncoderConfig
from mmspeech.models.decoder import DecoderConfig
from mmspeech.models.import_avhubert import load_seq2seq


@pytest.fixture(scope="module")
def public(shared):
    """The public fine-tuned model as an objective in evaluation mode, and what it should give."""
    path, io = reference(shared, "s2s_base")
    objective = load_seq2seq(path)
    with torch.no_grad():
        batches = {given: public_batch(io, given) for given in STREAMS}
        io["encoded"] = {given: objective.encoder.encode(b.streams, b.lengths) for given, b in batches.items()}
    return objective, io


def public_batch(io, given: str, padded: bool = True) -> Batch:
    streams = public_inputs(io, given)
    size = io["inputs"]["audio"].shape[-1]
    lengths = io["inputs"]["lengths"] if padded else torch.full((2,), size)
    return Batch(
        ids=["x", "y"],
        streams=streams,
        lengths=dict.fromkeys(streams, lengths),
        targets={"text": io["target"]},
        target_lengths={"text": (io["target"] != 1).sum(1)},
        passes=[0, 0],
    )


@pytest.mark.parametrize("given", ["a", "v", "av"])
def test_loss_equals_the_public_criterions(public, given):
    """Label-smoothed sum, hits and number of tokens; teacher-forced logits within 1e-4."""
    objective, io = public
    wanted = io["teacher_forced"][f"{given}.pad"]
    seen = []
    hook = objective.decoder.register_forward_hook(lambda *call: seen.append(call[-1]))
    batch = objective.draw(public_batch(io, given), update=0)
    loss = objective(batch, update=0)
    objective(objective.draw(public_batch(io, given, padded=False), update=0), update=0)
    hook.remove()
    torch.testing.assert_close(seen[0], wanted["logits"], atol=1e-4, rtol=0)
    torch.testing.assert_close(seen[1], io["teacher_forced"][f"{given}.nopad"]["logits"], atol=1e-4, rtol=0)
    torch.testing.assert_close(loss.parts["seq2seq"][0], wanted["loss"], atol=1e-3, rtol=1e-5)
    assert [int(part) for part in loss.logs["accuracy"]] == [wanted["n_correct"], wanted["total"]]
    assert batch.counts == {"seq2seq": wanted["sample_size"]}


def test_gradient_equals_the_public_criterions(public):
    """Of the undivided loss, in evaluation mode, for lips and sound."""
    objective, io = public
    wanted = io["teacher_forced"]["av.pad"]["grad"]
    objective.zero_grad()
    objective(objective.draw(public_batch(io, "av"), update=0), update=0).parts["seq2seq"][0].backward()
    decoder = objective.decoder
    for name, ours in {"embed_tokens": decoder.embedding, "layer_norm": decoder.norm}.items():
        theirs = wanted["full"][f"decoder.{name}.weight"]
        torch.testing.assert_close(ours.weight.grad, theirs, atol=1e-3, rtol=1e-3)
    total = torch.stack([p.grad.norm() for p in objective.parameters() if p.grad is not None]).norm()
    assert total.item() == pytest.approx(wanted["total_norm"], rel=1e-3)
    objective.zero_grad()


@pytest.mark.parametrize("run", range(15))
def test_hypotheses_equal_the_public_searchs(public, run):
    """Tokens, scores and scores of tokens of all stored runs, under the public rule for stopping and lengths."""
    objective, io = public
    wanted = io["beam"][run]
    encoded = io["encoded"][wanted["modality"]]
    # The public limit counts the padded frames of lips, but the width of a frame wherever there is audio.
    counted = encoded.frames.shape[1] if wanted["modality"] == "v" else 104
    config = BeamConfig(
        beam=wanted["beam"],
        nbest=wanted["beam"],
        length_penalty=0.0 if wanted.get("unnormalized") else wanted["lenpen"],
        min_length=wanted.get("min_len", 1),
        temperature=wanted.get("temperature", 1.0),
        unk_penalty=wanted.get("unkpen", 0.0),
        public_stop=True,
    )
    longest = torch.full((2,), int(wanted["max_len_a"] * counted + wanted["max_len_b"]))
    found = beam_search(objective.decoder, encoded.frames, encoded.lengths, config, longest)
    for ours, theirs in zip(found, wanted["hypotheses"], strict=True):
        assert [[*hypothesis.ids, 2] for hypothesis in ours] == [one["tokens"].tolist() for one in theirs]
        for hypothesis, one in zip(ours, theirs, strict=True):
            assert hypothesis.score == pytest.approx(one["score"], abs=1e-4)
            assert hypothesis.token_scores == pytest.approx(one["positional_scores"].tolist(), abs=1e-3)


SMALL = AVEncoderConfig(
    streams={"audio": {"frontend": "linear", "size": 6}, "emg": {"frontend": "linear", "size": 4}},
    num_layers=2,
    dim=16,
    ffn_dim=32,
    heads=2,
    position_kernel=8,
    position_groups=4,
)
SMALL_DECODER = DecoderConfig(num_layers=1, dim=16, ffn_dim=32, heads=2)


def small_objective(ctc_weight: float = 0.0, **tuning: object) -> Seq2Seq:
    torch.manual_seed(0)
    config = Seq2SeqConfig(encoder=TuningConfig(**tuning), decoder=SMALL_DECODER, ctc_weight=ctc_weight)
    return Seq2Seq(AVEncoder(SMALL), config, vocab_size=9, seed=1)


def small_batch(n: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([12, 9, 10, 12])[:n]
    lengths_of_emg = lengths.clone()
    lengths_of_emg[1:2] = 0  # the second item has no such stream
    targets = torch.tensor([[4, 5, 6, 2], [7, 8, 2, 1], [4, 4, 2, 1], [6, 2, 1, 1]])[:n]
    return Batch(
        ids=[f"item-{i}" for i in range(n)],
        streams={
            "audio": torch.randn(n, 12, 6, generator=generator),
            "emg": torch.randn(n, 12, 4, generator=generator),
        },
        lengths={"audio": lengths, "emg": lengths_of_emg},
        targets={"text": targets},
        target_lengths={"text": (targets != 1).sum(1)},
        present={"audio": torch.ones(n, dtype=torch.bool), "emg": lengths_of_emg > 0},
        passes=[0] * n,
    )


def test_encoder_is_frozen_for_the_first_updates_only():
    """Before: no gradient in the encoder, and some in the decoder. After: in both."""
    objective = small_objective(freeze_updates=3, layer_drop=0.0).train()
    assert objective.leaves_unused
    for update, trained in ((2, False), (3, True)):
        objective.zero_grad()
        loss = objective(objective.draw(small_batch(), update), update)
        loss.parts["seq2seq"][0].backward()
        assert objective.decoder.norm.weight.grad is not None
        assert all((parameter.grad is not None) == trained for parameter in objective.encoder.parameters())


def test_frozen_layers_are_never_trained():
    """Front-ends, fusion, positions and the first block have no gradient; the second block has."""
    objective = small_objective(freeze_layers=1, layer_drop=0.0).train()
    objective(objective.draw(small_batch(), 0), 0).parts["seq2seq"][0].backward()
    trained = {name for name, parameter in objective.encoder.named_parameters() if parameter.grad is not None}
    assert trained == {
        name
        for name, _ in objective.encoder.named_parameters()
        if name.startswith(("transformer.blocks.1", "transformer.norm"))
    }
    with pytest.raises(UserError, match="freeze_layers: 3, but the encoder has 2 blocks"):
        small_objective(freeze_layers=3)
    with pytest.raises(UserError, match="stream `video`, but the encoder knows audio, emg"):
        small_objective(modality_dropout={"audio+video": 1.0})


def test_dropouts_of_pretraining_are_replaced_and_weights_kept():
    torch.manual_seed(0)
    pretrained = AVEncoder(SMALL)
    objective = Seq2Seq(pretrained, Seq2SeqConfig(encoder=TuningConfig(dropout=0.3), decoder=SMALL_DECODER), 9)
    assert objective.encoder.transformer.dropout.p == 0.3
    assert objective.encoder.transformer.layer_drop == 0.1
    for name, tensor in pretrained.state_dict().items():
        torch.testing.assert_close(objective.encoder.state_dict()[name], tensor)


def test_modality_dropout_leaves_every_item_a_stream():
    """Drawn per item in training only; an item that lacks a stream keeps the other."""
    objective = small_objective(modality_dropout={"audio+emg": 0.2, "audio": 0.4, "emg": 0.4})
    seen = set()
    for number in range(20):
        batch = small_batch()
        batch.passes = [number] * 4
        present = objective.train().draw(batch, 0).present
        assert (present["audio"] | present["emg"]).all()
        assert present["audio"][1] and not present["emg"][1]
        seen |= set(zip(present["audio"].tolist(), present["emg"].tolist(), strict=True))
        kept = objective.eval().draw(batch, 0).present
        assert kept["audio"].all() and kept["emg"].tolist() == [True, False, True, True]
    assert seen == {(True, True), (True, False), (False, True)}


def test_divisor_counts_tokens_or_sentences():
    batch = small_batch()
    batch.target_lengths["text"][3], batch.targets["text"][3] = 0, 1  # an item without transcript
    config = Seq2SeqConfig(decoder=SMALL_DECODER, divide_by="tokens", ctc_weight=0.3)
    by_token = Seq2Seq(AVEncoder(SMALL), config, vocab_size=9)
    assert by_token.draw(batch, 0).counts == {"seq2seq": 10.0, "ctc": 10.0}
    assert small_objective().draw(batch, 0).counts == {"seq2seq": 3.0}


def test_loss_of_a_batch_is_the_sum_over_its_items():
    """Padding of frames and tokens changes nothing, in either part; evaluation mode."""
    objective = small_objective(ctc_weight=0.25).eval()
    whole = objective(objective.draw(small_batch(), 0), 0).parts
    assert {name: weight for name, (_, weight) in whole.items()} == {"seq2seq": 0.75, "ctc": 0.25}
    summed = dict.fromkeys(whole, 0.0)
    for i in range(4):
        batch, frames, tokens = small_batch(), [12, 9, 10, 12][i], [4, 3, 3, 2][i]
        item = Batch(
            ids=[batch.ids[i]],
            streams={name: stream[i : i + 1, :frames] for name, stream in batch.streams.items()},
            lengths={name: lengths[i : i + 1] for name, lengths in batch.lengths.items()},
            targets={"text": batch.targets["text"][i : i + 1, :tokens]},
            target_lengths={"text": batch.target_lengths["text"][i : i + 1]},
            present={name: present[i : i + 1] for name, present in batch.present.items()},
            passes=[0],
        )
        for name, (total, _) in objective(objective.draw(item, 0), 0).parts.items():
            summed[name] += total.item()
    for name, (total, _) in whole.items():
        assert total.item() == pytest.approx(summed[name], rel=1e-5)


@pytest.mark.parametrize("task", ["seq2seq", "ctc"])
def test_a_small_corpus_is_learned_and_comes_back_from_disk(task, tmp_path):
    """Trained on four items until it says them; the folder gives the same hypotheses."""
    objective = small_objective(dropout=0.0, activation_dropout=0.0, layer_drop=0.0)
    if task == "ctc":
        objective = CTC(objective.encoder, CTCConfig(encoder=objective.config.encoder, dropout=0.0), vocab_size=9)
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    for update in range(60):
        loss = objective.train()(objective.draw(small_batch(), update), update)
        optimizer.zero_grad()
        sum(weight * total for total, weight in loss.parts.values()).backward()
        optimizer.step()
    wanted = [[4, 5, 6], [7, 8], [4, 4], [6]]
    assert [found[0].ids for found in objective.eval().generate(small_batch())] == wanted
    if task == "ctc":
        found = objective.generate(small_batch(), CTCSearchConfig(beam=4, nbest=2))
        assert [best.ids for best, _ in found] == wanted
    recognizer.save(objective, train_tokenizer(["a b c"], TokenizerConfig(kind="characters")), tmp_path / "model")
    loaded = recognizer.load(tmp_path / "model")
    assert loaded.task == task and loaded.objective.encoder.modalities == ("audio", "emg")
    assert loaded.objective.generate(small_batch()) == objective.generate(small_batch())
    assert Tokenizer.load(tmp_path / "model").decode([5]) == "a"


def test_folder_that_is_no_recognizer_is_an_error(tmp_path):
    """Another folder, a pre-trained model, weights cut short: one line each."""
    with pytest.raises(UserError, match=r"expected config\.yaml and model\.safetensors"):
        recognizer.load(tmp_path)
    (tmp_path / "config.yaml").write_text("model: {}\n")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="expected a task of seq2seq, ctc"):
        recognizer.load(tmp_path)
    recognizer.save(small_objective(), train_tokenizer(["a"], TokenizerConfig(kind="words")), tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a complete file of weights"):
        recognizer.load(tmp_path / "model")
