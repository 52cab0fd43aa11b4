"""The u-HuBERT objective: modality dropout, masks, and a loss that equals a literal loop."""

import math

import pytest
import torch

from mmspeech.batch import Batch
from mmspeech.blocks.masking import SpanMask
from mmspeech.errors import UserError
from mmspeech.models.av_encoder import AVEncoder, AVEncoderConfig
from mmspeech.pretraining.uhubert import UHubert, UHubertConfig

STREAMS = {
    "audio": {"frontend": "linear", "size": 104},
    "video": {"frontend": "lips", "crop": 16, "stem": 4, "widths": [4, 8], "blocks": 1},
}


def objective(streams=STREAMS, **changes):
    torch.manual_seed(0)
    config = AVEncoderConfig(
        streams=streams,
        num_layers=2,
        dim=16,
        ffn_dim=32,
        heads=2,
        position_kernel=8,
        position_groups=4,
        dropout=0.0,
        attention_dropout=0.0,
        input_dropout=0.0,
        layer_drop=0.0,
        frontend_grad_scale=1.0,
    )
    return UHubert(AVEncoder(config), UHubertConfig(**({"num_units": 7, "unit_dim": 8} | changes)), seed=1)


def batch(num_items=4, size=40, have=("audio", "video"), start=0):
    generator = torch.Generator().manual_seed(start)
    lengths = torch.tensor([size - 3 * (i % 4) for i in range(num_items)])
    streams = {
        "audio": torch.randn(num_items, size, 104, generator=generator),
        "video": torch.randint(0, 256, (num_items, size, 16, 16), generator=generator, dtype=torch.uint8),
    }
    return Batch(
        ids=[f"cut{start + i}" for i in range(num_items)],
        streams={name: streams[name] for name in have},
        lengths={name: lengths.clone() for name in have},
        targets={"units": torch.randint(0, 7, (num_items, size), generator=generator)},
        target_lengths={"units": lengths.clone()},
        passes=[0] * num_items,
    )


def test_loss_equals_a_literal_loop():
    """Cosine over temperature, softmax, negative log: HuBERT Eq. 3, frame by frame."""
    model = objective().eval()
    drawn = model.draw(batch(), update=0)
    loss = model(drawn, 0)
    streams = {name: model._replace_masked(name, stream, drawn) for name, stream in drawn.streams.items()}
    with torch.no_grad():
        frames = model.encoder.encode(streams, drawn.lengths, drawn.present).frames
        projected, codebook = model.project(frames), model.codebook.detach()
    for part in ("masked", "unmasked"):
        total = 0.0
        for place in drawn.drawn[f"predicted/{part}"].tolist():
            n, t = divmod(place, 40)
            h = projected[n, t]
            cosines = [float(h @ e / (h.norm() * e.norm())) / 0.1 for e in codebook]
            unit = int(drawn.targets["units"][n, t])
            total -= cosines[unit] - math.log(sum(math.exp(c) for c in cosines))
        assert float(loss.parts[part][0]) == pytest.approx(total, rel=1e-4)


def test_predicted_frames_are_masked_or_visible_and_all_real():
    """Both parts share one divisor: the number of all predicted frames, every real frame once."""
    drawn = objective().draw(batch(), 0)
    masked, visible = (set(drawn.drawn[f"predicted/{part}"].tolist()) for part in ("masked", "unmasked"))
    assert not masked & visible
    real = {n * 40 + t for n in range(4) for t in range(int(drawn.lengths["audio"][n]))}
    assert masked | visible == real
    assert drawn.counts["masked"] == drawn.counts["unmasked"] == len(real)
    union = drawn.drawn["mask/audio"].clone()
    moved = drawn.drawn["source/video"].view(4, 40) != torch.arange(160).view(4, 40)
    assert {n * 40 + t for n, t in (union | moved).nonzero().tolist() if n * 40 + t in real} <= masked


def test_masked_only_leaves_visible_frames_out():
    """With `unmasked_weight` 0 (BASE) there is no second part, and the divisor counts masked frames."""
    model = objective(unmasked_weight=0.0)
    drawn = model.draw(batch(), 0)
    assert set(model(drawn, 0).parts) == {"masked", "feature_penalty"}
    assert drawn.counts["masked"] == len(drawn.drawn["predicted/masked"])


def test_modality_dropout_keeps_each_subset_as_often_as_configured():
    """Table 6, row 3: both 0.5, audio 0.25, video 0.25 of the utterances; nobody is left without a stream."""
    model = objective()
    counts = {"both": 0, "audio": 0, "video": 0}
    for start in range(0, 4000, 100):
        many = batch(100, 12, start=start)
        present = model.draw(many, 0).present
        both = present["audio"] & present["video"]
        assert (present["audio"] | present["video"]).all()
        counts["both"] += int(both.sum())
        counts["audio"] += int((present["audio"] & ~both).sum())
        counts["video"] += int((present["video"] & ~both).sum())
    for name, share in {"both": 0.5, "audio": 0.25, "video": 0.25}.items():
        assert counts[name] / 4000 == pytest.approx(share, abs=0.03)


