"""Names and shapes of the public AV-HuBERT family's tensors -> ours.

Only names and shapes: which model they belong to and what its settings are stands in public_model.py.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmspeech.models.public_model import Masking, System

# Public name (as a pattern) -> ours; the first that matches decides.
NAMES = (
    (r"feature_extractor_(audio|video)\.proj\.", r"frontends.\1.project."),
    (r"feature_extractor_video\.resnet\.frontend3D\.0\.", "frontends.video.resnet.stem."),
    (r"feature_extractor_video\.resnet\.frontend3D\.1\.", "frontends.video.resnet.stem_norm."),
    (r"feature_extractor_video\.resnet\.frontend3D\.2\.", "frontends.video.resnet.stem_relu."),
    (r"phone_embed\.", "frontends.text.embedding."),
    (r"phone_conv\.0\.", "frontends.text.conv1."),
    (r"phone_conv\.2\.", "frontends.text.conv2."),
    (r"layer_norm\.(?=weight$|bias$)", "fusion.norm."),
    (r"post_extract_proj\.", "fusion.project."),
    (r"encoder\.pos_conv\.0\.bias$", "transformer.position.bias"),
    (r"encoder\.pos_conv\.0\.weight_g$", "transformer.position.gain"),
    (r"encoder\.pos_conv\.0\.weight_v$", "transformer.position.direction"),
    (r"encoder\.layer_norm\.", "transformer.norm."),
    (r"encoder\.layers\.(\d+)\.self_attn\.[qkv]_proj\.", r"transformer.blocks.\1.attention.qkv."),
    (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"transformer.blocks.\1.attention.out."),
    (r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.", r"transformer.blocks.\1.attention_norm."),
    (r"encoder\.layers\.(\d+)\.fc1\.", r"transformer.blocks.\1.expand."),
    (r"encoder\.layers\.(\d+)\.fc2\.", r"transformer.blocks.\1.contract."),
    (r"encoder\.layers\.(\d+)\.final_layer_norm\.", r"transformer.blocks.\1.ffn_norm."),
)
DECODER_NAMES = (
    (r"decoder\.embed_tokens\.weight$", "embedding.weight"),
    (r"decoder\.layer_norm\.", "norm."),
    (r"decoder\.layers\.(\d+)\.self_attn\.", r"layers.\1.self_attention."),
    (r"decoder\.layers\.(\d+)\.self_attn_layer_norm\.", r"layers.\1.self_norm."),
    (r"decoder\.layers\.(\d+)\.encoder_attn\.", r"layers.\1.memory_attention."),
    (r"decoder\.layers\.(\d+)\.encoder_attn_layer_norm\.", r"layers.\1.memory_norm."),
    (r"decoder\.layers\.(\d+)\.fc1\.", r"layers.\1.expand."),
    (r"decoder\.layers\.(\d+)\.fc2\.", r"layers.\1.contract."),
    (r"decoder\.layers\.(\d+)\.final_layer_norm\.", r"layers.\1.ffn_norm."),
)
PROJECTIONS = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
HEAD_NAMES = {"label_embs_concat": "codebook", "final_proj.weight": "project.weight", "final_proj.bias": "project.bias"}
# What the one mask embedding stands for -> its name in our objective. Ours of VATLM masks fused frames alone: one for
# frames of sound is kept under a name that it does not have.
MASK_NAMES: dict[System, dict[Masking, str]] = {
    "AV-HuBERT": {"input": "mask_embeddings.audio", "feature": "mask_embeddings.fused"},
    "VATLM": {"input": "mask_embeddings.audio", "feature": "mask_embedding"},
}
NOT_NEEDED = ("decoder.embed_positions._float_tensor", "decoder.version")  # positions are computed: a dummy


def encoder_name(name: str) -> str | None:
    """Our name for an entry of a public encoder, None if it is none; q, k and v of a block share one."""
    if match := re.fullmatch(r"feature_extractor_video\.resnet\.trunk\.layer(\d)\.(\d+)\.(.+)", name):
        part = match[3].replace("bn", "norm").replace("downsample", "shortcut")
        return f"frontends.video.resnet.stages.{int(match[1]) - 1}.{match[2]}.{part}"
    return _renamed(name, NAMES)


def decoder_name(name: str) -> str | None:
    """Our name for an entry of a public decoder, None if it is none."""
    ours = _renamed(name, DECODER_NAMES)
    return ours and re.sub(r"(q|k|v|out)_proj", lambda found: PROJECTIONS[found[0]], ours)


def _renamed(name: str, names: Sequence[tuple[str, str]]) -> str | None:
    for pattern, ours in names:
        if match := re.match(pattern, name):
            return match.expand(ours) + name[match.end() :]
    return None


def encoder_state(public: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a public checkpoint's `model` that belong to the encoder, as AVEncoder's state.

    What is not the encoder's (mask embedding, prediction head, decoder) is left out.
    """
    groups: dict[str, list[str]] = {}
    for name in public:
        if (ours := encoder_name(name)) is not None:
            groups.setdefault(ours, []).append(name)
    return {ours: _joined(ours, names, public) for ours, names in groups.items()}


def _joined(ours: str, names: list[str], public: Mapping[str, Tensor]) -> Tensor:
    if ".qkv." in ours:
        names = sorted(names, key=lambda name: "qkv".index(name.split(".")[-2][0]))
        return torch.cat([_ordinary(public[name]) for name in names])
    tensor = _ordinary(public[names[0]])
    # (64, 1, 5, 7, 7): the five frames become channels of a 2-D convolution.
    return tensor.squeeze(1) if ours.endswith("resnet.stem.weight") else tensor


def _ordinary(tensor: Tensor) -> Tensor:
    """A copy of its own, in single precision: files may hold halves, or views of a few numbers."""
    return (tensor.float() if tensor.is_floating_point() else tensor).clone(memory_format=torch.contiguous_format)


def objective_state(
    public: Mapping[str, Tensor], masking: Masking = "input", system: System = "AV-HuBERT"
) -> dict[str, Tensor]:
    """The entries of a pre-trained public checkpoint's `model`, with one set of labels, as UHubert's or Vatlm's state.

    `masking` is the checkpoint's `masking_type`: it says whether its one mask embedding stands for frames of audio or
    for fused ones. Units keep the public ids: the first four are special, cluster c is c + 4 (or c + 3, see Units).
    """
    state = {f"encoder.{name}": tensor for name, tensor in encoder_state(public).items()}
    return state | head_state(public, masking, system)


def head_state(public: Mapping[str, Tensor], masking: Masking, system: System) -> dict[str, Tensor]:
    """What of the objective's state is not the encoder's: mask embedding, projection, codebook."""
    names = {name: head_name(name, masking, system) for name in public}
    return {ours: _ordinary(public[name]) for name, ours in names.items() if ours is not None}


def head_name(name: str, masking: Masking, system: System) -> str | None:
    """Our name for an entry that only pre-training needs, None if it is none."""
    return (HEAD_NAMES | {"mask_emb": MASK_NAMES[system][masking]}).get(name)


def decoder_state(public: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a fine-tuned public checkpoint's `model` that belong to the decoder, as Decoder's state."""
    renamed = {name: decoder_name(name) for name in public}
    return {ours: _ordinary(public[name]) for name, ours in renamed.items() if ours is not None}
