"""The encoder against activations of the public implementation, and the laws of padding and absence."""

import pytest
import torch
from public_models import public_inputs, reference

from mmspeech.errors import UserError
from mmspeech.models.av_encoder import AVEncoder, AVEncoderConfig
from mmspeech.models.import_avhubert import load_encoder


def tiny_config(**changes):
    settings = dict(num_layers=2, dim=16, ffn_dim=32, heads=2, position_kernel=8, position_groups=4)
    settings |= dict(dropout=0.0, attention_dropout=0.0, input_dropout=0.0, layer_drop=0.0)
    settings["streams"] = {
        "audio": {"frontend": "linear", "size": 104},
        "video": {"frontend": "lips", "crop": 16, "stem": 4, "widths": [4, 8], "blocks": 1},
    }
    return AVEncoderConfig(**(settings | changes))


@pytest.fixture(scope="module")
def public_model(shared):
    """The public tiny BASE model in ours, and what it should give."""
    path, io = reference(shared, "tiny_base")
    return load_encoder(path), io


def test_every_stage_equals_the_public_models(public_model):
    """Stem, ResNet, front-ends, fusion, positional convolution and the first attention, within 1e-4."""
    encoder, io = public_model
    lengths = io["inputs"]["lengths"]
    seen = {}

    def keep(name, pick=lambda out: out):
        return lambda module, args, out: seen.__setitem__(name, pick(out))

    resnet = encoder.frontends["video"].resnet
    hooks = [
        resnet.stem_relu.register_forward_hook(keep("stem")),
        resnet.register_forward_hook(keep("resnet_out")),
        encoder.frontends["audio"].register_forward_hook(keep("audio_features")),
        encoder.frontends["video"].register_forward_hook(keep("video_features")),
        encoder.fusion.norm.register_forward_hook(keep("fused_layer_norm")),
        encoder.fusion.project.register_forward_hook(keep("post_extract_proj")),
        encoder.transformer.position.register_forward_hook(keep("pos_conv_out")),
        encoder.transformer.blocks[0].attention.register_forward_hook(keep("layer1_self_attn_out")),
    ]
    with torch.no_grad():
        streams = public_inputs(io)
        encoder.encode(streams, dict.fromkeys(streams, lengths))
    for hook in hooks:
        hook.remove()
    real = torch.arange(24)[None, :] < lengths[:, None]
    stem = torch.nn.functional.max_pool2d(seen.pop("stem"), 3, 2, 1)  # (F, 64, 22, 22), real frames only
    stages = io["stages"]
    torch.testing.assert_close(stem[0, :8], stages["frontend3d_frame0_ch0_7"], atol=1e-4, rtol=0)
    wanted = stages["frontend3d_mean_hw"].transpose(1, 2)[real]
    torch.testing.assert_close(stem.mean((2, 3)), wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.pop("resnet_out"), stages["resnet_out"].transpose(1, 2)[real], atol=1e-4, rtol=0)
    for name, ours in seen.items():
        theirs = stages[name].transpose(1, 2) if name in ("audio_features", "video_features") else stages[name]
        torch.testing.assert_close(ours[real], theirs[real], atol=1e-4, rtol=0, msg=lambda text, name=name: name + text)


def test_fused_features_are_layer_zero(public_model):
    """Layer 0 is what stands after the fusion's linear layer."""
    encoder, io = public_model
    streams = public_inputs(io)
    with torch.no_grad():
        out = encoder.encode(streams, dict.fromkeys(streams, torch.full((3,), 24)), layers=(0,))
    torch.testing.assert_close(out.layers[0], io["features_layer0_av_nopad"], atol=1e-4, rtol=0)


def mixed_batch():
    """Three items: audio and lips, audio alone, lips alone; lengths 9, 6, 7."""
    generator = torch.Generator().manual_seed(0)
    streams = {
        "audio": torch.randn(3, 9, 104, generator=generator),
        "video": torch.randint(0, 256, (3, 9, 16, 16), generator=generator, dtype=torch.uint8),
    }
    return streams, {"audio": torch.tensor([9, 6, 0]), "video": torch.tensor([9, 0, 7])}


