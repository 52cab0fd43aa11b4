"""The block of an attention decoder: causal self-attention, attention to the encoder, feed-forward; pre-norm, ReLU.

In training a block sees all U tokens of N utterances at once. In a search it sees one new token of each of B
hypotheses per utterance, laid along the axis where training has the U tokens: attention is then the same call with
another mask, the encoder's keys exist once per utterance however wide the beam, and what a hypothesis may look at among
the tokens stored so far is its line of ancestors (`Past`). Nothing is copied when hypotheses change places.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KeyValues(NamedTuple):
    """What attention looks at."""

    keys: Tensor  # (N, A, S, D / A)
    values: Tensor  # (N, A, S, D / A)


class Past:
    """What one block remembers during a search: the encoder's keys, and those of all tokens fed so far.

    The tokens' lie in S slots per utterance, in the order in which they came; room for them grows by doubling, if
    nobody makes some by forgetting slots.
    """

    def __init__(self) -> None:
        self.size = 0
        self.room: KeyValues | None = None
        self.memory: KeyValues | None = None

    def has_room(self, width: int) -> bool:
        """Whether `append` of so many slots copies none of those that are there."""
        return self.room is not None and self.size + width <= self.room.keys.shape[2]

    def append(self, new: KeyValues) -> KeyValues:
        """Store (N, A, B, D / A) behind what is there; returns all that is there, (N, A, S + B, D / A)."""
        width = new.keys.shape[2]
        end = self.size + width
        if self.room is None or not self.has_room(width):
            capacity = max(2 * end, 16 * width)
            grown = KeyValues(*(part.new_empty(*part.shape[:2], capacity, part.shape[3]) for part in new))
            if self.room is not None:
                for part, old in zip(grown, self.room, strict=True):
                    part[:, :, : self.size] = old[:, :, : self.size]
            self.room = grown
        for part, fresh in zip(self.room, new, strict=True):
            part[:, :, self.size : end] = fresh
        self.size = end
        return KeyValues(*(part[:, :, :end] for part in self.room))

    def keep_slots(self, slots: Tensor) -> None:
        """Drop all but these slots, (N, S') int64, which become the first S'."""
        assert self.room is not None
        for part in self.room:
            index = slots[:, None, :, None].expand(-1, part.shape[1], -1, part.shape[3])
            part[:, :, : slots.shape[1]] = part.gather(2, index)
        self.size = slots.shape[1]

    def keep(self, utterances: Tensor) -> None:
        """Drop all but these utterances, (n,) int64."""
        if self.room is not None and self.memory is not None:
            self.room = KeyValues(*(part.index_select(0, utterances) for part in self.room))
            self.memory = KeyValues(*(part.index_select(0, utterances) for part in self.memory))


class Attention(nn.Module):
    """Multi-head attention with biases; keys and values are projected apart, so that they can be kept."""

    def __init__(self, dim: int, heads: int, memory_dim: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(memory_dim, dim)
        self.value = nn.Linear(memory_dim, dim)
        self.out = nn.Linear(dim, dim)
        for linear in (self.query, self.key, self.value, self.out):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def project(self, memory: Tensor) -> KeyValues:
        """Keys and values of `memory` (N, S, D)."""
        return KeyValues(self._split(self.key(memory)), self._split(self.value(memory)))

    def forward(self, x: Tensor, seen: KeyValues, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Let x (N, U, D) look at `seen`; returns (N, U, D).

        Args:
            mask: broadcastable to (N, A, U, S) bool, True where x may look.
            causal: token u looks at slots 0 ... u.
        """
        dropout = self.dropout if self.training else 0.0
        query = self._split(self.query(x))  # (N, A, U, D / A)
        attended = F.scaled_dot_product_attention(query, *seen, attn_mask=mask, dropout_p=dropout, is_causal=causal)
        return self.out(attended.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (N, A, S, D / A)


class DecoderLayer(nn.Module):
    """Three sub-layers, each with a norm before and a residual around it."""

    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        heads: int,
        memory_dim: int,
        dropout: float,
        attention_dropout: float,
        activation_dropout: float,
    ) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(dim)
        self.self_attention = Attention(dim, heads, dim, attention_dropout)
        self.memory_norm = nn.LayerNorm(dim)
        self.memory_attention = Attention(dim, heads, memory_dim, attention_dropout)
        self.ffn_norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, ffn_dim)
        self.contract = nn.Linear(ffn_dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.activation_dropout = nn.Dropout(activation_dropout)
        for linear in (self.expand, self.contract):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        memory_valid: Tensor,
        past: Past | None = None,
        ancestors: Tensor | None = None,
    ) -> Tensor:
        """One block over tokens (N, U, D), or over one token of each of B hypotheses (N, B, D); returns its like.

        Args:
            memory: (N, T, D) the encoder's frames; in a search they are read in the first step only.
            memory_valid: (N, 1, 1, T) bool.
            past: in a search, what this block remembers.
            ancestors: in a search, (N, 1, B, S + B) bool: the slots of each hypothesis.
        """
        normed = self.self_norm(x)
        seen = self.self_attention.project(normed)
        if past is None:
            frames = self.memory_attention.project(memory)
        else:
            seen = past.append(seen)
            if past.memory is None:
                past.memory = self.memory_attention.project(memory)
            frames = past.memory
        x = x + self.dropout(self.self_attention(normed, seen, mask=ancestors, causal=past is None))
        x = x + self.dropout(self.memory_attention(self.memory_norm(x), frames, mask=memory_valid))
        hidden = self.activation_dropout(torch.relu(self.expand(self.ffn_norm(x))))
        return x + self.dropout(self.contract(hidden))
