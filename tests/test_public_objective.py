"""The u-HuBERT objective against masked-prediction passes of the public AV-HuBERT, with its masks and its weights."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from public_models import reference

from mmspeech.batch import Batch
from mmspeech.models.av_encoder import AVEncoder, AVEncoderConfig
from mmspeech.models.import_avhubert import load_pretrained
from mmspeech.models.public_names import encoder_state, objective_state
from mmspeech.pretraining.uhubert import UHubert, UHubertConfig

TINY = ("tiny_base", "tiny_large", "tiny_postnorm", "short_labels")


@dataclass
class Pass:
    """One pass of ours: with what it was given, and what it gave."""

    model: UHubert
    batch: Batch
    seen: dict[str, torch.Tensor]  # what stood at the front-ends, the fused features, the encoder's output
    parts: dict[str, torch.Tensor]

    def logits(self, part: str) -> torch.Tensor:
        """(P, K) cosines over the temperature of the frames of a part."""
        hidden = self.model.project(self.seen["frames"]).flatten(0, 1)[self.batch.drawn[f"predicted/{part}"]]
        return F.normalize(hidden, dim=-1) @ F.normalize(self.model.codebook, dim=-1).T / 0.1

    def public_penalty(self) -> torch.Tensor:
        """Mean square of the fused features over all frames: the public one counts padding, ours (a sum) does not."""
        return self.seen["fused"].square().mean()


def run(shared, name, monkeypatch):
    """The public model's masked pass in ours: its weights, inputs, masks and replaced frames, none of them drawn."""
    path, io = reference(shared, name)
    model = load_pretrained(path)

    inputs, given, units = io["inputs"], io["masked"], io["targets"][0]
    n, size = units.shape  # fewer labels than frames: frames behind the front-ends are cut to them
    lengths = inputs["lengths"].clamp(max=size)
    valid = torch.arange(size)[None, :] < lengths[:, None]
    union = (given["mask_audio"] | given["mask_video"])[:, :size]
    whole = given["mask_audio"].shape[1]
    source = given["video_source_row"] * whole + given["video_source_frame"]
    batch = Batch(
        ids=[str(i) for i in range(n)],
        streams={"audio": inputs["audio"].transpose(1, 2), "video": inputs["video_q"].squeeze(1).float() / 32},
        lengths={"audio": lengths, "video": lengths},
        targets={"units": units},
        drawn={
            "mask/audio": given["mask_audio"],
            "source/video": source.flatten(),
            "predicted/masked": torch.from_numpy(np.flatnonzero(union & valid)),
            "predicted/unmasked": torch.from_numpy(np.flatnonzero(~union & valid)),
        },
    )
    seen = {}
    encode = model.encoder.encode

    def encode_cut(streams, *args, **kwargs):
        """Front-ends see all frames, padding too, as the public ones; the rest sees what the labels leave."""
        seen.update(streams)
        for stream, x in streams.items():
            frontend = model.encoder.frontends[stream]
            features = type(frontend).forward(frontend, x, torch.full((n,), whole))[:, :size]
            monkeypatch.setattr(frontend, "forward", lambda x, lengths, features=features: features)
        encoded = encode({stream: x[:, :size] for stream, x in streams.items()}, *args, **kwargs)
        seen.update(frames=encoded.frames, fused=encoded.before_fusion_norm)
        return encoded

    monkeypatch.setattr(model.encoder, "encode", encode_cut)
    parts = {part: total for part, (total, _) in model(batch, 0).parts.items()}
    return Pass(model, batch, seen, parts), io


@pytest.mark.parametrize("name", TINY)
def test_masked_pass_equals_the_public_models(shared, name, monkeypatch):
    """Masked inputs, logits and targets of masked and of visible frames, losses, and the penalty: within 1e-4."""
    ours, io = run(shared, name, monkeypatch)
    given = io["masked"]
    torch.testing.assert_close(ours.seen["audio"], given["audio_masked"].transpose(1, 2), atol=0, rtol=0)
    units = ours.batch.targets["units"].flatten()
    for part in ("masked", "unmasked"):
        logits, target = given[f"logit_{part}"][0], given[f"target_{part}"][0]
        assert torch.equal(units[ours.batch.drawn[f"predicted/{part}"]], target)
        torch.testing.assert_close(ours.logits(part), logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(ours.parts[part], F.cross_entropy(logits, target, reduction="sum"))
    torch.testing.assert_close(ours.public_penalty(), given["features_pen"])
    fused, lengths = ours.seen["fused"], ours.batch.lengths["audio"]
    own = sum(fused[i, :length].square().mean(-1).sum() for i, length in enumerate(lengths))
    torch.testing.assert_close(ours.parts["feature_penalty"], own)


@pytest.mark.parametrize("setting", [0, 1])
def test_loss_and_gradients_equal_the_public_criterions(shared, setting, monkeypatch):
    """BASE (masked frames) and LARGE (visible ones too): the undivided loss, and every parameter's gradient norm."""
    ours, io = run(shared, "short_labels", monkeypatch)
    wanted = io["masked"]["criterion"][setting]
    weights = {"masked": wanted["pred_masked_weight"], "unmasked": wanted["pred_nomask_weight"]}
    frames = sum(len(ours.batch.drawn[f"predicted/{part}"]) for part, weight in weights.items() if weight)
    assert frames == wanted["sample_size"]  # the divisor
    loss = sum(weight * ours.parts[part] for part, weight in weights.items())
    loss = loss + wanted["loss_weights"][0] * ours.public_penalty() * frames
    torch.testing.assert_close(loss, wanted["loss"])
    for part, name in {"masked": "loss_m_0", "unmasked": "loss_u_0"}.items():
        assert float(ours.parts[part].detach()) == pytest.approx(wanted["log"][name], rel=1e-5)

    loss.backward()
    # Norms of gradients have the public names: a state of them, one number each, is read like one of weights.
    grads = {name: parameter.grad for name, parameter in ours.model.named_parameters()}
    total = torch.stack([grad.norm() for grad in grads.values()]).norm()
    assert float(total) == pytest.approx(wanted["grad"]["total_norm"], rel=1e-4)
    full = wanted["grad"]["full"]
    torch.testing.assert_close(grads["mask_embeddings.audio"], full["mask_emb"], atol=1e-4, rtol=1e-4)
    theirs = {name: torch.tensor([[norm]]) for name, norm in wanted["grad"]["norm"].items()}
    for name, norms in objective_state(theirs).items():
        assert float(grads[name].norm()) == pytest.approx(float(norms.norm()), rel=1e-3, abs=1e-4), name


def test_fused_mask_embedding_has_its_own_place(shared):
    """A checkpoint of `masking_type: feature` masks fused frames; nothing of a checkpoint is left out or invented."""
    folder = shared / "reference" / "avhubert"
    public = torch.load(folder / "tiny_base_plain.pt", weights_only=True)["model"]
    public["mask_emb"] = torch.rand(64)
    encoder = AVEncoder(AVEncoderConfig(num_layers=2, dim=64, ffn_dim=128, heads=4))
    model = UHubert(encoder, UHubertConfig(num_units=24, unit_dim=16, masking="feature"))
    model.load_state_dict(objective_state(public, masking="feature"))
    assert torch.equal(model.mask_embeddings["fused"], public["mask_emb"])
    # q, k and v are one matrix in ours.
    merged = sum("k_proj" in name or "v_proj" in name for name in public)
    assert len(objective_state(public)) == len(public) - merged == len(encoder_state(public)) + 4
