"""A Transformer encoder over frames, pre-norm or post-norm, with the outputs of chosen blocks from one pass."""

import random
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mmspeech.blocks.position import PositionalConv


class SelfAttention(nn.Module):
    """Multi-head self-attention; the three projections are one matrix product."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, attend: Tensor | None) -> Tensor:
        """(N, T, D) -> (N, T, D); `attend` (N, 1, 1, T) bool, True for keys that may be seen."""
        return self.out(self.mix(self.qkv(x), attend))

    def mix(self, qkv: Tensor, attend: Tensor | None) -> Tensor:
        """What lies between the two products: (N, T, 3 D) -> (N, T, D)."""
        n, t, _ = qkv.shape
        q, k, v = qkv.view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # each (N, A, T, D / A)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=attend, dropout_p=dropout)
        return y.transpose(1, 2).reshape(n, t, -1)


class TransformerBlock(nn.Module):
    """Self-attention and feed-forward, each with its residual; GELU is the exact one."""

    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        heads: int,
        *,
        pre_norm: bool,
        dropout: float,
        attention_dropout: float,
        activation_dropout: float,
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.attention = SelfAttention(dim, heads, attention_dropout)
        self.attention_norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, ffn_dim)
        self.contract = nn.Linear(ffn_dim, dim)
        self.ffn_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.activation_dropout = nn.Dropout(activation_dropout)

    def forward(self, x: Tensor, attend: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the block's output (N, T, D), and the feed-forward output before the last residual (N, T, D)."""
        if self.pre_norm:
            x = x + self.dropout(self.attention(self.attention_norm(x), attend))
            y = self.feed_forward(self.ffn_norm(x))
            return x + y, y
        x = self.attention_norm(x + self.dropout(self.attention(x, attend)))
        y = self.feed_forward(x)
        return self.ffn_norm(x + y), y

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.contract(self.activation_dropout(F.gelu(self.expand(x)))))


class TransformerEncoder(nn.Module):
    """Positional convolution and blocks; blocks are skipped at random in training (layer drop)."""

    def __init__(
        self,
        num_layers: int,
        dim: int,
        ffn_dim: int,
        heads: int,
        *,
        pre_norm: bool = True,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        layer_drop: float = 0.0,
        position_kernel: int = 128,
        position_groups: int = 16,
    ) -> None:
        super().__init__()
        self.pre_norm, self.layer_drop = pre_norm, layer_drop
        self.position = PositionalConv(dim, position_kernel, position_groups)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                dim,
                ffn_dim,
                heads,
                pre_norm=pre_norm,
                dropout=dropout,
                attention_dropout=attention_dropout,
                activation_dropout=activation_dropout,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(
        self, x: Tensor, valid: Tensor, layers: Sequence[int] = (), feed_forward: Sequence[int] = ()
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Encode frames.

        Args:
            x: (N, T, D).
            valid: (N, T) bool, real frames.
            layers: numbers k >= 1 of blocks whose raw outputs are wanted.
            feed_forward: numbers of blocks whose feed-forward outputs before the last residual are wanted; none of
                them may be dropped (evaluation mode, or no layer drop).

        Returns:
            The encoder's output (N, T, D), the raw outputs in the order of `layers`, and the feed-forward outputs in
            that of `feed_forward`. Padded frames hold anything.
        """
        x = x.masked_fill(~valid[..., None], 0.0)  # else padding would reach real frames through the convolution
        x = x + self.position(x)
        if not self.pre_norm:
            x = self.norm(x)
        x = self.dropout(x)
        attend = valid[:, None, None, :]
        # Decided on the host, by a generator that dropout does not touch: which blocks run must not wait for the
        # device, and be the same on all ranks that share sharded blocks, whatever the size of their batches.
        drops = self.training and self.layer_drop > 0
        kept = [random.random() >= self.layer_drop for _ in self.blocks] if drops else None
        outputs: dict[int, Tensor] = {}
        inner: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks, start=1):
            if kept is None or kept[number - 1]:
                x, y = block(x, attend)
                if number in feed_forward:
                    inner[number] = y
            if number in layers:
                outputs[number] = x
        x = self.norm(x) if self.pre_norm else x
        return x, [outputs[number] for number in layers], [inner[number] for number in feed_forward]
