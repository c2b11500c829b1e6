"""The Triton kernel of `cast.py`. Importing it imports Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def cast_both_ways_kernel(
    x_ptr,
    scale_ptr,
    narrow_ptr,
    transposed_ptr,
    rows,
    columns,
    row_stride,
    column_stride,
    largest,
    TILE: tl.constexpr,
):
    """One tile of x (rows, columns), scaled and saturated, stored as it is and transposed."""
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    x = tl.load(
        x_ptr + row[:, None] * row_stride + column[None, :] * column_stride, mask=inside, other=0.0
    )
    x = x.to(tl.float32) * tl.load(scale_ptr)
    x = tl.minimum(tl.maximum(x, -largest), largest).to(narrow_ptr.dtype.element_ty)
    tl.store(narrow_ptr + row[:, None] * columns + column[None, :], x, mask=inside)
    inside = (column[:, None] < columns) & (row[None, :] < rows)
    tl.store(transposed_ptr + column[:, None] * rows + row[None, :], tl.trans(x), mask=inside)
