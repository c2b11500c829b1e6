"""Attention by `scaled_dot_product_attention`. Tensors arrive as (B, T, H, D)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
    mask = _mask(q.size(1), window, documents, q.device)
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=q.size(2) != k.size(2),
    )
    return y.transpose(1, 2)


def _mask(
    length: int, window: int | None, documents: Tensor | None, device: torch.device
) -> Tensor | None:
    """What each query sees, (T, T) or (B, 1, T, T); None where that is all before it."""
    if window is not None and window >= length - 1:
        window = None
    if window is None and documents is None:
        return None
    rows = torch.arange(length, device=device)
    distance = rows[:, None] - rows[None, :]
    mask = distance >= 0
    if window is not None:
        mask &= distance <= window
    if documents is not None:
        mask = mask & (documents[:, None, :, None] == documents[:, None, None, :])
    return mask


def attention_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cache_seqlens: Tensor,
    window: int | None,
    scale: float,
) -> Tensor:
    """Decoding; see `AttentionBackend.attention_with_kvcache`.

    Shapes do not depend on `cache_seqlens`, so nothing waits for the device and rows may differ
    in length: the whole cache is attended under a mask.
    """
    new = torch.arange(q.size(1), device=q.device)
    positions = cache_seqlens[:, None].long() + new  # (B, T_new): where each new token goes
    index = positions[:, :, None, None].expand(-1, -1, *k.shape[2:])
    k_cache.scatter_(1, index, k.to(k_cache.dtype))
    v_cache.scatter_(1, index, v.to(v_cache.dtype))
    distance = positions[:, :, None] - torch.arange(k_cache.size(1), device=q.device)
    mask = distance >= 0
    if window is not None:
        mask &= distance <= window
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k_cache.to(q.dtype).transpose(1, 2),
        v_cache.to(q.dtype).transpose(1, 2),
        attn_mask=mask[:, None],
        scale=scale,
        enable_gqa=q.size(2) != k.size(2),
    )
    return y.transpose(1, 2)
