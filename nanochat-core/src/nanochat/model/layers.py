"""The parts of a block: normalisation, rotary positions, attention, the feed-forward layer.

Tensors are (B, T, D) in the residual stream and (B, T, H, d) inside attention. Weights are kept in
float32 and used in the dtype of their input, so no autocast is needed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat.backend import AttentionBackend
from nanochat.fused.heads import split_heads
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
        self,
        x: Tensor,
        value: Tensor | None,
        rotary: Tensor,
        cache: LayerCache | None,
        documents: Tensor | None = None,
    ) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, -1, self.head_dim)
        q, k, v = split_heads(qkv, rotary, self.heads, self.kv_heads)
        if self.value_gate is not None and value is not None:
            # Value residual (arXiv:2410.17897), its weight in (0, 3) chosen by token and head.
            gate = 3 * torch.sigmoid(self.value_gate(x[..., :VALUE_GATE_CHANNELS]))
            v = v + gate.unsqueeze(-1) * value.view_as(v)
        if cache is None:
            # Only backends that keep documents apart know the word.
            apart = {} if documents is None else {"documents": documents}
            y = self.backend.attention(q, k, v, window=self.window, scale=self.scale, **apart)
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
        self,
        x: Tensor,
        value: Tensor | None,
        rotary: Tensor,
        cache: LayerCache | None,
        documents: Tensor | None = None,
    ) -> Tensor:
        x = x + self.attention(norm(x), value, rotary, cache, documents)
        return x + self.feed_forward(norm(x))
