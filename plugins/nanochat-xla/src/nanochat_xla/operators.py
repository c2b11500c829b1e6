"""Splash attention as operators of torch: what both bridges share. Imports torch, and no stack.

A bridge gives two functions, forward and backward, that take torch tensors to the kernels; here
they become one differentiable call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NAMESPACE = "nanochat_xla"

DTYPES = {
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.int32: "int32",
}


@dataclass(frozen=True)
class Operators:
    """The operators of one bridge, as `torch.ops` knows them.

    `forward(q, k, v, documents, window, scale)` returns (out, lse), shaped as in
    `nanochat_xla.splash.forward`; `backward(grad, q, k, v, out, lse, documents, window, scale)`
    returns (dq, dk, dv).
    """

    forward: Any
    backward: Any

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        documents: Tensor | None,
        window: int | None,
        scale: float,
    ) -> Tensor:
        out, _ = self.forward(q, k, v, documents, window, scale)
        return out


def custom_operators(
    name: str, forward: Callable[..., Any], backward: Callable[..., Any]
) -> Operators:
    """Register `nanochat_xla::{name}_forward` and `_backward` from functions of torch tensors."""

    @torch.library.custom_op(f"{NAMESPACE}::{name}_forward", mutates_args=())
    def forward_op(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        documents: Tensor | None,
        window: int | None,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        return forward(q, k, v, documents, window, scale)

    @forward_op.register_fake
    def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        batch, length, heads = q.shape[:3]
        return torch.empty_like(q), q.new_empty((batch, heads, length), dtype=torch.float32)

    @torch.library.custom_op(f"{NAMESPACE}::{name}_backward", mutates_args=())
    def backward_op(
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        documents: Tensor | None,
        window: int | None,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return backward(grad, q, k, v, out, lse, documents, window, scale)

    @backward_op.register_fake
    def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)

    return differentiable(forward_op, backward_op)


def differentiable(forward: Any, backward: Any) -> Operators:
    """Give a forward operator (`torch.library.custom_op`) the gradient that the other computes."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        q, k, v, documents, ctx.window, ctx.scale = inputs
        ctx.save_for_backward(q, k, v, *output, documents)

    def gradient(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # The log-sum-exp never leaves this package, so nothing has a gradient through it.
        dq, dk, dv = backward(grad, *ctx.saved_tensors, ctx.window, ctx.scale)
        return dq, dk, dv, None, None, None

    forward.register_autograd(gradient, setup_context=setup)
    return Operators(forward, backward)
