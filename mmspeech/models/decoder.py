"""The attention decoder of AV-HuBERT's fine-tuning: tokens and an encoder's frames -> what token comes next.

    tokens -> embedding + sinusoidal position -> pre-norm blocks -> layer norm -> the same embedding -> logits

Training calls `forward` with whole targets. A search calls `start` once and `step` for each next token: the state holds
the keys and values of all that was seen, hypotheses lie side by side on one axis and share the encoder's.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmspeech.batch import valid_frames
from mmspeech.blocks.decoder_layer import DecoderLayer, Past
from mmspeech.blocks.position import sinusoids
from mmspeech.errors import UserError

PAD, END = 1, 2  # ids of <pad> and </s>; a target ends with </s>, and what is fed to the decoder starts with it


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Size and dropouts; the defaults are the public BASE fine-tuning."""

    num_layers: int = 6
    dim: int = 768
    ffn_dim: int = 3072
    heads: int = 4
    dropout: float = 0.1  # after the embedding and after each sub-layer
    attention_dropout: float = 0.0  # on attention weights
    activation_dropout: float = 0.1  # after ReLU

    def __post_init__(self) -> None:
        if self.num_layers < 1:
            raise UserError(f"num_layers: {self.num_layers}; a decoder has at least 1")
        if self.dim % self.heads or self.dim % 2:
            raise UserError(f"heads: {self.heads} do not divide the even width {self.dim}; change dim or heads")


@dataclass
class DecoderState:
    """What a search over n utterances with B hypotheses each remembers between steps."""

    memory: Tensor  # (N, T, D) the encoder's frames
    memory_valid: Tensor  # (n, 1, 1, T) bool
    past: list[Past]  # of each layer: keys and values of the frames and of the tokens fed so far
    ancestors: Tensor  # (n, B, U) int64: the slots of each hypothesis's own tokens, oldest first

    def choose(self, hypotheses: Tensor) -> None:
        """Continue from these hypotheses, (n, B') int64 in [0, B): one may go on several times or not at all."""
        index = hypotheses[:, :, None].expand(-1, -1, self.ancestors.shape[2])
        self.ancestors = self.ancestors.gather(1, index)

    def make_room(self, width: int) -> None:
        """Where `width` more slots do not fit, forget those that no hypothesis descends from, if they are half of all.

        Hypotheses soon share all but their last tokens, so that a long search of a wide beam needs few of its slots.
        The only wait for the device here comes as seldom as the room would double.
        """
        size = self.past[0].size
        if size == 0 or self.past[0].has_room(width):
            return
        slots = self.ancestors.flatten(1)
        used = torch.zeros(len(slots), size, dtype=torch.bool, device=slots.device).scatter(1, slots, True)
        most = int(used.sum(1).max())
        if 2 * most > size:
            return
        self.ancestors = (used.cumsum(1) - 1).gather(1, slots).view_as(self.ancestors)
        first = used.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
        for past in self.past:
            past.keep_slots(first)

    def keep(self, utterances: Tensor) -> None:
        """Drop all but these utterances, (n',) int64."""
        self.memory_valid = self.memory_valid.index_select(0, utterances)
        self.ancestors = self.ancestors.index_select(0, utterances)
        for past in self.past:
            past.keep(utterances)


class Decoder(nn.Module):
    """Pre-norm Transformer decoder with tied embeddings and sinusoidal positions."""

    def __init__(self, vocab_size: int, memory_dim: int, config: DecoderConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, config.dim, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=config.dim**-0.5)
        nn.init.zeros_(self.embedding.weight[PAD])
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            DecoderLayer(
                config.dim,
                config.ffn_dim,
                config.heads,
                memory_dim,
                config.dropout,
                config.attention_dropout,
                config.activation_dropout,
            )
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.dim)

    @property
    def vocab_size(self) -> int:
        return self.embedding.num_embeddings

    def forward(self, tokens: Tensor, memory: Tensor, memory_lengths: Tensor) -> Tensor:
        """Logits (N, U, V) of the token after each of `tokens`.

        Args:
            tokens: (N, U) int64, starting with </s>, padded with <pad> on the right.
            memory: (N, T, D) the encoder's frames.
            memory_lengths: (N,) how many of them are real.
        """
        position = sinusoids(2, tokens.shape[1], self.embedding.embedding_dim, tokens.device)  # (U, D)
        x = self.embedding(tokens) + position.masked_fill((tokens == PAD)[:, :, None], 0.0)
        x = self.dropout(x)
        valid = _attendable(memory_lengths, memory.shape[1])
        for layer in self.layers:
            x = layer(x, memory, valid)
        return F.linear(self.norm(x), self.embedding.weight)

    def start(self, memory: Tensor, memory_lengths: Tensor) -> DecoderState:
        """The state before the first step: one hypothesis without tokens for each of N utterances."""
        return DecoderState(
            memory=memory,
            memory_valid=_attendable(memory_lengths, memory.shape[1]),
            past=[Past() for _ in self.layers],
            ancestors=torch.empty(len(memory), 1, 0, dtype=torch.int64, device=memory.device),
        )

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Feed the last token of each hypothesis, (n, B) int64; returns logits (n, B, V) and moves the state on."""
        n, width = tokens.shape
        state.make_room(width)
        used, num_fed = state.past[0].size, state.ancestors.shape[2]
        own = torch.arange(used, used + width, device=tokens.device)
        state.ancestors = torch.cat([state.ancestors, own.expand(n, width)[:, :, None]], dim=2)
        mask = torch.zeros(n, width, used + width, dtype=torch.bool, device=tokens.device)
        mask = mask.scatter(2, state.ancestors, True)[:, None]  # (n, 1, B, S + B)
        x = self.embedding(tokens) + sinusoids(2 + num_fed, 1, self.embedding.embedding_dim, tokens.device)
        for layer, past in zip(self.layers, state.past, strict=True):
            x = layer(x, state.memory, state.memory_valid, past, mask)
        return F.linear(self.norm(x), self.embedding.weight)


def shift_right(targets: Tensor) -> Tensor:
    """What the decoder is fed to predict `targets` (N, U): </s>, then the targets without their last token."""
    shifted = F.pad(targets, (1, -1), value=END)
    return shifted.masked_fill(targets == PAD, PAD)


def _attendable(lengths: Tensor, size: int) -> Tensor:
    """(N, 1, 1, T) bool; at least one frame each, for attention over nothing is not a number."""
    return valid_frames(lengths.clamp(min=1), size)[:, None, None]
