"""The kernels as plain functions, for people with a training loop of their own.

    from nanochat import kernels

    kernels.set_kernel_backend("cce")
    loss = kernels.fused_linear_cross_entropy(hidden, weight, targets)

Without a choice, the best backend that supports the tensors at hand is taken, as in
`nanochat-train`. A choice holds for the whole process, or for one thread within `use`:

    with kernels.use(loss="chunked", attention="sdpa"):
        ...

A function under `torch.compile` keeps the backend that was chosen when it was traced.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nanochat.backend import Reduction
from nanochat.errors import UsageError
from nanochat.selection import (
    attention_name,
    choice_for,
    loaded,
    loss_name,
    set_kernel_backend,
    use,
)

__all__ = [
    "choice_for",
    "flash_attn_func",
    "flash_attn_with_kvcache",
    "fused_linear_cross_entropy",
    "set_kernel_backend",
    "use",
]


def fused_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int = -1,
    softcap: float | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy of the logits cap(hidden @ weight.T) against targets, with gradients.

    hidden is (..., D), weight (V, D), targets (...) int64. cap(z) = softcap * tanh(z / softcap).
    Rows whose target is `ignore_index` do not count. Returns a float32 scalar, or the shape of
    targets for reduction "none". Raises UsageError for shapes that do not fit together.
    """
    shape = hidden.shape[:-1]
    if weight.dim() != 2 or hidden.shape != (*shape, weight.size(1)) or shape != targets.shape:
        raise UsageError(
            f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)} and targets "
            f"{tuple(targets.shape)} do not fit together",
            "They should be (..., D), (V, D) and (...)",
        )
    if targets.dtype != torch.int64:
        raise UsageError(f"targets are {_dtype_name(targets)}, not int64", "Pass targets.long()")
    if reduction not in ("mean", "sum", "none"):
        raise UsageError(f"reduction {reduction!r} is not mean, sum or none")
    name = loss_name(
        hidden.device.type,
        targets.numel(),
        hidden.size(-1),
        weight.size(0),
        _dtype_name(hidden),
        softcap,
    )
    loss = loaded(name).linear_cross_entropy(
        hidden.reshape(-1, hidden.size(-1)),
        weight.to(hidden.dtype),
        targets.reshape(-1),
        ignore_index=ignore_index,
        softcap=softcap,
        reduction=reduction,
    )
    return loss.view(targets.shape) if reduction == "none" else loss


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = True,
    window_size: tuple[int, int] = (-1, 0),
    softmax_scale: float | None = None,
    documents: Tensor | None = None,
) -> Tensor:
    """Causal self-attention in the layout and words of FlashAttention.

    q is (B, T, H, D), k and v (B, T, H_kv, D). `window_size` is (left, right): how many earlier
    positions are seen, -1 for all; right is 0. The scale is 1 / sqrt(D) unless given.
    `documents`, (B, T) and never decreasing along a row, numbers the documents of packed rows,
    which then do not see each other: what `cu_seqlens` says to FlashAttention's varlen functions.
    """
    window = _window(causal, window_size)
    _check_shapes(q, k, v)
    if documents is not None and documents.shape != q.shape[:2]:
        raise UsageError(
            f"documents are {tuple(documents.shape)}, the rows are {tuple(q.shape[:2])}",
            "Pass a number for each position, (B, T)",
        )
    name = attention_name(
        *_attention_facts(q, k, q.size(1)),
        windows=(window,),
        training=True,
        documents=documents is not None,
    )
    apart = {} if documents is None else {"documents": documents.to(torch.int32)}
    return loaded(name).attention(q, k, v, window=window, scale=_scale(softmax_scale, q), **apart)


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    cache_seqlens: Tensor | int | None = None,
    causal: bool = True,
    window_size: tuple[int, int] = (-1, 0),
    softmax_scale: float | None = None,
) -> Tensor:
    """Append k and v to the caches in place and attend to all that they then hold.

    q, k, v are (B, T_new, H or H_kv, D), the caches (B, T_max, H_kv, D), `cache_seqlens` the
    filled length of each row (B,), or one for all. No backward pass.
    """
    window = _window(causal, window_size)
    if k is None or v is None or cache_seqlens is None:
        raise UsageError(
            "flash_attn_with_kvcache needs the new keys and values and cache_seqlens",
            "Pass k=, v= and cache_seqlens=",
        )
    _check_shapes(q, k, v)
    rows, room, *heads = k_cache.shape
    if k_cache.shape != v_cache.shape or (rows, *heads) != (k.size(0), *k.shape[2:]):
        raise UsageError(
            f"caches {tuple(k_cache.shape)} and {tuple(v_cache.shape)} do not fit keys "
            f"{tuple(k.shape)}",
            "They should be (B, T_max, H_kv, D) for keys (B, T_new, H_kv, D)",
        )
    if isinstance(cache_seqlens, int):
        # What a tensor holds is not looked at: that would wait for the device.
        if not 0 <= cache_seqlens <= room - q.size(1):
            raise UsageError(
                f"{q.size(1)} positions do not fit behind {cache_seqlens} in a cache of {room}",
                "Make the caches longer",
            )
        cache_seqlens = torch.full((rows,), cache_seqlens, device=q.device)
    elif cache_seqlens.shape != (rows,):
        raise UsageError(
            f"cache_seqlens is {tuple(cache_seqlens.shape)}, not ({rows},)",
            "Pass one length a row, or an int for all",
        )
    name = attention_name(
        *_attention_facts(q, k, k_cache.size(1)), windows=(window,), training=False
    )
    return loaded(name).attention_with_kvcache(
        q,
        k_cache,
        v_cache,
        k,
        v,
        cache_seqlens=cache_seqlens.to(torch.int32),
        window=window,
        scale=_scale(softmax_scale, q),
    )


def _attention_facts(q: Tensor, k: Tensor, length: int) -> tuple[Any, ...]:
    return (q.device.type, q.size(0), length, q.size(2), k.size(2), q.size(3), _dtype_name(q))


def _check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    fits = (
        q.dim() == k.dim() == 4
        and k.shape == v.shape
        and q.shape == (*k.shape[:2], q.size(2), k.size(3))
        and q.size(2) % max(k.size(2), 1) == 0
    )
    if not fits:
        raise UsageError(
            f"queries {tuple(q.shape)}, keys {tuple(k.shape)} and values {tuple(v.shape)} do not "
            "fit together",
            "They should be (B, T, H, D) and twice (B, T, H_kv, D), H a multiple of H_kv",
        )
    if not q.dtype == k.dtype == v.dtype:
        dtypes = ", ".join(_dtype_name(x) for x in (q, k, v))
        raise UsageError(f"queries, keys and values differ in dtype: {dtypes}")


def _scale(given: float | None, q: Tensor) -> float:
    return q.size(-1) ** -0.5 if given is None else given


def _window(causal: bool, window_size: tuple[int, int]) -> int | None:
    left, right = window_size
    if not causal or right > 0:
        raise UsageError(
            f"causal={causal} with window_size={window_size} looks ahead",
            "nanochat's kernels are causal: pass causal=True and a right window of 0",
        )
    return None if left < 0 else left


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
