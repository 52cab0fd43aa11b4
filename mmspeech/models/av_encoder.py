"""The frame-synchronous encoder: front-ends, fusion frame by frame, one shared Transformer.

    streams (N, T, ...) -> front-end of each -> (N, T, D) -> zero where absent -> fusion -> Transformer -> (N, T, D)

AV-HuBERT's encoder with the public model's semantics; u-HuBERT, VATLM and AV-data2vec share it. A front-end runs only
on the items that have its stream.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mmspeech import config as configs
from mmspeech.batch import valid_frames
from mmspeech.blocks.transformer import TransformerEncoder
from mmspeech.console import say
from mmspeech.errors import UserError
from mmspeech.files import replacing
from mmspeech.models.frontends import NoFrontend, build_frontend
from mmspeech.models.fusion import Fusion


def public_streams() -> dict[str, dict[str, Any]]:
    """Audio and lips as in the published models (design of the front-ends: AV-HuBERT, Sec. 3)."""
    return {"audio": {"frontend": "linear", "size": 104}, "video": {"frontend": "lips", "crop": 88}}


@dataclass(frozen=True, kw_only=True)
class AVEncoderConfig:
    """Sizes and dropouts; defaults are AV-HuBERT BASE in pre-training."""

    streams: dict[str, dict[str, Any]] = field(default_factory=public_streams)  # name -> front-end and its settings
    fusion: Literal["concat", "sum"] = "concat"
    num_layers: int = 12
    dim: int = 768
    ffn_dim: int = 3072
    heads: int = 12
    pre_norm: bool = True  # as all published configurations; the field's default there is post-norm
    dropout: float = 0.1  # after attention and feed-forward, and on the input of the first block
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    input_dropout: float = 0.1  # on the fused features
    layer_drop: float = 0.05
    position_kernel: int = 128  # frames
    position_groups: int = 16
    frontend_grad_scale: float = 0.1  # of the gradient that enters the front-ends; 1.0 in fine-tuning

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise UserError(f"heads: {self.heads} do not divide dim {self.dim}; change one")
        if self.dim % self.position_groups:
            raise UserError(f"position_groups: {self.position_groups} do not divide dim {self.dim}; change one")


@dataclass
class Encoded:
    """What an encoder returns."""

    frames: Tensor  # (N, T, D)
    lengths: Tensor  # (N,) int64, on the device of the frames
    layers: list[Tensor]  # (N, T, D) each, as asked for: 0 the fused features, k >= 1 the raw output of block k
    before_fusion_norm: Tensor  # (N, T, M * D), zero where a stream is absent: the feature penalty looks at it
    feed_forward: list[Tensor]  # (N, T, D) each, as asked for: a block's feed-forward output before its last residual


class ScaleGradient(torch.autograd.Function):
    """The identity forward; the gradient is multiplied by `scale` backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.scale, None


