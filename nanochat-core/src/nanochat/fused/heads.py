"""From one product to queries, keys and values: split, RMSNorm of each head, rotary positions.

    r = rsqrt(mean(x^2) + eps)        for each position and head
    y = r (x cos + swap(x) sin)       swap exchanges the halves of a head

The turn keeps norms, so it can be undone: with g the gradient of y,

    dx = r T(g - y mean(g y))         T(u) = u cos - swap(u) sin

which needs y, saved by attention anyway, and r, but not x. On an NVIDIA GPU each direction is one
kernel that reads and writes every element once, and the product itself is not kept for backward.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

EPS = torch.finfo(torch.float32).eps


def split_heads(
    qkv: Tensor, rotary: Tensor, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised and rotated queries and keys, and values.

    qkv is (B, T, heads + 2 kv_heads, d), rotary (2, T, 1, d) float32 as `rotary_table` makes it.
    Returns q (B, T, heads, d), k and v (B, T, kv_heads, d) in qkv's dtype.
    """
    if _has_kernel(qkv):
        q, k, v, _ = _split_heads(qkv, rotary, heads, kv_heads)
        return q, k, v
    q, k, v = qkv.split((heads, kv_heads, kv_heads), dim=2)
    return normalize_and_rotate(q, rotary), normalize_and_rotate(k, rotary), v


def normalize_and_rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """The formula above for x (B, T, H, d), in float32 within."""
    wide = x.float()
    swapped = torch.cat(wide.chunk(2, dim=-1)[::-1], dim=-1)
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
    return ((wide * rotary[0] + swapped * rotary[1]) * scale).to(x.dtype)


def rotary_table(length: int, head_dim: int, base: float, device: torch.device) -> Tensor:
    """Cosines and signed sines of RoPE (arXiv:2104.09864): (2, length, 1, head_dim), float32."""
    channels = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
    positions = torch.arange(length, dtype=torch.float32, device=device)
    angles = torch.outer(positions, base ** (-channels / head_dim))
    cos, sin = angles.cos(), angles.sin()
    return torch.stack((torch.cat((cos, cos), -1), torch.cat((sin, -sin), -1))).unsqueeze(-2)


def _has_kernel(qkv: Tensor) -> bool:
    size = qkv.size(-1)
    return qkv.is_cuda and size >= 16 and size & (size - 1) == 0 and _triton_is_installed()


@torch.compiler.assume_constant_result
def _triton_is_installed() -> bool:
    return find_spec("triton") is not None


@torch.library.custom_op("nanochat::split_heads", mutates_args=())
def _split_heads(
    qkv: Tensor, rotary: Tensor, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and the scale r (B, T, heads + kv_heads), float32."""
    batch, length, _, size = qkv.shape
    q, k, v, scale = _outputs(qkv, heads, kv_heads)
    _kernels().split_heads_forward[(batch * length,)](
        qkv.contiguous(),
        rotary.contiguous(),
        q,
        k,
        v,
        scale,
        length,
        EPS,
        HEADS=heads,
        KV_HEADS=kv_heads,
        SIZE=size,
        BLOCK=_power_of_two(heads + kv_heads),
        KV_BLOCK=_power_of_two(kv_heads),
        num_warps=4,
    )
    return q, k, v, scale


@_split_heads.register_fake
def _(
    qkv: Tensor, rotary: Tensor, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _outputs(qkv, heads, kv_heads)


@torch.library.custom_op("nanochat::split_heads_backward", mutates_args=())
def _split_heads_backward(
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    rotary: Tensor,
) -> Tensor:
    """The gradient of qkv, whole and contiguous."""
    batch, length, heads, size = q.shape
    kv_heads = k.size(2)
    grad = q.new_empty(batch, length, heads + 2 * kv_heads, size)
    grads = [g if g.stride(-1) == 1 else g.contiguous() for g in (grad_q, grad_k, grad_v)]
    _kernels().split_heads_backward[(batch * length,)](
        *grads,
        q,
        k,
        scale,
        rotary.contiguous(),
        grad,
        length,
        *(stride for g in grads for stride in g.stride()[:3]),
        HEADS=heads,
        KV_HEADS=kv_heads,
        SIZE=size,
        BLOCK=_power_of_two(heads + kv_heads),
        KV_BLOCK=_power_of_two(kv_heads),
        num_warps=4,
    )
    return grad


@_split_heads_backward.register_fake
def _(
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    rotary: Tensor,
) -> Tensor:
    return q.new_empty(q.size(0), q.size(1), q.size(2) + 2 * k.size(2), q.size(3))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, _, scale = output
    ctx.save_for_backward(q, k, scale, inputs[1])


def _backward(
    ctx: Any, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, _: Tensor
) -> tuple[Tensor, None, None, None]:
    q, k, scale, rotary = ctx.saved_tensors
    grad = _split_heads_backward(grad_q, grad_k, grad_v, q, k, scale, rotary)
    return grad, None, None, None


torch.library.register_autograd(_split_heads, _backward, setup_context=_save)


def _outputs(qkv: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, length, _, size = qkv.shape
    q = qkv.new_empty(batch, length, heads, size)
    k = qkv.new_empty(batch, length, kv_heads, size)
    scale = qkv.new_empty(batch, length, heads + kv_heads, dtype=torch.float32)
    return q, k, torch.empty_like(k), scale


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


@lru_cache(maxsize=1)
def _kernels() -> Any:
    from nanochat.fused import heads_kernels

    return heads_kernels
