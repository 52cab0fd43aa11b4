"""VATLM: Eq. 1 to 3 against literal loops, types of data in one batch, modality dropout, one mask."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from cuts import FINETUNE, PRETRAIN, command, write_cuts, write_run

from mmspeech import config as configs
from mmspeech.batch import Batch
from mmspeech.errors import UserError
from mmspeech.finetuning import recognizer
from mmspeech.models.av_encoder import AVEncoder, AVEncoderConfig, save_encoder
from mmspeech.pretraining.vatlm import Vatlm, VatlmConfig

STREAMS = {
    "audio": {"frontend": "linear", "size": 104},
    "video": {"frontend": "lips", "crop": 16, "stem": 4, "widths": [4, 8], "blocks": 1},
    "text": {"frontend": "phones", "size": 46},
}
TYPES = ("audio+video", "audio", "audio+text", "text")


def objective(**changes):
    torch.manual_seed(0)
    config = AVEncoderConfig(
        streams=STREAMS, num_layers=2, dim=16, ffn_dim=32, heads=2, position_kernel=8, position_groups=4,
        dropout=0.0, attention_dropout=0.0, input_dropout=0.0, layer_drop=0.0, frontend_grad_scale=1.0,
    )  # fmt: skip
    return Vatlm(AVEncoder(config), VatlmConfig(**({"num_units": 7} | changes)), seed=1)


def batch(types=TYPES, size=40, start=0):
    """One item of each type; what an item lacks is zeros."""
    rng = np.random.default_rng(start)
    lengths = torch.tensor([size - 3 * (i % 4) for i in range(len(types))])
    values = {
        "audio": torch.from_numpy(rng.standard_normal((len(types), size, 104), np.float32)),
        "video": torch.from_numpy(rng.integers(0, 256, (len(types), size, 16, 16), np.uint8)),
        "text": torch.from_numpy(rng.integers(4, 45, (len(types), size, 4), np.uint8)),
    }
    have = {name: torch.tensor([name in one.split("+") for one in types]) for name in STREAMS}
    return Batch(
        ids=[f"item{start + i}" for i in range(len(types))],
        streams={name: value * have[name].view(-1, *[1] * (value.dim() - 1)) for name, value in values.items()},
        lengths={name: lengths * have[name] for name in STREAMS},
        targets={"units": torch.from_numpy(rng.integers(0, 7, (len(types), size)))},
        target_lengths={"units": lengths.clone()},
        passes=[0] * len(types),
    )


def rows(whole, places):
    """Some items of a batch."""
    places = torch.as_tensor(places)
    some = dataclasses.replace(whole, ids=[whole.ids[i] for i in places], passes=[0] * len(places), drawn={}, counts={})
    for name in ("streams", "lengths", "targets", "target_lengths", "present"):
        setattr(some, name, {key: value[places] for key, value in getattr(whole, name).items()})
    return some


def total(model, drawn):
    """What the step makes of a loss: each part by its own divisor and weight."""
    loss = model(drawn, 0)
    assert set(loss.parts) == {*TYPES, "feature_penalty"}
    return sum(weight * value / drawn.counts[name] for name, (value, weight) in loss.parts.items())


def test_loss_equals_a_literal_loop():
    """Eq. 1: softmax of cosine(W h, e(u)) / tau; Eq. 2: minus its log, over masked frames, apart for each type."""
    model = objective().eval()
    drawn = model.draw(batch(), 0)
    loss = model(drawn, 0)
    with torch.no_grad():
        frames = model.encoder.encode(
            drawn.streams, drawn.lengths, drawn.present,
            masked=drawn.drawn["mask/fused"], mask_embedding=model.mask_embedding,
        ).frames  # fmt: skip
        projected, codebook = model.project(frames), model.codebook.detach()
    for n, name in enumerate(TYPES):
        expected = 0.0
        length = int(max(drawn.lengths[stream][n] for stream in STREAMS))
        for t in range(length):
            if not drawn.drawn["mask/fused"][n, t]:
                continue
            h = projected[n, t]
            cosines = [float(h @ e / (h.norm() * e.norm())) / 0.1 for e in codebook]
            unit = int(drawn.targets["units"][n, t])
            expected -= cosines[unit] - math.log(sum(math.exp(c) for c in cosines))
        assert float(loss.parts[name][0]) == pytest.approx(expected, rel=1e-4), name


def test_total_is_the_weighted_sum_of_types():
    """Eq. 3: L^av + lambda_1 L^a + lambda_2 L^ap + lambda_3 L^p, over the same number of frames."""
    weights = {"audio+video": 1.0, "audio": 0.5, "audio+text": 2.0, "text": 0.25}
    model = objective(weights=weights, feature_penalty=0.0).eval()
    drawn = model.draw(batch(), 0)
    loss = model(drawn, 0)
    frames = sum(len(drawn.drawn[f"predicted/{name}"]) for name in TYPES)
    expected = sum(weights[name] * float(loss.parts[name][0]) for name in TYPES) / frames
    assert float(total(model, drawn)) == pytest.approx(expected, rel=1e-5)


def test_a_mixed_batch_equals_the_sum_over_batches_of_one_type():
    """Loss and gradients: items do not see each other, whatever their types, and padding changes nothing."""
    model = objective().eval()
    types = [*TYPES, "text", "audio+text", "audio"]
    whole = model.draw(batch(types), 0)
    total(model, whole).backward()
    gradients = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad()
    apart = 0.0
    for name in TYPES:
        places = [i for i, one in enumerate(types) if one == name]
        part = model.draw(rows(batch(types), places), 0)
        part.counts = whole.counts  # the divisors of the whole update, as the step adds them up
        one = total(model, part)
        one.backward()
        apart += float(one)
    assert apart == pytest.approx(float(total(model, whole)), rel=1e-5)
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)
    assert gradients["encoder.frontends.text.embedding.weight"].abs().sum() > 0


def test_one_mask_hides_all_streams_of_a_frame():
    """What stands in a masked frame of any stream changes nothing but, through the lips' stem and the phones'
    convolutions, its neighbours: with all frames masked the output is the same for any input."""
    model = objective().eval()
    drawn = model.draw(batch(), 0)
    drawn.drawn["mask/fused"] = torch.ones_like(drawn.drawn["mask/fused"])
    other = model.draw(batch(start=5), 0)
    other.drawn["mask/fused"] = drawn.drawn["mask/fused"]

    def frames(one):
        return model.encoder.encode(
            one.streams,
            drawn.lengths,
            drawn.present,
            masked=one.drawn["mask/fused"],
            mask_embedding=model.mask_embedding,
        ).frames

    real = torch.arange(40)[None, :] < drawn.frames[:, None]
    torch.testing.assert_close(frames(drawn)[real], frames(other)[real])


def test_masked_share_is_that_of_spans():
    """0.8 / 10 covers about 57 % of long items (HuBERT's mask), of every type alike."""
    model, found = objective(), dict.fromkeys(TYPES, 0)
    for start in range(0, 400, 4):
        drawn = model.draw(batch([*TYPES], 300, start=start), 0)
        for name in TYPES:
            found[name] += len(drawn.drawn[f"predicted/{name}"])
    for n, name in enumerate(TYPES):
        assert found[name] / (100 * (300 - 3 * n)) == pytest.approx(0.57, abs=0.02)


def test_modality_dropout_is_drawn_for_every_type():
    """Both streams half of the time, then sound or lips; paired items lose their sound a quarter of the time and never
    their phones; no item is left with nothing."""
    model, count = objective(), 600
    have = {name: model.draw(batch([name] * count, 12), 0).present for name in TYPES}
    share = lambda name, stream: float(have[name][stream].float().mean())  # noqa: E731
    assert share("audio+video", "audio") == pytest.approx(0.75, abs=0.06)
    assert share("audio+video", "video") == pytest.approx(0.75, abs=0.06)
    assert bool((have["audio+video"]["audio"] | have["audio+video"]["video"]).all())
    assert share("audio+text", "text") == 1.0 and share("audio+text", "audio") == pytest.approx(0.75, abs=0.06)
    assert share("audio", "audio") == share("text", "text") == 1.0


def test_data_without_a_weight_are_told():
    """Lips alone are no type of the paper: one line names the item, and what to do."""
    with pytest.raises(UserError, match=r"objective\.weights: item0 has video, and there are only audio\+video, audio"):
        objective().draw(batch(["video"]), 0)
    model = objective(weights={"audio+video": 1.0, "video": 0.5})
    drawn = model.draw(batch(["video", "audio+video"]), 0)
    assert len(drawn.drawn["predicted/video"]) > 0


def test_settings_are_checked():
    """Weights and shares that mean nothing, streams that the encoder lacks, units beyond the codebook: one line."""
    for changes, text in (
        ({"weights": {"audio": -1.0}}, "weights: expected numbers from 0"),
        ({"weights": {"sound": 1.0}}, "objective.weights: stream `sound`"),
        ({"modality_dropout": {"audio": 0.5}}, "modality_dropout: the shares"),
        ({"modality_dropout": {"lips": 1.0}}, "objective.modality_dropout: stream `lips`"),
    ):
        with pytest.raises(UserError, match=text):
            objective(**changes)
    with pytest.raises(UserError, match=r"objective\.num_units: 3, but the cuts have a unit"):
        objective(num_units=3).draw(batch(), 0)


def test_removed_front_ends_leave_zeros_in_the_fusion():
    """Sec. IV-C: without the text front-end the rest computes what it did, and phones are refused by name."""
    encoder = objective().encoder.eval()
    encoder.inputs = {"audio": {"reader": "logmel"}, "video": {"reader": "mouth"}, "text": {"reader": "phones"}}
    items = batch(["audio+video", "audio"])
    streams = {name: items.streams[name] for name in ("audio", "video")}
    less = encoder.without(["text"]).eval()
    torch.testing.assert_close(
        less.encode(streams, items.lengths).frames, encoder.encode(streams, items.lengths).frames
    )
    assert list(less.inputs) == ["audio", "video"] and not any("frontends.text" in name for name in less.state_dict())
    with pytest.raises(UserError, match=r"stream `text`: this encoder knows audio, video; drop"):
        less.encode(items.streams, items.lengths)
    with pytest.raises(UserError, match=r"remove: no stream `lips`"):
        encoder.without(["lips"])
    less.train()  # takes part with a dummy, as data parallelism wants, and has nothing to learn
    less.encode(streams, items.lengths).frames.sum().backward()


def test_a_model_tuned_without_phones_is_saved_and_read(tmp_path, capsys):
    """`remove: [text, audio]` in YAML: lips alone are tuned, and decoding by sound is refused with one line; beside
    lips it is skipped, as a plan names the streams of all its recognizers."""
    cuts = write_cuts(tmp_path / "data", [1.0, 1.2, 0.8], lips=range(3))
    streams = PRETRAIN["model"]["streams"] | {"text": STREAMS["text"]}
    model = configs.build(PRETRAIN["model"] | {"streams": streams}, AVEncoderConfig, tmp_path)
    save_encoder(AVEncoder(model, PRETRAIN["data"]["streams"] | {"text": {"reader": "phones"}}), tmp_path / "encoder")
    changes = {"remove": ["text", "audio"], "valid_streams": [], "objective.encoder.modality_dropout": {}}
    conf = write_run(tmp_path / "v.yaml", FINETUNE, changes | {"data.cuts": [cuts]})
    assert command("finetune", conf, tmp_path / "exp", "--encoder", tmp_path / "encoder") == 0
    assert list(recognizer.load(tmp_path / "exp/model").inputs) == ["video"]
    assert command("decode", tmp_path / "exp/model", cuts, tmp_path / "decode", "--modality", "v") == 0
    assert command("decode", tmp_path / "exp/model", cuts, tmp_path / "decode", "--modality", "a") == 2
    assert "exp/model was tuned without; it knows video" in capsys.readouterr().err
    assert command("decode", tmp_path / "exp/model", cuts, tmp_path / "both", "--modality", "av,v") == 0
    assert [folder.name.split("-")[1] for folder in (tmp_path / "both").iterdir()] == ["v"]
    assert "-av: skipped, " in (said := capsys.readouterr().err) and "was tuned without audio and text" in said