class AVEncoder(nn.Module):
    """Streams of frames at 25 Hz -> contextual frames."""

    def __init__(self, config: AVEncoderConfig, inputs: Mapping[str, Any] | None = None) -> None:
        """`inputs` says how each stream is read (data.streams of the run); it is only kept and saved."""
        super().__init__()
        self.config, self.dim, self.inputs = config, config.dim, dict(inputs or {})
        self.trained_on = list(self.inputs)  # streams that some cut of the pre-training had, as far as is known
        self.modalities = tuple(config.streams)
        self.frontends = nn.ModuleDict(
            {name: build_frontend(name, config.dim, options) for name, options in config.streams.items()}
        )
        self.fusion = Fusion(self.modalities, config.dim, config.fusion)
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.transformer = TransformerEncoder(
            config.num_layers,
            config.dim,
            config.ffn_dim,
            config.heads,
            pre_norm=config.pre_norm,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            activation_dropout=config.activation_dropout,
            layer_drop=config.layer_drop,
            position_kernel=config.position_kernel,
            position_groups=config.position_groups,
        )

    @property
    def removed(self) -> list[str]:
        """Streams whose front-ends `without` has left out."""
        return [name for name, frontend in self.frontends.items() if isinstance(frontend, NoFrontend)]

    def without(self, names: Sequence[str]) -> "AVEncoder":
        """The same encoder without the front-ends of these streams, which count as absent from then on.

        Raises UserError for a stream that the encoder does not have.
        """
        for name in names:
            if name not in self.modalities:
                raise UserError(f"remove: no stream `{name}`; this encoder knows {', '.join(self.modalities)}")
        if not names:
            return self
        streams = {name: {"frontend": "none"} if name in names else kept for name, kept in self.config.streams.items()}
        rest = {name: reader for name, reader in self.inputs.items() if name not in names}
        encoder = AVEncoder(dataclasses.replace(self.config, streams=streams), rest)
        wanted = encoder.state_dict().keys()
        encoder.load_state_dict({name: value for name, value in self.state_dict().items() if name in wanted})
        encoder.trained_on = [name for name in self.trained_on if name not in names]
        return encoder

    def forward(self, *args: Any, **kwargs: Any) -> Encoded:
        """The same as `encode`."""
        return self.encode(*args, **kwargs)

    def encode(
        self,
        streams: Mapping[str, Tensor],
        lengths: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
        layers: Sequence[int] = (),
        masked: Tensor | None = None,
        mask_embedding: Tensor | None = None,
        feed_forward: Sequence[int] = (),
    ) -> Encoded:
        """Encode a batch.

        Args:
            streams: name -> (N, T, ...); a stream left out is absent for all.
            lengths: name -> (N,) int64, on the host (elsewhere they are fetched, which waits for the device).
            present: name -> (N,) bool on the host; left out: present where the length is not 0.
            layers: numbers of the layers to return; 0 for the fused features after the linear layer.
            masked: (N, T) bool on the device: fused frames to replace by `mask_embedding` (D,) (feature masking).
            feed_forward: numbers of the blocks whose feed-forward outputs to return, in evaluation mode.
        """
        known = [name for name in self.modalities if not isinstance(self.frontends[name], NoFrontend)]
        if unknown := [name for name in streams if name not in known]:
            raise UserError(f"stream `{unknown[0]}`: this encoder knows {', '.join(known)}; drop the stream")
        lengths = {name: lengths[name].cpu() for name in streams}
        own = {name: lengths[name] > 0 for name in streams}
        if present is not None:
            own = {name: own[name] & present[name].cpu() if name in present else own[name] for name in streams}
        given = next(iter(streams.values()))
        size, device = given.shape[:2], given.device
        longest = torch.stack([length * own[name] for name, length in lengths.items()]).amax(0)  # (N,) frames
        longest_on_device = longest.to(device, non_blocking=True)
        feats = {m: self._run_frontend(m, streams, lengths, own, size, device) for m in self.modalities}
        absent = torch.zeros(size[0], dtype=torch.bool)
        presence = torch.stack([own.get(m, absent) for m in self.modalities], dim=1)  # (N, M)
        fused, before_norm = self.fusion(feats, presence.to(device, non_blocking=True))
        x = self.input_dropout(fused)
        if masked is not None and mask_embedding is not None:
            x = torch.where(masked[..., None], mask_embedding.to(x.dtype), x)
        valid = valid_frames(longest_on_device, size[1])
        x, outputs, inner = self.transformer(x, valid, [layer for layer in layers if layer > 0], feed_forward)
        remaining = iter(outputs)
        return Encoded(
            frames=x,
            lengths=longest_on_device,
            layers=[next(remaining) if layer > 0 else fused for layer in layers],
            before_fusion_norm=before_norm,
            feed_forward=inner,
        )

    def _run_frontend(
        self,
        name: str,
        streams: Mapping[str, Tensor],
        lengths: Mapping[str, Tensor],
        own: Mapping[str, Tensor],
        size: torch.Size,
        device: torch.device,
    ) -> Tensor:
        """(N, T, D) features of one stream; rows of items without it hold zeros (or a dummy that is filled over)."""
        frontend = self.frontends[name]
        rows = own[name].nonzero().squeeze(1) if name in own else torch.empty(0, dtype=torch.int64)
        if rows.numel() == 0:
            out = self.fusion.norm.weight.new_zeros(*size, self.dim)
            if not (self.training and torch.is_grad_enabled()):
                return out
            # Every rank must take part in every front-end at every step, or data parallelism waits for ever. The
            # output lands in row 0, where fusion fills it over: gradients of exactly zero.
            dummy = self._run_dummy(frontend, device)
            return out.to(dummy.dtype).index_copy(
                0, torch.zeros(1, dtype=torch.int64, device=device), nn.functional.pad(dummy, (0, 0, 0, size[1] - 1))
            )
        x = streams[name]
        item_shape: tuple[int, ...] = frontend.item_shape  # type: ignore[assignment]
        if tuple(x.shape[2:]) != tuple(item_shape):
            wanted = ", ".join(map(str, item_shape))
            raise UserError(
                f"stream `{name}`: expected (N, T, {wanted}), found {tuple(x.shape)}; give N utterances of T frames in "
                f"that order, or make data.streams.{name} and model.streams.{name} agree"
            )
        everyone = rows.numel() == size[0]
        rows_on_device = rows.to(device, non_blocking=True)
        y = frontend(x if everyone else x.index_select(0, rows_on_device), lengths[name][rows])  # (n, T, D)
        if self.config.frontend_grad_scale != 1.0:
            y = ScaleGradient.apply(y, self.config.frontend_grad_scale)
        return y if everyone else y.new_zeros(*size, self.dim).index_copy(0, rows_on_device, y)

    @staticmethod
    def _run_dummy(frontend: nn.Module, device: torch.device) -> Tensor:
        """(1, 1, D): one frame of zeros through the front-end, with batch norm's statistics left alone."""
        item_shape: tuple[int, ...] = frontend.item_shape  # type: ignore[assignment]
        was_training = frontend.training
        frontend.eval()
        try:
            return frontend(torch.zeros(1, 1, *item_shape, device=device), torch.ones(1, dtype=torch.int64))
        finally:
            frontend.train(was_training)