def test_a_batch_equals_its_items_one_by_one():
    """Padding, neighbours and streams that others have change nothing."""
    torch.manual_seed(0)
    encoder = AVEncoder(tiny_config()).eval()
    streams, lengths = mixed_batch()
    batch = encoder.encode(streams, lengths, layers=(0, 1))
    for i, have in enumerate([("audio", "video"), ("audio",), ("video",)]):
        size = int(max(lengths[name][i] for name in have))
        alone = encoder.encode(
            {name: streams[name][i : i + 1, :size] for name in have}, {name: torch.tensor([size]) for name in have}
        )
        torch.testing.assert_close(batch.frames[i, :size], alone.frames[0], atol=1e-5, rtol=0)
        assert batch.lengths[i] == size


def test_dropped_stream_reaches_neither_output_nor_gradient():
    """An item whose video is dropped equals one that never had it, even if its pixels are nan."""
    torch.manual_seed(0)
    encoder = AVEncoder(tiny_config()).eval()
    streams, _ = mixed_batch()
    lengths = {"audio": torch.tensor([9, 6, 7]), "video": torch.tensor([9, 6, 7])}
    video = streams["video"].float().requires_grad_()
    kept = {"audio": torch.tensor([True, True, True]), "video": torch.tensor([False, True, False])}
    out = encoder.encode({"audio": streams["audio"], "video": video}, lengths, present=kept)
    out.frames.square().sum().backward()
    assert video.grad[0].abs().max() == 0 and video.grad[2].abs().max() == 0
    assert video.grad[1, :6].abs().max() > 0 and video.grad[1, 6:].abs().max() == 0
    poisoned = video.detach().clone()
    poisoned[0] = torch.nan
    again = encoder.encode({"audio": streams["audio"], "video": poisoned}, lengths, present=kept)
    torch.testing.assert_close(again.frames, out.frames)


def test_front_end_without_items_gets_zero_gradients_and_keeps_its_statistics():
    """Data parallelism needs a gradient of every parameter; a step without lips must not move batch norm."""
    torch.manual_seed(0)
    encoder = AVEncoder(tiny_config()).train()
    before = {name: buffer.clone() for name, buffer in encoder.frontends["video"].named_buffers()}
    out = encoder.encode({"audio": torch.randn(2, 5, 104)}, {"audio": torch.tensor([5, 4])})
    out.frames.sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        if name.startswith("frontends.video"):
            assert parameter.grad.abs().max() == 0, name
    for name, buffer in encoder.frontends["video"].named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_batch_norm_counts_valid_frames_only():
    """Statistics after a training step are those of the real frames, whatever stands in padding."""
    torch.manual_seed(0)
    encoder = AVEncoder(tiny_config())
    other = AVEncoder(tiny_config())
    other.load_state_dict(encoder.state_dict())
    video = torch.randint(0, 256, (2, 8, 16, 16), dtype=torch.uint8)
    lengths = {"video": torch.tensor([8, 3])}
    encoder.train().encode({"video": video}, lengths)
    longer = torch.cat([video, torch.full((2, 30, 16, 16), 255, dtype=torch.uint8)], dim=1)
    other.train().encode({"video": longer}, lengths)
    for (name, one), two in zip(encoder.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(one, two, msg=name)


def test_frames_of_another_shape_are_told_the_one_expected():
    """From Python: axes the other way round."""
    with pytest.raises(UserError, match=r"expected \(N, T, 104\), found \(2, 104, 6\)"):
        AVEncoder(tiny_config()).encode({"audio": torch.randn(2, 104, 6)}, {"audio": torch.tensor([6, 6])})


def test_invented_stream_costs_lines_of_yaml():
    """Eight channels of a third modality train beside the others: u-HuBERT's promise."""
    torch.manual_seed(0)
    config = tiny_config()
    config = tiny_config(streams=config.streams | {"emg": {"frontend": "linear", "size": 8}})
    encoder = AVEncoder(config).train()
    streams = {"audio": torch.randn(2, 6, 104), "emg": torch.randn(2, 6, 8)}
    lengths = {"audio": torch.tensor([6, 0]), "emg": torch.tensor([6, 5])}
    encoder.encode(streams, lengths).frames.square().sum().backward()
    assert encoder.frontends["emg"].project.weight.grad.abs().max() > 0
