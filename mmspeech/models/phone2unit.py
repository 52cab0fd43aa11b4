"""VATLM's phoneme-to-unit model (Sec. III-C, IV-B): phones -> hidden units at 25 Hz, after FastSpeech.

    phones (N, P) -> embedding + position -> 4 blocks -> durations in frames        (duration predictor)
                                              └─ each phone repeated for its frames (length regulator)
                                                    + position -> 4 blocks -> logits over K units

A block is self-attention and a convolution over time, each with its residual and a layer norm behind (FastSpeech
Fig. 1b). Items lie one behind the other (blocks/packing.py): an item sees no padding and no other item.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from mmspeech import config as configs
from mmspeech.batch import STACK, valid_frames
from mmspeech.blocks.packing import Packing
from mmspeech.blocks.position import sinusoids
from mmspeech.blocks.transformer import SelfAttention
from mmspeech.errors import UserError
from mmspeech.files import replacing
from mmspeech.models.av_encoder import load_weights

BATCH_PHONES = 4000  # in one pass of generation, padding included
MOST_FRAMES = 125  # of one phone, 5 s: a model gone wild must not fill the memory


@dataclass(frozen=True, kw_only=True)
class Phone2UnitConfig:
    """Sizes and dropouts; the defaults are VATLM's, and FastSpeech's (as SpeechLM has it) where VATLM names none."""

    num_units: int  # size of the codebook
    num_phones: int = 46  # ids, with the special ones
    dim: int = 256
    encoder_layers: int = 4
    decoder_layers: int = 4
    ffn_dim: int = 1024
    heads: int = 2
    kernel: int = 9  # of a block's first convolution; the second has 1
    duration_dim: int = 256
    duration_kernel: int = 3
    duration_dropout: float = 0.5
    dropout: float = 0.1
    attention_dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.dim % self.heads or self.dim % 2:
            raise UserError(f"heads: {self.heads} do not divide the even width {self.dim}; change dim or heads")
        for name in ("kernel", "duration_kernel"):
            if getattr(self, name) % 2 == 0:
                raise UserError(f"{name}: {getattr(self, name)}; expected an odd number: a centre and equal sides")
        for name in ("num_units", "encoder_layers", "decoder_layers"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)}; expected 1 or more")


class Predicted(NamedTuple):
    """What training compares with the truth."""

    logits: Tensor  # (F, K) of all frames, item after item
    log_durations: Tensor  # (N, P) log(frames + 1); padding holds anything


class Generated(NamedTuple):
    """What becomes of phones."""

    units: Tensor  # (N, T) int64; padding holds 0
    lengths: Tensor  # (N,) int64 on the host, frames
    durations: Tensor  # (N, P) int64, frames; they add up to `lengths`


class Block(nn.Module):
    """Self-attention and two convolutions with a ReLU between, over packed rows; post-norm."""

    def __init__(self, config: Phone2UnitConfig) -> None:
        super().__init__()
        dim, kernel = config.dim, config.kernel
        self.attention = SelfAttention(dim, config.heads, config.attention_dropout)
        self.attention_norm = nn.LayerNorm(dim)
        self.expand = nn.Conv1d(dim, config.ffn_dim, kernel, padding=kernel // 2)
        self.contract = nn.Conv1d(config.ffn_dim, dim, 1)
        self.ffn_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """(R, D) -> (R, D); gaps come out as zeros, and are taken for such."""
        mixed = self.attention.mix(packing.pad(self.attention.qkv(x)), packing.attend)
        y = self.attention.out(packing.pack(mixed))
        x = self.attention_norm(x + self.dropout(y)).masked_fill(packing.gaps, 0.0)
        y = self.contract(torch.relu(self.expand(x.T[None])))[0].T  # as (1, C, R): one long sequence
        return self.ffn_norm(x + self.dropout(y)).masked_fill(packing.gaps, 0.0)


class DurationPredictor(nn.Module):
    """Two convolutions, each with ReLU, layer norm and dropout, then one number per phone (FastSpeech Fig. 1d)."""

    def __init__(self, config: Phone2UnitConfig) -> None:
        super().__init__()
        width, kernel = config.duration_dim, config.duration_kernel
        self.convs = nn.ModuleList(nn.Conv1d(c, width, kernel, padding=kernel // 2) for c in (config.dim, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in self.convs)
        self.dropout = nn.Dropout(config.duration_dropout)
        self.project = nn.Linear(width, 1)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """(R, D) with zeros in gaps -> (N, P), log(frames + 1)."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = self.dropout(norm(torch.relu(conv(x.T[None])[0].T))).masked_fill(packing.gaps, 0.0)
        return packing.pad(self.project(x).squeeze(1))


