"""The Triton kernel of `symmetric.py`. Importing it imports Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def symmetric_product_kernel(
    x_ptr,
    out_ptr,
    rows,
    columns,
    alpha,
    beta,
    diagonal,
    ADD: tl.constexpr,
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """One tile (i, j), j <= i, of alpha X X^T + beta X + diagonal I, and its mirror image.

    x is (batch, rows, columns), out (batch, rows, rows), both contiguous; program 0 counts the
    tiles of the lower triangle row by row, program 1 the batch.
    """
    tile = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    # The row of the triangle: the largest i with i (i + 1) / 2 <= tile, mended after rounding.
    i = ((tl.sqrt(8.0 * tile.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    i = tl.where((i + 1) * (i + 2) // 2 <= tile, i + 1, i)
    i = tl.where(i * (i + 1) // 2 > tile, i - 1, i)
    j = tile - i * (i + 1) // 2

    upper = i * TILE + tl.arange(0, TILE)
    lower = j * TILE + tl.arange(0, TILE)
    depth = tl.arange(0, DEPTH)
    x_ptr += batch * rows * columns
    out_ptr += batch * rows * rows
    a_ptr = x_ptr + upper[:, None] * columns + depth[None, :]
    b_ptr = x_ptr + lower[:, None] * columns + depth[None, :]
    total = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, columns, DEPTH):
        inside = depth[None, :] + start < columns
        a = tl.load(a_ptr + start, mask=(upper[:, None] < rows) & inside, other=0.0)
        b = tl.load(b_ptr + start, mask=(lower[:, None] < rows) & inside, other=0.0)
        total = tl.dot(a, tl.trans(b), total)
    total *= alpha

    inside = (upper[:, None] < rows) & (lower[None, :] < rows)
    if ADD:
        x = tl.load(x_ptr + upper[:, None] * columns + lower[None, :], mask=inside, other=0.0)
        total += beta * x.to(tl.float32)
    total += tl.where(upper[:, None] == lower[None, :], diagonal, 0.0)
    out = total.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + upper[:, None] * rows + lower[None, :], out, mask=inside)
    if i != j:
        mirrored = (lower[:, None] < rows) & (upper[None, :] < rows)
        tl.store(out_ptr + lower[:, None] * rows + upper[None, :], tl.trans(out), mask=mirrored)