def test_single_stream_items_keep_their_stream():
    """Mixed batches: dropout over audio and video leaves an audio-only clip and a lips-only clip alone."""
    mixed = batch(60, 12)
    mixed.lengths["video"][:20] = 0
    mixed.lengths["audio"][20:40] = 0
    present = objective().draw(mixed, 0).present
    assert present["audio"][:20].all() and not present["video"][:20].any()
    assert present["video"][20:40].all() and not present["audio"][20:40].any()
    kept = present["audio"][40:] & present["video"][40:]
    assert 0 < int(kept.sum()) < 20


def test_per_batch_dropout_draws_once():
    """The public code's way: the same subset for the whole batch, another one in other updates."""
    model = objective(modality_dropout_per="batch")
    seen = set()
    for update in range(40):
        present = model.draw(batch(), update).present
        assert len(set(zip(present["audio"].tolist(), present["video"].tolist(), strict=True))) == 1
        seen.add((bool(present["audio"][0]), bool(present["video"][0])))
    assert seen == {(True, True), (True, False), (False, True)}


def test_draws_depend_on_item_and_pass_alone():
    """The same cut in another batch gets the same mask and streams; in the next pass others."""
    model = objective()
    one, other = model.draw(batch(4), 0), model.draw(batch(2), 99)
    assert torch.equal(one.drawn["mask/audio"][:2], other.drawn["mask/audio"])
    again = batch(4)
    again.passes = [1] * 4
    assert not torch.equal(model.draw(again, 0).drawn["mask/audio"], one.drawn["mask/audio"])


@pytest.mark.parametrize("masking", ["input", "feature"])
def test_loss_of_a_mixed_batch_is_the_sum_over_its_items(masking):
    """Sums, not means, and no item sees another: the parts of a batch are those of its items added up."""
    model = objective(masking=masking).eval()
    whole = model(model.draw(batch(), 0), 0)
    everything = batch()
    parts = dict.fromkeys(whole.parts, 0.0)
    for i in range(4):
        size = int(everything.lengths["audio"][i])
        item = Batch(
            ids=everything.ids[i : i + 1],
            streams={name: stream[i : i + 1, :size] for name, stream in everything.streams.items()},
            lengths={name: lengths[i : i + 1] for name, lengths in everything.lengths.items()},
            targets={"units": everything.targets["units"][i : i + 1, :size]},
            target_lengths={"units": everything.target_lengths["units"][i : i + 1]},
            passes=[0],
        )
        for name, (total, _) in model(model.draw(item, 0), 0).parts.items():
            parts[name] += float(total)
    for name, total in parts.items():
        assert float(whole.parts[name][0]) == pytest.approx(total, rel=1e-4)


def test_third_stream_trains_with_yaml_alone():
    """Eight invented channels: a front-end entry, a mask and a share in the dropout table."""
    streams = STREAMS | {"emg": {"frontend": "linear", "size": 8}}
    masks = {
        "audio": SpanMask(probability=0.8, length=10),
        "video": SpanMask(probability=0.3, length=5, replace="other_frames"),
        "emg": SpanMask(probability=0.5, length=5),
    }
    shares = {"audio+video+emg": 0.4, "emg": 0.4, "audio": 0.2}
    model = objective(streams, input_masks=masks, modality_dropout=shares).train()
    three = batch()
    three.streams["emg"] = torch.randn(4, 40, 8)
    three.lengths["emg"] = three.lengths["audio"].clone()
    loss = model(model.draw(three, 0), 0)
    sum(total * weight for total, weight in loss.parts.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_every_parameter_gets_a_gradient_from_every_kind_of_batch():
    """Audio alone, lips alone, both: data parallelism never waits for a gradient."""
    for have in [("audio",), ("video",), ("audio", "video")]:
        model = objective().train()
        loss = model(model.draw(batch(have=have), 0), 0)
        sum(total * weight for total, weight in loss.parts.values()).backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_learned_vector_cannot_stand_among_bytes():
    """Mouth tracks are bytes: an embedding would be cut to 0 there, so the setting is refused and named."""
    masks = {"audio": SpanMask(probability=0.8, length=10), "video": SpanMask(probability=0.3, length=5)}
    with pytest.raises(UserError, match=r"objective\.input_masks\.video\.replace: .*\(uint8\).*replace: other_frames"):
        objective(input_masks=masks).draw(batch(), 0)
    as_numbers = batch()
    as_numbers.streams["video"] = as_numbers.streams["video"].float()  # the same masks stand where vectors fit
    model = objective(input_masks=masks)
    model(model.draw(as_numbers, 0), 0).parts["masked"][0].backward()
    assert model.mask_embeddings["video"].grad.abs().max() > 0


def test_shares_that_do_not_add_up_are_refused():
    with pytest.raises(UserError, match=r"add up to 1, not 0\.9"):
        UHubertConfig(num_units=5, modality_dropout={"audio+video": 0.5, "audio": 0.4})