class Phone2Unit(nn.Module):
    """The network. `forward` trains with true durations, `generate` predicts them."""

    item_shape, item_dtype = (STACK,), torch.uint8  # a frame of its stream as read: ids, of 100 per second

    def __init__(self, config: Phone2UnitConfig, inputs: Mapping[str, Any] | None = None) -> None:
        """`inputs` says how the phones were read in training; it is only kept and saved."""
        super().__init__()
        self.config, self.inputs, self.item_limit = config, dict(inputs or {}), config.num_phones
        self.embedding = nn.Embedding(config.num_phones, config.dim)
        self.encoder = nn.ModuleList(Block(config) for _ in range(config.encoder_layers))
        self.predictor = DurationPredictor(config)
        self.decoder = nn.ModuleList(Block(config) for _ in range(config.decoder_layers))
        self.project = nn.Linear(config.dim, config.num_units)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, phones: Tensor, lengths: Tensor, durations: Tensor, frames: Tensor) -> Predicted:
        """Predict the units of phones whose durations are known.

        Args:
            phones: (N, P) int64 ids; what stands behind `lengths` is ignored.
            lengths: (N,) int64 on the host, phones of each.
            durations: (N, P) int64, frames of each phone; padding 0.
            frames: (N,) int64 on the host, their sums.
        """
        encoded, packing = self._encode(phones, lengths)
        logits, _ = self._decode(encoded, packing, durations, frames)
        return Predicted(logits, self.predictor(encoded, packing))

    def generate(self, phones: Tensor, lengths: Tensor) -> Generated:
        """The likeliest units, and how many frames each phone has: rounded, and no fewer in an item than it has phones.

        Waits for the device once: the host must know how many frames there are.
        """
        encoded, packing = self._encode(phones, lengths)
        log_durations = self.predictor(encoded, packing).float()  # (N, P)
        valid = valid_frames(lengths, log_durations.shape[1]).to(phones.device, non_blocking=True)
        durations = log_durations.expm1().round().clamp(0, MOST_FRAMES).long() * valid
        # Faster than 25 phones a second nobody speaks: there, each phone has its frame.
        hasty = durations.sum(1, keepdim=True) < valid.sum(1, keepdim=True)
        durations = torch.where(hasty & valid, durations.clamp(min=1), durations)
        frames = durations.sum(1).cpu()
        logits, decoder_packing = self._decode(encoded, packing, durations, frames)
        units = torch.zeros(len(decoder_packing.places), dtype=torch.int64, device=phones.device)
        units[decoder_packing.real] = logits.argmax(-1)  # row 0 stays 0, and so does padding
        return Generated(decoder_packing.pad(units), frames, durations)

    def _encode(self, phones: Tensor, lengths: Tensor) -> tuple[Tensor, Packing]:
        packing = self._lay_out(lengths, phones.device)
        x = self.embedding(packing.pack(phones[:, : packing.rows.shape[1]]))
        return self._through(self.encoder, x, packing), packing

    def _decode(self, encoded: Tensor, packing: Packing, durations: Tensor, frames: Tensor) -> tuple[Tensor, Packing]:
        """(F, K) logits and how the frames lie."""
        out = self._lay_out(frames, encoded.device)
        phone = phone_of_frame(durations[:, : packing.rows.shape[1]], out.rows.shape[1])  # (N, T)
        x = encoded.index_select(0, out.pack(packing.rows.gather(1, phone)))
        return self.project(self._through(self.decoder, x, out).index_select(0, out.real)), out

    def _through(self, blocks: nn.ModuleList, x: Tensor, packing: Packing) -> Tensor:
        table = sinusoids(0, packing.rows.shape[1], self.config.dim, x.device)
        x = self.dropout(x + table.index_select(0, packing.positions)).masked_fill(packing.gaps, 0.0)
        for block in blocks:
            x = block(x, packing)
        return x

    def _lay_out(self, lengths: Tensor, device: torch.device) -> Packing:
        reach = max(self.config.kernel, self.config.duration_kernel) // 2
        return Packing.of(lengths.cpu(), reach, device)


def phone_of_frame(durations: Tensor, size: int) -> Tensor:
    """The length regulator (FastSpeech Sec. 3.2): (N, P) frames of each phone -> (N, size) which phone a frame is of.

    Behind an item's last frame stands its last phone's number, P - 1.
    """
    ends = durations.cumsum(1)  # (N, P): the first frame that is no more of the phone
    frames = torch.arange(size, device=durations.device).expand(len(durations), -1).contiguous()
    return torch.searchsorted(ends, frames, right=True).clamp(max=durations.shape[1] - 1)


def by_length(lengths: np.ndarray, batch_phones: int = BATCH_PHONES) -> Iterator[np.ndarray]:
    """Numbers of items of similar length, in batches of at most so many phones with padding (or one item)."""
    order = np.argsort(-lengths, kind="stable")
    first = 0
    while first < len(order):
        last = first + max(1, batch_phones // max(int(lengths[order[first]]), 1))
        yield order[first:last]
        first = last


def save_phone2unit(model: Phone2Unit, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write config.yaml and model.safetensors; `weights`: whole ones, where the model's own are sharded (FSDP2)."""
    folder.mkdir(parents=True, exist_ok=True)
    own = model.state_dict() if weights is None else weights
    with replacing(folder / "model.safetensors") as temporary:
        temporary.write_bytes(save({name: tensor.detach().cpu().contiguous() for name, tensor in own.items()}))
    configs.dump({"system": "phone2unit", "model": model.config, "inputs": model.inputs}, folder / "config.yaml")


def load_phone2unit(folder: Path) -> Phone2Unit:
    """The model in a folder written by `save_phone2unit`, in evaluation mode. Raises UserError if it is no such one."""
    file, weights = folder / "config.yaml", folder / "model.safetensors"
    tree = configs.read(file) if file.exists() and weights.exists() else {}
    if tree.get("system") != "phone2unit":
        inside = (folder / "model" / "model.safetensors").exists()
        advice = f"give {folder / 'model'}" if inside else "give the `model` folder of a phone2unit pre-training"
        raise UserError(f"{folder}: expected a phone-to-unit model, config.yaml and model.safetensors; {advice}")
    model = Phone2Unit(configs.build(tree.get("model", {}), Phone2UnitConfig, file), tree.get("inputs"))
    load_weights(model, weights)
    return model.eval()
