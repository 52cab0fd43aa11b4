"""What a public checkpoint is: its system, its settings, its dictionaries, and the sizes that its tensors show."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmspeech.errors import UserError
from mmspeech.models import public_checkpoint
from mmspeech.models.av_encoder import AVEncoderConfig
from mmspeech.models.decoder import DecoderConfig
from mmspeech.models.inert_pickle import Record, plain

FINE_TUNED = "encoder.w2v_model."  # stands before the encoder's names in fine-tuned files
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]  # the first four entries of every dictionary
# What our readers do; a checkpoint that was trained on anything else hears and sees something else in them.
READ = {"normalize": True, "stack_order_audio": 4, "image_mean": 0.421, "image_std": 0.165}
Masking = Literal["input", "feature"]
System = Literal["AV-HuBERT", "VATLM"]


@dataclass(frozen=True)
class Public:
    """A checkpoint's content, sorted."""

    path: Path
    system: System
    encoder: dict[str, Tensor]  # what a pre-trained file's `model` has, under its names
    decoder: dict[str, Tensor] | None  # the rest of a fine-tuned file's `model`; None: a pre-trained file
    model: dict[str, Any]  # settings of the pre-trained model ...
    criterion: dict[str, Any]  # ... and of its loss
    tuning: dict[str, Any]  # of the fine-tuned model
    smoothing: float  # of the labels, in fine-tuning
    task: dict[str, Any]
    unit_symbols: list[str]  # the dictionary of the units; empty: the file has none
    text_symbols: list[str]
    phone_symbols: list[str]  # the dictionary of VATLM's phones; empty: the file has none
    sentencepiece: bytes | None

    @property
    def kind(self) -> str:
        if self.decoder is None:
            return f"pre-trained {self.system}"
        return f"fine-tuned {self.system}, tuned on {' and '.join(self.task.get('modalities') or ['?'])}"

    @property
    def masking(self) -> Masking:
        """Where its mask embedding stands in for a frame; the width of the embedding tells, if there is one."""
        if "mask_emb" not in self.encoder:
            return "input"
        size = self.encoder["feature_extractor_audio.proj.weight"].shape[1]
        by_size = "input" if self.encoder["mask_emb"].shape == (size,) else "feature"
        return "feature" if "feature" in (by_size, self.model.get("masking_type", by_size)) else "input"

    @property
    def units(self) -> dict[str, int]:
        """`classes` of the codebook; `offset`, the class of cluster 0; `clusters`.

        4 special classes come first. Where the dictionary counts from 1, cluster 0 is one of them, <unk>: offset 3.
        """
        classes = len(self.encoder["label_embs_concat"]) if "label_embs_concat" in self.encoder else 0
        offset = len(SPECIAL)
        if "0" not in self.unit_symbols and "1" in self.unit_symbols:
            offset = self.unit_symbols.index("1") - 1
        elif "0" in self.unit_symbols:
            offset = self.unit_symbols.index("0")
        return {"classes": classes, "offset": offset, "clusters": classes - offset}


def read(path: Path) -> Public:
    """Read a checkpoint as data and tell what it is. Raises UserError, one line, if it is none that we know."""
    content = public_checkpoint.read(path)
    weights = content.get("model")
    if not isinstance(weights, dict) or not weights or not all(isinstance(name, str) for name in weights):
        found = ", ".join(sorted(ascii(key)[1:-1] for key in content)[:6]) or "nothing"
        raise UserError(f"{path}: expected a `model` with its weights, found {found}; give a published checkpoint")
    if no_tensors := [name for name, value in weights.items() if not isinstance(value, Tensor)]:
        raise UserError(f"{path}: its entry {no_tensors[0]!a} is no tensor; give a published checkpoint")
    fine_tuned = any(name.startswith(FINE_TUNED) for name in weights)
    prefix = FINE_TUNED if fine_tuned else ""
    encoder = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    if missing := [name for name in _TELLING if name not in encoder]:
        raise UserError(
            f"{path}: has no `{prefix}{missing[0]}`, so it is no model of the AV-HuBERT family; give one that is"
        )
    try:
        settings = _sections(content)
        w2v = settings["model"].get("w2v_args")
        before = _sections({"cfg": w2v}) if isinstance(w2v, Mapping) else {"model": {}, "criterion": {}}
    except ValueError as error:
        raise UserError(f"{path}: its settings cannot be read ({error}); give a published checkpoint") from None
    if not (before if fine_tuned else settings)["model"]:
        where = "cfg.model.w2v_args" if fine_tuned else "cfg.model"
        raise UserError(f"{path}: has no settings of the encoder ({where}); give a published checkpoint")
    state = content.get("task_state") or {}
    state = state if isinstance(state, dict) else {}
    dictionaries = [_symbols(one) for one in _list(state.get("dictionaries"))]
    phones = state.get("phone_dictionary")
    target = _symbols(state.get("target_dictionary")) or (dictionaries[0] if dictionaries else [])
    return Public(
        path=path,
        system="VATLM" if any(name.startswith("phone_") for name in encoder) else "AV-HuBERT",
        encoder=encoder,
        decoder={n: t for n, t in weights.items() if not n.startswith(prefix)} if fine_tuned else None,
        model=(before if fine_tuned else settings)["model"],
        criterion=(before if fine_tuned else settings)["criterion"],
        tuning=settings["model"] if fine_tuned else {},
        smoothing=float(settings["criterion"].get("label_smoothing") or 0.0) if fine_tuned else 0.0,
        task=settings["task"],
        unit_symbols=next((one for one in dictionaries if one[4:5] in (["0"], ["1"])), []),
        text_symbols=target if fine_tuned else [],
        phone_symbols=next((_symbols(one) for one in _list(phones) or [phones]), []),
        sentencepiece=next(_models(state.get("s2s_tokenizer")), None) if fine_tuned else None,
    )


