"""Windows by `flex_attention`: blocks of keys that no query sees are never touched."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from nanochat.builtin import sdpa
from nanochat.builtin.sdpa import attention_with_kvcache

__all__ = ["attention", "attention_with_kvcache"]

BLOCK = 128


def attention(q: Tensor, k: Tensor, v: Tensor, *, window: int | None, scale: float) -> Tensor:
    """Causal self-attention; see `AttentionBackend.attention`."""
    length = q.size(1)
    if window is None or window >= length - 1:
        return sdpa.attention(q, k, v, window=None, scale=scale)
    if not torch.compiler.is_compiling() and not torch.is_grad_enabled():
        # Evaluation comes in many lengths, and a mask costs less than a compilation for each.
        return sdpa.attention(q, k, v, window=window, scale=scale)
    # Within torch.compile the outer graph fuses it. Uncompiled, flex_attention would hold the
    # whole score matrix, so it brings a compilation of its own.
    flex = flex_attention if torch.compiler.is_compiling() else _compiled_flex_attention()
    y = flex(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        block_mask=window_mask(length, window, q.device),
        scale=scale,
        enable_gqa=q.size(2) != k.size(2),
    )
    return y.transpose(1, 2)


def window_mask(length: int, window: int, device: torch.device) -> BlockMask:
    """The block mask of a causal window, from arithmetic on blocks alone.

    `create_block_mask` would evaluate every pair of positions: at 16K tokens 268 million.
    """
    blocks = torch.arange(-(-length // BLOCK), device=device)
    gap = blocks[:, None] - blocks[None, :]  # in blocks, query minus key
    nearest = (gap * BLOCK - (BLOCK - 1)).clamp(min=0)  # smallest distance within a pair of blocks
    farthest = gap * BLOCK + (BLOCK - 1)
    seen = (gap >= 0) & (nearest <= window)
    whole = (blocks + 1) * BLOCK <= length  # the last block of queries may be cut short
    full = (gap >= 1) & (farthest <= window) & whole[:, None]

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query - key <= window)

    return BlockMask.from_kv_blocks(
        *_listed(seen & ~full),
        *_listed(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(length, length),
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """A (queries, keys) table of blocks as how many there are for each query, and which."""
    count = blocks.sum(dim=-1, dtype=torch.int32)
    index = blocks.int().argsort(dim=-1, descending=True, stable=True).int()
    return count[None, None], index[None, None]


@lru_cache(maxsize=1)
def _compiled_flex_attention() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False)
