"""The Triton kernels of `heads.py`. Importing it imports Triton.

One program handles one position of one row: all of its heads as a (BLOCK, SIZE) tile, where BLOCK
is the number of query and key heads rounded up to a power of two.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def split_heads_forward(
    qkv_ptr,
    rotary_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    scale_ptr,
    length,
    eps,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    KV_BLOCK: tl.constexpr,
):
    """qkv (N, HEADS + 2 KV_HEADS, SIZE) to q, k, v and the scale of each head; all contiguous."""
    position = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, SIZE)[None, :]
    swapped = (column + SIZE // 2) % SIZE
    turn = (position % length) * SIZE
    cos = tl.load(rotary_ptr + turn + column)
    sin = tl.load(rotary_ptr + length * SIZE + turn + column)

    head = tl.arange(0, BLOCK)[:, None]
    is_q, is_k = head < HEADS, (head >= HEADS) & (head < HEADS + KV_HEADS)
    row = qkv_ptr + position * (HEADS + 2 * KV_HEADS) * SIZE
    x = tl.load(row + head * SIZE + column, mask=is_q | is_k, other=0.0).to(tl.float32)
    other = tl.load(row + head * SIZE + swapped, mask=is_q | is_k, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, axis=1) / SIZE + eps)
    y = (x * cos + other * sin) * scale[:, None]
    y = y.to(q_ptr.dtype.element_ty)
    tl.store(q_ptr + (position * HEADS + head) * SIZE + column, y, mask=is_q)
    tl.store(k_ptr + (position * KV_HEADS + head - HEADS) * SIZE + column, y, mask=is_k)
    heads = tl.arange(0, BLOCK)
    tl.store(
        scale_ptr + position * (HEADS + KV_HEADS) + heads, scale, mask=heads < HEADS + KV_HEADS
    )

    head = tl.arange(0, KV_BLOCK)[:, None]
    value = tl.load(
        row + (HEADS + KV_HEADS + head) * SIZE + column, mask=head < KV_HEADS, other=0.0
    )
    tl.store(v_ptr + (position * KV_HEADS + head) * SIZE + column, value, mask=head < KV_HEADS)


@triton.jit
def split_heads_backward(
    gq_ptr,
    gk_ptr,
    gv_ptr,
    q_ptr,
    k_ptr,
    scale_ptr,
    rotary_ptr,
    grad_ptr,
    length,
    gq_batch,
    gq_length,
    gq_head,
    gk_batch,
    gk_length,
    gk_head,
    gv_batch,
    gv_length,
    gv_head,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    KV_BLOCK: tl.constexpr,
):
    """Gradients of q, k, v (any strides over batch, position, head) to that of qkv."""
    position = tl.program_id(0).to(tl.int64)
    batch, step = position // length, position % length
    column = tl.arange(0, SIZE)[None, :]
    swapped = (column + SIZE // 2) % SIZE
    cos = tl.load(rotary_ptr + step * SIZE + column)
    sin = tl.load(rotary_ptr + (length + step) * SIZE + column)

    head = tl.arange(0, BLOCK)[:, None]
    is_q, is_k = head < HEADS, (head >= HEADS) & (head < HEADS + KV_HEADS)
    gq = gq_ptr + batch * gq_batch + step * gq_length + head * gq_head
    gk = gk_ptr + batch * gk_batch + step * gk_length + (head - HEADS) * gk_head
    q = q_ptr + (position * HEADS + head) * SIZE
    k = k_ptr + (position * KV_HEADS + head - HEADS) * SIZE
    # Each tile is read from two places; where the mask is false nothing is, and zero comes.
    g = tl.load(gq + column, mask=is_q, other=0.0).to(tl.float32)
    g += tl.load(gk + column, mask=is_k, other=0.0).to(tl.float32)
    y = tl.load(q + column, mask=is_q, other=0.0).to(tl.float32)
    y += tl.load(k + column, mask=is_k, other=0.0).to(tl.float32)
    g_other = tl.load(gq + swapped, mask=is_q, other=0.0).to(tl.float32)
    g_other += tl.load(gk + swapped, mask=is_k, other=0.0).to(tl.float32)
    y_other = tl.load(q + swapped, mask=is_q, other=0.0).to(tl.float32)
    y_other += tl.load(k + swapped, mask=is_k, other=0.0).to(tl.float32)

    mean = tl.sum(g * y, axis=1)[:, None] / SIZE
    heads = tl.arange(0, BLOCK)
    scale = tl.load(
        scale_ptr + position * (HEADS + KV_HEADS) + heads,
        mask=heads < HEADS + KV_HEADS,
        other=0.0,
    )
    grad = ((g - y * mean) * cos - (g_other - y_other * mean) * sin) * scale[:, None]
    row = grad_ptr + position * (HEADS + 2 * KV_HEADS) * SIZE
    tl.store(row + head * SIZE + column, grad.to(grad_ptr.dtype.element_ty), mask=is_q | is_k)

    head = tl.arange(0, KV_BLOCK)[:, None]
    gv = gv_ptr + batch * gv_batch + step * gv_length + head * gv_head
    value = tl.load(gv + column, mask=head < KV_HEADS, other=0.0)
    tl.store(row + (HEADS + KV_HEADS + head) * SIZE + column, value, mask=head < KV_HEADS)
