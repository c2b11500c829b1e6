"""A tensor in 8-bit floats, and its transpose, in one pass.

Products of 8-bit floats want their summed dimension contiguous in both factors, so a tensor that
takes part in two of them is needed both ways round. Compilers write the second one slowly; on an
NVIDIA GPU one kernel reads the wide tensor once and writes both.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

TILE = 128


def cast_both_ways(x: Tensor, scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x * scale, saturated to the range of `dtype`: as (M, N) and transposed as (N, M).

    x is (M, N), `scale` a float32 scalar on its device; both results are contiguous.
    """
    return _cast_both_ways(x, scale, dtype)


@torch.library.custom_op("nanochat::cast_both_ways", mutates_args=())
def _cast_both_ways(x: Tensor, scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    if x.is_cuda and find_spec("triton") is not None:
        return _triton_cast(x, scale, dtype)
    largest = torch.finfo(dtype).max
    narrow = (x.float() * scale).clamp(-largest, largest).to(dtype).contiguous()
    # A clone and not `contiguous()`, which may return its argument: results must not share memory.
    return narrow, narrow.t().clone(memory_format=torch.contiguous_format)


@_cast_both_ways.register_fake
def _(x: Tensor, scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return _outputs(x, dtype)


def _outputs(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    rows, columns = x.shape
    return x.new_empty(rows, columns, dtype=dtype), x.new_empty(columns, rows, dtype=dtype)


def _triton_cast(x: Tensor, scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    rows, columns = x.shape
    narrow, transposed = _outputs(x, dtype)
    _kernel()[(-(-rows // TILE), -(-columns // TILE))](
        x,
        scale,
        narrow,
        transposed,
        rows,
        columns,
        x.stride(0),
        x.stride(1),
        torch.finfo(dtype).max,
        TILE=TILE,
        num_warps=8,
    )
    return narrow, transposed


@lru_cache(maxsize=1)
def _kernel() -> Any:
    from nanochat.fused.cast_kernel import cast_both_ways_kernel

    return cast_both_ways_kernel
