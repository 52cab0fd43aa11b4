"""Public checkpoints of the AV-HuBERT family -> our models.

    .pt, read as data ──▶ what it is, its settings ──▶ our names and shapes ──▶ encoder, objective, recognizer
      public_checkpoint.py   public_model.py            public_names.py

AV-HuBERT, MuAViC (AV-HuBERT with other dictionaries) and VATLM, pre-trained or fine-tuned with an attention decoder,
of any size; the objective of a VATLM that masked fused frames, as ours does. What these models are made of lies in
rooms that models/ does not know otherwise: this file is the one door, and imports them where it needs them.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from mmspeech.errors import BadItem, UserError
from mmspeech.models import av_encoder, public_model
from mmspeech.models.av_encoder import AVEncoder
from mmspeech.models.public_model import FINE_TUNED, SPECIAL, Public, agree, decoder_config, encoder_config, understood
from mmspeech.models.public_names import (
    HEAD_NAMES,
    NOT_NEEDED,
    decoder_name,
    decoder_state,
    encoder_name,
    encoder_state,
    head_name,
    objective_state,
)

if TYPE_CHECKING:
    from mmspeech.blocks.masking import SpanMask
    from mmspeech.data.text import Tokenizer
    from mmspeech.finetuning.seq2seq import Seq2Seq
    from mmspeech.pretraining.uhubert import UHubert, UHubertConfig
    from mmspeech.pretraining.vatlm import Vatlm, VatlmConfig

Module = TypeVar("Module", bound=nn.Module)
# Front-end -> reader, and of the sizes of both the reader's defaults.
READERS: dict[str, tuple[str, dict[str, int]]] = {
    "linear": ("logmel", {}),
    "lips": ("mouth", {"crop": 88}),
    "phones": ("phones", {"size": 46}),
}


def load_encoder(path: Path | str) -> AVEncoder:
    """The encoder of a public checkpoint, pre-trained or fine-tuned, or of a folder of ours; in evaluation mode.

    `encode` takes normalised inputs: `audio` (N, T, 104), each frame's log-mel values with mean 0 and variance 1;
    `video` (N, T, 88, 88) float, (grey / 255 - 0.421) / 0.165, or uint8 as read. Raises UserError for anything else.
    """
    path = Path(path)
    return (av_encoder.load_encoder(path) if path.is_dir() else encoder_of(public_model.read(path))).eval()


def load_pretrained(path: Path | str) -> "UHubert | Vatlm":
    """The objective of a pre-trained public checkpoint, in evaluation mode: UHubert for AV-HuBERT, Vatlm for VATLM.

    Units keep the public ids: `public_model.read(path).units` says which is cluster 0. Raises UserError for a
    fine-tuned file, and for a loss that ours does not have.
    """
    return pretrained_of(public_model.read(Path(path))).eval()


def load_seq2seq(path: Path | str) -> "Seq2Seq":
    """The recognizer of a fine-tuned public checkpoint, or of a folder of ours, in evaluation mode.

    Its `tokenizer` turns ids into text: `model.tokenizer.decode(model.generate(batch)[0][0].ids)`.
    Raises UserError for a file or a folder that holds no attention decoder.
    """
    from mmspeech.data.text import Tokenizer
    from mmspeech.finetuning import recognizer
    from mmspeech.finetuning.seq2seq import Seq2Seq

    path = Path(path)
    if path.is_dir():
        model, tokenizer = recognizer.load(path).objective, Tokenizer.load(path)
        if not isinstance(model, Seq2Seq):
            raise UserError(f"{path}: a CTC recognizer, expected one with an attention decoder; give another folder")
    else:
        public = public_model.read(path)
        model, tokenizer = seq2seq_of(public), tokenizer_of(public)
    model.tokenizer = tokenizer  # type: ignore[assignment]
    return model.eval()


def encoder_of(public: Public) -> AVEncoder:
    """The encoder of a checkpoint that was read."""
    return _filled(_empty_encoder(public), encoder_state(public.encoder), public)


def pretrained_of(public: Public) -> "UHubert | Vatlm":
    """The objective of a checkpoint that was read."""
    from mmspeech.pretraining.uhubert import UHubert
    from mmspeech.pretraining.vatlm import Vatlm

    config: Any = objective_config(public)
    unit_dim = public.encoder["label_embs_concat"].shape[1]
    build: dict[str, Any] = {"AV-HuBERT": UHubert, "VATLM": functools.partial(Vatlm, unit_dim=unit_dim)}
    with torch.device("meta"):
        objective: UHubert | Vatlm = build[public.system](_empty_encoder(public), config)
    return _filled(objective, objective_state(public.encoder, public.masking, public.system), public)


def objective_config(public: Public) -> "UHubertConfig | VatlmConfig":
    """The settings of its pre-training. Raises UserError for a fine-tuned one, and for a loss that ours is not."""
    if public.decoder is not None:
        raise UserError(f"{public.path}: {public.kind}; expected a pre-trained model; give one")
    if missing := [name for name in ("mask_emb", *HEAD_NAMES) if name not in public.encoder]:
        raise UserError(f"{public.path}: has no `{missing[0]}` of its pre-training; give the file as published")
    agree(public.path, public.model, {"sim_type": "cosine", "selection_type": "same_seq"}, "our losses")
    with understood(public.path):
        if len(public.encoder["final_proj.weight"]) != public.encoder["label_embs_concat"].shape[1]:
            raise UserError(f"{public.path}: predicts several sets of labels, ours one; only its encoder can be taken")
        configs: dict[str, Any] = {"AV-HuBERT": _uhubert_config, "VATLM": _vatlm_config}
        return configs[public.system](public)


def _uhubert_config(public: Public) -> "UHubertConfig":
    from mmspeech.pretraining.uhubert import UHubertConfig

    audio, video = (_mask(public, stream) for stream in ("audio", "image"))
    drop, sound = _dropout(public)
    return UHubertConfig(
        modality_dropout={"audio+video": 1 - drop, "audio": drop * (1 - sound), "video": drop * sound},
        modality_dropout_per="batch",
        masking=public.masking,
        input_masks={"audio": audio, "video": dataclasses.replace(video, replace="other_frames")},
        feature_mask=audio,
        unit_dim=public.encoder["label_embs_concat"].shape[1],
        masked_weight=float(public.criterion.get("pred_masked_weight", 1.0)),
        unmasked_weight=float(public.criterion.get("pred_nomask_weight", 0.0)),
        **_shared(public),
    )


def _vatlm_config(public: Public) -> "VatlmConfig":
    """The settings that Vatlm has. It drops streams per item, where the public code draws once per batch and may leave
    an item without any; and every frame's penalty weighs the same, where there the later kinds of data weigh more.
    """
    from mmspeech.pretraining.vatlm import VatlmConfig

    dim, size = len(public.encoder["encoder.layer_norm.weight"]), public.encoder["mask_emb"].numel()
    if public.masking == "input":
        raise UserError(
            f"{public.path}: {public.kind} with masked inputs (`mask_emb` has {size} values, for frames of sound); our "
            f"VATLM masks fused frames ({dim} values); take its encoder, or give one of `masking_type: feature`"
        )
    audio, video = (_mask(public, stream) for stream in ("audio", "image"))
    if audio != video:
        raise UserError(
            f"{public.path}: masks fused frames, but has {audio.probability:g}/{audio.length} for sound and "
            f"{video.probability:g}/{video.length} for lips; ours has one mask for them: only its encoder can be taken"
        )
    agree(public.path, public.criterion, {"pred_masked_weight": 1, "pred_nomask_weight": 0}, "our losses of VATLM")
    drop, sound = _dropout(public)
    # Spelt so; of text alone and of sound alone.
    text_weight, audio_weight = map(float, public.criterion.get("banlance_loss_weights") or (1.0, 1.0))
    return VatlmConfig(
        weights={"audio+video": 1.0, "audio": audio_weight, "audio+text": 1.0, "text": text_weight},
        modality_dropout={"audio+video+text": 1 - drop, "audio+text": drop * (1 - sound), "video+text": drop * sound},
        mask=audio,
        **_shared(public),
    )


def _mask(public: Public, stream: str) -> "SpanMask":
    from mmspeech.blocks.masking import SpanMask

    probability, length = (public.model.get(f"mask_{what}_{stream}") for what in ("prob", "length"))
    # Where the file is silent, the public code's defaults hold.
    return SpanMask(
        probability=0.65 if probability is None else float(probability), length=10 if length is None else int(length)
    )


def _dropout(public: Public) -> tuple[float, float]:
    """How often a stream is dropped, and how often it is then the sound."""
    return float(public.model.get("modality_dropout", 0.0)), float(public.model.get("audio_dropout", 0.0))


def _shared(public: Public) -> dict[str, Any]:
    """Settings of both objectives."""
    return {
        "num_units": public.units["classes"],
        "temperature": float(public.model.get("logit_temp", 0.1)),
        "feature_penalty": float((public.criterion.get("loss_weights") or [0.0])[0]),
    }


def seq2seq_of(public: Public) -> "Seq2Seq":
    """The recognizer of a checkpoint that was read."""
    state = {f"encoder.{name}": tensor for name, tensor in encoder_state(public.encoder).items()}
    state |= {f"decoder.{name}": tensor for name, tensor in decoder_state(public.decoder or {}).items()}
    return _filled(_empty_seq2seq(public), state, public)


def tokenizer_of(public: Public, model: bytes | None = None) -> "Tokenizer":
    """The tokenizer of a fine-tuned checkpoint: its dictionary's ids, its SentencePiece model's pieces.

    Args:
        model: a serialized SentencePiece model to use in place of the file's.

    Raises UserError if there is none, or if it does not belong to the decoder.
    """
    from mmspeech.data.text import Tokenizer

    model = model or public.sentencepiece
    if model is None:
        raise UserError(f"{public.path}: has no SentencePiece model; give the one beside it: --tokenizer FILE.model")
    try:
        pieces = Tokenizer.from_sentencepiece(model)
    except RuntimeError:
        raise UserError(f"{public.path}: its SentencePiece model cannot be read; give one: --tokenizer FILE") from None
    tokenizer = Tokenizer("unigram", public.text_symbols, model) if public.text_symbols else pieces
    size = len((public.decoder or {})["decoder.embed_tokens.weight"])
    if tokenizer.size != size or tokenizer.symbols[: len(SPECIAL)] != SPECIAL:
        raise UserError(
            f"{public.path}: its decoder has {size} tokens, the dictionary {tokenizer.size} that begin with "
            f"{' '.join(tokenizer.symbols[:4])}, expected {' '.join(SPECIAL)}; give the tokenizer that belongs to it"
        )
    return tokenizer


def phone_rows(public: Public) -> list[int] | None:
    """Of each of our phone ids, the row in the file's table of phones; None if its dictionary does not name ours.

    The files' order of the 41 phones is nowhere stated: only the dictionary in a file tells, if it has names.
    """
    from mmspeech.data.phones import CATEGORIES, ID, category

    size = len(public.encoder["phone_embed.weight"]) if "phone_embed.weight" in public.encoder else 0
    named: dict[str, int] = {}
    for row, symbol in enumerate(public.phone_symbols[len(SPECIAL) :], start=len(SPECIAL)):
        with contextlib.suppress(BadItem):
            if named.setdefault(category(symbol), row) != row:
                return None  # with stress, or two kinds of silence: no table of ours
    if named.keys() != set(CATEGORIES) or len(public.phone_symbols) > size:
        return None
    ours = {ID[name]: row for name, row in named.items()}
    rest = iter(row for row in range(size) if row not in named.values())
    return [ours[number] if number in ours else next(rest) for number in range(size)]


def _empty_encoder(public: Public) -> AVEncoder:
    """The encoder without weights: they come from the file, none are drawn and none take room."""
    config = encoder_config(public)
    inputs: dict[str, dict[str, Any]] = {}
    for name, frontend in config.streams.items():
        reader, defaults = READERS[frontend["frontend"]]
        # Published recognizers of VATLM were tuned and are used without text.
        if public.decoder is None or reader != "phones":
            own = {key: frontend[key] for key, default in defaults.items() if frontend[key] != default}
            inputs[name] = {"reader": reader} | own
    with torch.device("meta"):
        return AVEncoder(config, inputs)


def _empty_seq2seq(public: Public) -> "Seq2Seq":
    from mmspeech.finetuning.seq2seq import Seq2Seq, Seq2SeqConfig
    from mmspeech.finetuning.tuning import TuningConfig

    if public.decoder is None:
        raise UserError(f"{public.path}: {public.kind}; expected a fine-tuned model; give one, or fine-tune this one")
    with understood(public.path):
        # Fine-tuning names some dropouts as pre-training does, and one without `encoder_`; the others stay.
        fields = {
            "dropout": "dropout",
            "attention_dropout": "attention_dropout",
            "activation_dropout": "activation_dropout",
            "input_dropout": "dropout_input",
            "layer_drop": "layerdrop",
            "frontend_grad_scale": "feature_grad_mult",
        }
        given: dict[str, Any] = {
            ours: float(public.tuning[name]) for ours, name in fields.items() if name in public.tuning
        }
        none: dict[str, Any] = dict.fromkeys(fields, 0.0)
        tuning = TuningConfig(**(none | {"frontend_grad_scale": 1.0} | given))
        encoder = _empty_encoder(public)
        config = Seq2SeqConfig(encoder=tuning, decoder=decoder_config(public), label_smoothing=public.smoothing)
        with torch.device("meta"):
            return Seq2Seq(encoder, config, vocab_size=len(public.decoder["decoder.embed_tokens.weight"]))


def _filled(module: Module, state: Mapping[str, Tensor], public: Public) -> Module:
    """The module with the weights of `state`. Raises UserError if one is missing or of another shape."""
    weights = {}
    rows = phone_rows(public)
    for name, empty in module.state_dict().items():
        if name not in state and name.endswith("num_batches_tracked"):  # only counted with, and missing in old files
            weights[name] = torch.zeros_like(empty, device="cpu")
        elif name not in state:
            raise UserError(f"{public.path}: has nothing for our `{name}`; give the file as published")
        elif state[name].shape != empty.shape:
            shapes = f"{tuple(state[name].shape)}, expected {tuple(empty.shape)} from its other tensors"
            raise UserError(f"{public.path}: what becomes `{name}` is {shapes}; give the file as published")
        elif state[name].is_floating_point() != empty.is_floating_point():
            raise UserError(f"{public.path}: what becomes `{name}` is {state[name].dtype}; give the file as published")
        elif rows and name.endswith("frontends.text.embedding.weight"):
            weights[name] = state[name][rows]
        else:
            weights[name] = state[name]
    module.load_state_dict(weights, assign=True)
    return module


@dataclass(frozen=True)
class Report:
    """What became of every entry of a checkpoint's `model`."""

    matched: dict[str, str]  # its name -> ours, as it is
    reshaped: dict[str, str]  # its name -> ours: q, k and v side by side, five frames as channels
    left_out: list[str]  # known, and of no use: masks and units in a fine-tuned file, a dummy of the positions
    unknown: list[str]
    missing: list[str]  # ours that nothing became


