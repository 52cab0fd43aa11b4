"""Names and shapes of the public AV-HuBERT checkpoints -> ours."""

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

# Public name (as a pattern) -> ours; the first that matches decides.
NAMES = (
    (r"feature_extractor_(audio)\.proj\.", r"frontends.\1.project."),
    (r"feature_extractor_(video)\.proj\.", r"frontends.\1.project."),
    (r"feature_extractor_video\.resnet\.frontend3D\.0\.", "frontends.video.resnet.stem."),
    (r"feature_extractor_video\.resnet\.frontend3D\.1\.", "frontends.video.resnet.stem_norm."),
    (r"feature_extractor_video\.resnet\.frontend3D\.2\.", "frontends.video.resnet.stem_relu."),
    (r"layer_norm\.(weight|bias)$", r"fusion.norm.\1"),
    (r"post_extract_proj\.", "fusion.project."),
    (r"encoder\.pos_conv\.0\.bias", "transformer.position.bias"),
    (r"encoder\.pos_conv\.0\.weight_g", "transformer.position.gain"),
    (r"encoder\.pos_conv\.0\.weight_v", "transformer.position.direction"),
    (r"encoder\.layer_norm\.", "transformer.norm."),
)
BLOCK_NAMES = {
    "self_attn.out_proj": "attention.out",
    "self_attn_layer_norm": "attention_norm",
    "fc1": "expand",
    "fc2": "contract",
    "final_layer_norm": "ffn_norm",
}


def encoder_state(public: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a public checkpoint's `model` that belong to the encoder, as AVEncoder's state.

    What is not the encoder's (mask embedding, prediction head, decoder) is left out.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in public.items():
        if match := re.match(r"feature_extractor_video\.resnet\.trunk\.layer(\d)\.(\d)\.(.*)", name):
            part = match[3].replace("bn", "norm").replace("downsample", "shortcut")
            state[f"frontends.video.resnet.stages.{int(match[1]) - 1}.{match[2]}.{part}"] = tensor
        elif match := re.match(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name):
            qkv = [public[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            state[f"transformer.blocks.{match[1]}.attention.qkv.{match[2]}"] = torch.cat(qkv)
        elif match := re.match(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
            if match[2] in BLOCK_NAMES:
                state[f"transformer.blocks.{match[1]}.{BLOCK_NAMES[match[2]]}.{match[3]}"] = tensor
        else:
            for pattern, ours in NAMES:
                if re.match(pattern, name):
                    renamed = re.sub(f"^{pattern}", ours, name)
                    # (64, 1, 5, 7, 7): the five frames become channels of a 2-D convolution.
                    state[renamed] = tensor.squeeze(1) if renamed.endswith("resnet.stem.weight") else tensor
                    break
    return {name: tensor.clone() for name, tensor in state.items()}


def objective_state(public: Mapping[str, Tensor], masking: Literal["input", "feature"] = "input") -> dict[str, Tensor]:
    """The entries of a pre-trained public checkpoint's `model`, with one set of labels, as UHubert's state.

    `masking` is the checkpoint's `masking_type`: it says whether its one mask embedding stands for frames of audio or
    for fused ones. Units keep the public ids: the first four are special, cluster c is c + 4.
    """
    state = {f"encoder.{name}": tensor for name, tensor in encoder_state(public).items()}
    state["mask_embeddings.audio" if masking == "input" else "mask_embeddings.fused"] = public["mask_emb"].clone()
    state["codebook"] = public["label_embs_concat"].clone()
    state |= {f"project.{part}": public[f"final_proj.{part}"].clone() for part in ("weight", "bias")}
    return state


DECODER_NAMES = {
    "self_attn": "self_attention",
    "self_attn_layer_norm": "self_norm",
    "encoder_attn": "memory_attention",
    "encoder_attn_layer_norm": "memory_norm",
    "fc1": "expand",
    "fc2": "contract",
    "final_layer_norm": "ffn_norm",
}
ATTENTION_NAMES = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}


def decoder_state(public: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a fine-tuned public checkpoint's `model` that belong to the decoder, as Decoder's state.

    Positions are computed, so the dummy entry that the public file has for them is left out.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in public.items():
        if match := re.fullmatch(r"decoder\.layers\.(\d+)\.(\w+)\.(?:(\w+_proj)\.)?(weight|bias)", name):
            part = f"{DECODER_NAMES[match[2]]}." + (f"{ATTENTION_NAMES[match[3]]}." if match[3] else "")
            state[f"layers.{match[1]}.{part}{match[4]}"] = tensor
        elif name == "decoder.embed_tokens.weight":
            state["embedding.weight"] = tensor
        elif match := re.fullmatch(r"decoder\.layer_norm\.(weight|bias)", name):
            state[f"norm.{match[1]}"] = tensor
    return {name: tensor.clone() for name, tensor in state.items()}