_TELLING = (
    "feature_extractor_audio.proj.weight",
    "feature_extractor_video.resnet.frontend3D.0.weight",
    "feature_extractor_video.proj.weight",
    "layer_norm.weight",
    "encoder.pos_conv.0.weight_v",
    "encoder.layer_norm.weight",
    "encoder.layers.0.fc1.weight",
)


def _sections(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of model, task and criterion: of `cfg`, or of older files' flat `args`."""
    tree = content.get("cfg") or content.get("args") or {}
    tree = plain(tree)
    tree = tree if isinstance(tree, dict) else {}
    flat = not isinstance(tree.get("model"), dict)
    parts = {name: tree if flat else tree.get(name) for name in ("model", "task", "criterion")}
    return {name: part if isinstance(part, dict) else {} for name, part in parts.items()}


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _symbols(value: Any) -> list[str]:
    """The entries of a dictionary in the order of their ids: fairseq's Dictionary, or the same as a dict."""
    state = value.state if isinstance(value, Record) else value
    symbols = state.get("symbols") if isinstance(state, dict) else None
    return symbols if isinstance(symbols, list) and all(isinstance(one, str) for one in symbols) else []


def _models(value: Any, depth: int = 0) -> Iterator[bytes]:
    """Serialized SentencePiece models in a tokenizer: bytes, or a tensor of bytes, at any of a few depths."""
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, Tensor) and value.dtype == torch.uint8:
        yield value.contiguous().numpy().tobytes()
    elif depth < 4 and isinstance(value, Record):
        yield from _models(value.state, depth + 1)
    elif depth < 4 and isinstance(value, dict):
        for item in value.values():
            yield from _models(item, depth + 1)


def encoder_config(public: Public) -> AVEncoderConfig:
    """The encoder's sizes, as its tensors show them; heads, order of norms and dropouts from the settings.

    Raises UserError where the settings contradict the tensors, or ask for what the encoder does not have.
    """
    with understood(public.path):
        return _encoder_config(public)


