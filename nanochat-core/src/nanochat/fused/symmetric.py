"""Symmetric matrix products: X X^T needs only one triangle computed.

On NVIDIA GPUs a Triton kernel computes the tiles on and below the diagonal and writes each twice,
which halves the operations of the products that Muon spends most of its time in. Elsewhere it is
an ordinary batched product.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

TILE = 128
DEPTH = 64


def symmetric_product(
    x: Tensor, *, alpha: float = 1.0, beta: float = 0.0, diagonal: float = 0.0
) -> Tensor:
    """alpha X X^T + beta X + diagonal I, for a batch of matrices (K, m, n); (K, m, m) in x's dtype.

    With `beta` other than zero X must be symmetric itself, so that X X^T is its square.
    """
    return _symmetric_product(x.contiguous(), alpha, beta, diagonal)


@torch.library.custom_op("nanochat::symmetric_product", mutates_args=())
def _symmetric_product(x: Tensor, alpha: float, beta: float, diagonal: float) -> Tensor:
    if x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) and find_spec("triton"):
        return _triton_product(x, alpha, beta, diagonal)
    product = torch.bmm(x, x.mT) * alpha
    if beta:
        product += beta * x
    if diagonal:
        # Not through a view of the diagonal: torch_xla loses what is written to it in an operator.
        product += diagonal * torch.eye(x.size(1), dtype=x.dtype, device=x.device)
    return product


@_symmetric_product.register_fake
def _(x: Tensor, alpha: float, beta: float, diagonal: float) -> Tensor:
    return x.new_empty(x.size(0), x.size(1), x.size(1))


def _triton_product(x: Tensor, alpha: float, beta: float, diagonal: float) -> Tensor:
    count, rows, columns = x.shape
    out = x.new_empty(count, rows, rows)
    tiles = -(-rows // TILE)
    _kernel()[(tiles * (tiles + 1) // 2, count)](
        x,
        out,
        rows,
        columns,
        alpha,
        beta,
        diagonal,
        ADD=bool(beta),
        TILE=TILE,
        DEPTH=DEPTH,
        num_warps=8,
        num_stages=3,
    )
    return out


@lru_cache(maxsize=1)
def _kernel() -> Any:
    from nanochat.fused.symmetric_kernel import symmetric_product_kernel

    return symmetric_product_kernel
