"""The parts of a block: normalisation, rotary positions, attention, the feed-forward layer.

Tensors are (B, T, D) in the residual stream and (B, T, H, d) inside attention. Weights are kept in
float32 and used in the dtype of their input, so no autocast is needed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat.backend import AttentionBackend
from nanochat.model.cache import LayerCache
from nanochat.model.config import GPTConfig

VALUE_GATE_CHANNELS = 12
QK_SCALE = 1.44
"""Sharpness of attention on normalised queries and keys, beside the usual 1 / sqrt(d)."""


def norm(x: Tensor) -> Tensor:
    """RMSNorm over the last dimension, without parameters (arXiv:1910.07467)."""
    return F.rms_norm(x, (x.size(-1),))


def norm_bound(features: int) -> float:
    """The largest magnitude in a vector of that length after `norm`."""
    return features**0.5


class Linear(nn.Linear):
    """A linear layer without bias whose float32 weight is used in the dtype of its input.

    `input_bound` is the largest magnitude its input can have, where that is known: quantization
    can then scale the input without looking for its maximum.
    """

    def __init__(
        self, in_features: int, out_features: int, input_bound: float | None = None
    ) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.input_bound = input_bound

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.to(input.dtype))


def rotary_table(length: int, head_dim: int, base: float, device: torch.device) -> Tensor:
    """Factors of RoPE (arXiv:2104.09864) for each position and channel: (2, length, 1, head_dim).

    The cosines, and the sines with the sign they have in `normalize_and_rotate`, in float32.
    """
    channels = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
    positions = torch.arange(length, dtype=torch.float32, device=device)
    angles = torch.outer(positions, base ** (-channels / head_dim))
    cos, sin = angles.cos(), angles.sin()
    return torch.stack((torch.cat((cos, cos), -1), torch.cat((sin, -sin), -1))).unsqueeze(-2)


def normalize_and_rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """RMSNorm of each head, then each pair (x[i], x[i + d/2]) turned by its position's angle.

    x is (B, T, H, d). The turn keeps the norm, so one pass finds it and writes the result. The
    halves are swapped by indexing, not concatenated: a compiler makes one kernel of it that reads
    and writes every element once.
    """
    wide = x.float()
    swapped = wide.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps)
    return ((wide * rotary[0] + swapped * rotary[1]) * scale).to(x.dtype)


class SelfAttention(nn.Module):
    """Causal self-attention with rotary positions, QK norm and gated value embeddings.

    Queries, keys and values come from one matrix: one large product is faster than three, and
    the optimiser still treats them as three (`row_blocks`).
    """

    def __init__(self, config: GPTConfig, layer: int, backend: AttentionBackend) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = (
            config.n_head,
            config.n_kv_head,
            config.head_dim,
        )
        self.window = config.windows[layer]
        self.backend = backend
        self.scale = QK_SCALE / self.head_dim**0.5
        self.row_blocks = [h * self.head_dim for h in (self.heads, self.kv_heads, self.kv_heads)]
        self.qkv = Linear(config.n_embd, sum(self.row_blocks), norm_bound(config.n_embd))
        self.out = Linear(config.n_embd, config.n_embd)
        self.value_gate = (
            Linear(VALUE_GATE_CHANNELS, self.kv_heads)
            if config.has_value_embedding(layer)
            else None
        )

    def forward(
        self, x: Tensor, value: Tensor | None, rotary: Tensor, cache: LayerCache | None
    ) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, -1, self.head_dim)
        qk, v = qkv.split((self.heads + self.kv_heads, self.kv_heads), dim=2)
        if self.value_gate is not None and value is not None:
            # Value residual (arXiv:2410.17897), its weight in (0, 3) chosen by token and head.
            gate = 3 * torch.sigmoid(self.value_gate(x[..., :VALUE_GATE_CHANNELS]))
            v = v + gate.unsqueeze(-1) * value.view_as(v)
        q, k = normalize_and_rotate(qk, rotary).split((self.heads, self.kv_heads), dim=2)
        if cache is None:
            y = self.backend.attention(q, k, v, window=self.window, scale=self.scale)
        else:
            y = self.backend.attention_with_kvcache(
                q,
                cache.keys,
                cache.values,
                k,
                v,
                cache_seqlens=cache.lengths,
                window=self.window,
                scale=self.scale,
            )
        return self.out(y.reshape(batch, length, -1))


class FeedForward(nn.Module):
    """Two linear layers with a squared ReLU between them (arXiv:2109.08668)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = Linear(config.n_embd, 4 * config.n_embd, norm_bound(config.n_embd))
        self.down = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)).square())


class Block(nn.Module):
    """Attention and feed-forward, each on the normalised stream and added back to it."""

    def __init__(self, config: GPTConfig, layer: int, backend: AttentionBackend) -> None:
        super().__init__()
        self.attention = SelfAttention(config, layer, backend)
        self.feed_forward = FeedForward(config)

    def forward(
        self, x: Tensor, value: Tensor | None, rotary: Tensor, cache: LayerCache | None
    ) -> Tensor:
        x = x + self.attention(norm(x), value, rotary, cache)
        return x + self.feed_forward(norm(x))