def compare(public: Public) -> Report:
    """Hold a checkpoint's entries against the model that its settings and sizes make."""
    fine_tuned = public.decoder is not None
    empty: nn.Module = _empty_seq2seq(public) if fine_tuned else _empty_encoder(public)
    own = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    report = Report({}, {}, [], [], [])
    prefix, ours_prefix = (FINE_TUNED, "encoder.") if fine_tuned else ("", "")
    for name, tensor in public.encoder.items():
        ours = encoder_name(name)
        ours = None if ours is None else f"{ours_prefix}{ours}"
        if ours in own:
            same = own[ours] == tuple(tensor.shape)
            (report.matched if same else report.reshaped)[prefix + name] = ours
        elif (head := head_name(name, public.masking, public.system)) is not None and not fine_tuned:
            report.matched[name] = f"objective: {head}"
        else:
            (report.unknown if head is None else report.left_out).append(prefix + name)
    for name in public.decoder or {}:
        ours = decoder_name(name)
        if ours is not None and f"decoder.{ours}" in own:
            report.matched[name] = f"decoder.{ours}"
        else:
            (report.left_out if name in NOT_NEEDED else report.unknown).append(name)
    report.missing.extend(own.keys() - set(report.matched.values()) - set(report.reshaped.values()))
    report.missing.sort()
    return report
