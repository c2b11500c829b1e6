"""Windows and documents by `flex_attention`: blocks of keys that no query sees stay untouched."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from nanochat.builtin import sdpa
from nanochat.builtin.flex_blocks import BLOCK, TABLES, document_tables, window_tables
from nanochat.builtin.sdpa import attention_with_kvcache

__all__ = ["attention", "attention_with_kvcache"]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None,
    scale: float,
    documents: Tensor | None = None,
) -> Tensor:
    """Causal self-attention; see `AttentionBackend.attention`."""
    length = q.size(1)
    if window is not None and window >= length - 1:
        window = None
    if window is None and documents is None:
        return sdpa.attention(q, k, v, window=None, scale=scale)
    if not torch.compiler.is_compiling() and not torch.is_grad_enabled():
        # Evaluation comes in many lengths, and a mask costs less than a compilation for each.
        return sdpa.attention(q, k, v, window=window, scale=scale, documents=documents)
    # Within torch.compile the outer graph fuses it. Uncompiled, flex_attention would hold the
    # whole score matrix, so it brings a compilation of its own.
    flex = flex_attention if torch.compiler.is_compiling() else _compiled_flex_attention()
    y = flex(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        block_mask=block_mask(length, window, documents, q.device),
        scale=scale,
        enable_gqa=q.size(2) != k.size(2),
    )
    return y.transpose(1, 2)


def block_mask(
    length: int, window: int | None, documents: Tensor | None, device: torch.device
) -> BlockMask:
    """The block mask of a causal window and of documents."""

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        see = key <= query
        if window is not None:
            see = see & (query - key <= window)
        if documents is not None:
            see = see & (documents[batch, query] == documents[batch, key])
        return see

    if documents is None:
        tables = window_tables(length, window, device)
    else:
        tables = document_tables(documents, window)
    named: dict[str, Any] = dict(zip(TABLES, tables, strict=True))
    return BlockMask(
        seq_lengths=(length, length), BLOCK_SIZE=(BLOCK, BLOCK), mask_mod=visible, **named
    )


@lru_cache(maxsize=1)
def _compiled_flex_attention() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False)