def _encoder_config(public: Public) -> AVEncoderConfig:
    weights, settings = public.encoder, public.model
    dim = len(weights["encoder.layer_norm.weight"])
    _, inner, kernel = weights["encoder.pos_conv.0.weight_v"].shape
    found: dict[str, Any] = {
        "encoder_layers": _count(weights, r"encoder\.layers\.(\d+)\."),
        "encoder_embed_dim": dim,
        "encoder_ffn_embed_dim": len(weights["encoder.layers.0.fc1.weight"]),
        "conv_pos": kernel,
        "conv_pos_groups": dim // inner,
        "audio_feat_dim": weights["feature_extractor_audio.proj.weight"].shape[1],
        "modality_fuse": "concat" if "post_extract_proj.weight" in weights else "add",
        "activation_fn": "gelu",
        "resnet_relu_type": "prelu" if "feature_extractor_video.resnet.frontend3D.2.weight" in weights else "relu",
    }
    agree(public.path, settings, found, "its tensors")
    agree(public.path, public.task, READ, "our readers")
    trunk = "feature_extractor_video.resnet.trunk.layer"
    stages = range(1, 1 + _count(weights, rf"{re.escape(trunk)}(\d+)\.", first=1))
    video = {
        "frontend": "lips",
        "crop": int(public.task.get("image_crop_size", 88)),
        "stem": len(weights["feature_extractor_video.resnet.frontend3D.0.weight"]),
        "widths": [len(weights[f"{trunk}{stage}.0.conv1.weight"]) for stage in stages],
        "blocks": _count(weights, rf"{re.escape(trunk)}1\.(\d+)\."),
        "activation": found["resnet_relu_type"],
    }
    text: dict[str, dict[str, Any]] = {}
    if public.system == "VATLM":
        text = {"text": {"frontend": "phones", "size": len(weights["phone_embed.weight"])}}
    audio: dict[str, Any] = {"frontend": "linear", "size": found["audio_feat_dim"]}
    return AVEncoderConfig(
        streams={"audio": audio, "video": video} | text,
        fusion="concat" if found["modality_fuse"] == "concat" else "sum",
        num_layers=found["encoder_layers"],
        dim=dim,
        ffn_dim=found["encoder_ffn_embed_dim"],
        # No tensor shows these; where the file is silent, as BASE is, the public code's defaults hold.
        heads=int(settings.get("encoder_attention_heads", 12)),
        pre_norm=bool(settings.get("layer_norm_first", False)),
        dropout=float(settings.get("dropout", 0.1)),
        attention_dropout=float(settings.get("attention_dropout", 0.1)),
        activation_dropout=float(settings.get("activation_dropout", 0.0)),
        input_dropout=float(settings.get("dropout_input", 0.0)),
        layer_drop=float(settings.get("encoder_layerdrop", 0.0)),
        position_kernel=kernel,
        position_groups=found["conv_pos_groups"],
        frontend_grad_scale=float(settings.get("feature_grad_mult", 1.0)),
    )


def decoder_config(public: Public) -> DecoderConfig:
    """The decoder's sizes, as `encoder_config`."""
    weights, settings = public.decoder or {}, public.tuning
    if "decoder.embed_tokens.weight" not in weights:
        raise UserError(f"{public.path}: has no attention decoder; only such recognizers are read: take its encoder")
    if "decoder.embed_out" in weights or "decoder.output_projection.weight" in weights:
        raise UserError(f"{public.path}: its decoder has two embeddings, ours shares one; such a model is not read")
    with understood(public.path):
        return _decoder_config(public.path, weights, settings)


def _decoder_config(path: Path, weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> DecoderConfig:
    found = {
        "decoder_layers": _count(weights, r"decoder\.layers\.(\d+)\."),
        "decoder_embed_dim": weights["decoder.embed_tokens.weight"].shape[1],
        "decoder_ffn_embed_dim": len(weights["decoder.layers.0.fc1.weight"]),
        "decoder_normalize_before": True,
        "decoder_learned_pos": False,
        "no_token_positional_embeddings": False,
        "no_scale_embedding": True,
    }
    agree(path, settings, found, "its tensors and our decoder")
    return DecoderConfig(
        num_layers=found["decoder_layers"],
        dim=found["decoder_embed_dim"],
        ffn_dim=found["decoder_ffn_embed_dim"],
        heads=int(settings.get("decoder_attention_heads", 4)),
        dropout=float(settings.get("decoder_dropout", 0.1)),
        attention_dropout=float(settings.get("decoder_attention_dropout", 0.0)),
        activation_dropout=float(settings.get("decoder_activation_dropout", 0.0)),
    )


@contextlib.contextmanager
def understood(path: Path) -> Iterator[None]:
    """What tensors or settings of impossible kinds raise in the block becomes one line."""
    try:
        yield
    except UserError as error:
        line = str(error)
        raise UserError(line if line.startswith(str(path)) else f"{path}: {line}") from None
    except (KeyError, ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        raise UserError(
            f"{path}: its tensors and settings make no model ({error}); give a published checkpoint"
        ) from None


def agree(path: Path, settings: Mapping[str, Any], found: Mapping[str, Any], where: str) -> None:
    """Raise UserError for the first setting that is stated and differs."""
    for key, value in found.items():
        if settings.get(key, value) not in (value, None):
            raise UserError(
                f"{path}: `{key}` is {settings[key]!r} in its settings, but {where} have {value!r}; such a model is "
                "not read: give a published checkpoint"
            )


def _count(weights: Mapping[str, Tensor], pattern: str, first: int = 0) -> int:
    """How many numbered parts there are. Raises ValueError if one is missing."""
    numbers = {int(match[1]) for name in weights if (match := re.match(pattern, name))}
    if numbers != set(range(first, first + len(numbers))):
        raise ValueError(f"numbers up to {max(numbers)}, {len(numbers)} of them")
    return len(numbers)