def save_encoder(encoder: AVEncoder, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write encoder.safetensors and config.yaml: the model's config and how its inputs are read.

    Args:
        weights: whole ones, for an encoder whose own are sharded (FSDP2).
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = encoder.state_dict() if weights is None else weights
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in own.items()}
    with replacing(folder / "encoder.safetensors") as temporary:
        temporary.write_bytes(save(weights))
    facts = {"model": encoder.config, "inputs": encoder.inputs, "trained_on": encoder.trained_on}
    configs.dump(facts, folder / "config.yaml")


def check_no_file(folder: Path) -> None:
    """Raise UserError for a file in place of a model's folder."""
    if folder.is_file():
        raise UserError(
            f"{folder}: a file, expected the folder of a model; if it is a published checkpoint, run "
            f"`mmspeech import {folder} DIR` first"
        )


def check_folder(folder: Path) -> None:
    """Raise UserError unless an encoder, or a recognizer, lies in the folder."""
    check_no_file(folder)
    if not (folder / "config.yaml").exists() or not any(
        (folder / f"{kind}.safetensors").exists() for kind in ("encoder", "model")
    ):
        inner = next((name for name in ("encoder", "model") if (folder / name / "config.yaml").exists()), None)
        advice = f"give {folder / inner}" if inner else "give the `encoder` folder of a run"
        raise UserError(f"{folder}: expected config.yaml and encoder.safetensors; {advice}")


def load_encoder(folder: Path | str) -> AVEncoder:
    """The encoder in a folder written by `save_encoder`, or that of a recognizer, whose head is left: a line says so.

    Raises UserError if it is no such folder or its weights do not fit its config.
    """
    folder = Path(folder)
    check_folder(folder)
    file, weights, recognizer = (folder / name for name in ("config.yaml", "encoder.safetensors", "model.safetensors"))
    tree = configs.read(file)
    encoder = AVEncoder(configs.build(tree.get("model", {}), AVEncoderConfig, file), tree.get("inputs"))
    encoder.trained_on = tree.get("trained_on", encoder.trained_on)
    if weights.exists():
        load_weights(encoder, weights)
    else:
        say(f"{folder}: a recognizer, of which only the encoder is taken; `mmspeech decode` runs it as it is")
        load_weights(encoder, recognizer, part="encoder.")
    return encoder


def load_weights(module: nn.Module, file: Path, part: str = "") -> None:
    """Load all weights from a safetensors file, or all whose names begin with `part`, without it.

    Raises UserError if it is cut off, naming the first entry that is missing, unknown or of another shape.
    """
    try:
        weights = load_file(file)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; give the `encoder` folder of a pre-training run") from None
    except SafetensorError as error:
        raise UserError(f"{file}: not a complete file of weights ({error}); copy or train it again") from None
    weights = {name.removeprefix(part): tensor for name, tensor in weights.items() if name.startswith(part)}
    own = module.state_dict()
    for name, tensor in own.items():
        if name not in weights:
            raise UserError(f"{file}: has no `{name}`; it belongs to another model: give one of the same config")
        if weights[name].shape != tensor.shape:
            found, wanted = tuple(weights[name].shape), tuple(tensor.shape)
            raise UserError(f"{file}: `{name}` is {found}, but the config makes {wanted}; use the config it came from")
    for name in weights:
        if name not in own:
            raise UserError(f"{file}: `{name}` is unknown to this model; use the config it came from")
    module.load_state_dict(weights)
