"""A provider's functions as operators of torch: one forward, one backward and one decode each.

Whatever a provider does about `torch.compile` itself (FlashAttention-4: nothing), the compiler
sees an opaque operator with shapes and a gradient, and the graph stays whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanochat_fa3.bindings import Kernel

NAMESPACE = "nanochat_fa3"


@dataclass(frozen=True)
class Operators:
    """The operators of one provider, as `torch.ops` knows them, and attention through them.

    `attention(q, k, v, window, scale)` calls the provider without an operator between where nothing
    is compiled: that saves 0.1 ms of the host's time a pass.
    """

    attention: Any
    forward: Any
    backward: Any
    decode: Any


def register(kernel: Kernel) -> Operators:
    """Register `nanochat_fa3::{name}_forward`, `_backward` and `_decode`, and the gradient.

    Call it once for a name: a second registration replaces the first.
    """

    @torch.library.custom_op(f"{NAMESPACE}::{kernel.name}_forward", mutates_args=())
    def forward(
        q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float
    ) -> tuple[Tensor, Tensor]:
        out, lse = kernel.forward(q, k, v, window, scale)
        return out.contiguous(), lse.contiguous()

    @forward.register_fake
    def _(
        q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float
    ) -> tuple[Tensor, Tensor]:
        batch, length, heads, _ = q.shape
        return q.new_empty(q.shape), q.new_empty((batch, heads, length), dtype=torch.float32)

    @torch.library.custom_op(f"{NAMESPACE}::{kernel.name}_backward", mutates_args=())
    def backward(
        dout: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        window: int | None,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        # The gradient of a sum is one number with strides of 0, which kernels cannot load.
        dq, dk, dv = kernel.backward(dout.contiguous(), q, k, v, out, lse, window, scale)
        return dq.contiguous(), dk.contiguous(), dv.contiguous()

    @backward.register_fake
    def _(
        dout: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        window: int | None,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)

    @torch.library.custom_op(
        f"{NAMESPACE}::{kernel.name}_decode", mutates_args=("k_cache", "v_cache")
    )
    def decode(
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        k: Tensor,
        v: Tensor,
        cache_seqlens: Tensor,
        window: int | None,
        scale: float,
    ) -> Tensor:
        return kernel.decode(q, k_cache, v_cache, k, v, cache_seqlens, window, scale).contiguous()

    @decode.register_fake
    def _(
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        k: Tensor,
        v: Tensor,
        cache_seqlens: Tensor,
        window: int | None,
        scale: float,
    ) -> Tensor:
        return q.new_empty(q.shape)

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        q, k, v, ctx.window, ctx.scale = inputs
        ctx.save_for_backward(q, k, v, *output)

    def gradient(ctx: Any, dout: Tensor, _dlse: Tensor) -> tuple[Tensor | None, ...]:
        # The log-sum-exp never leaves this module, so nothing has a gradient through it.
        dq, dk, dv = backward(dout, *ctx.saved_tensors, ctx.window, ctx.scale)
        return dq, dk, dv, None, None

    forward.register_autograd(gradient, setup_context=setup)

    class Uncompiled(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float
        ) -> Tensor:
            out, lse = kernel.forward(q, k, v, window, scale)
            out = out.contiguous()
            ctx.save_for_backward(q, k, v, out, lse)
            ctx.options = (window, scale)
            return out

        @staticmethod
        def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
            grads = kernel.backward(dout.contiguous(), *ctx.saved_tensors, *ctx.options)
            return (*grads, None, None)

    def attention(q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float) -> Tensor:
        if torch.compiler.is_compiling():
            return forward(q, k, v, window, scale)[0]
        return Uncompiled.apply(q, k, v, window, scale)

    return Operators(attention, forward, backward, decode)


def samples(operators: Operators, device: str) -> list[tuple[Any, tuple[Any, ...]]]:
    """Each operator with arguments that suit it, in bfloat16, with and without a window."""

    def draw(*shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(sum(shape))
        return torch.randn(shape, generator=generator).to(device, torch.bfloat16)

    scale = 0.125
    q, k, v = draw(2, 64, 4, 64), draw(2, 64, 2, 64), draw(2, 64, 2, 64)
    leaves = tuple(x.clone().requires_grad_() for x in (q, k, v))
    found: list[tuple[Any, tuple[Any, ...]]] = []
    for window in (None, 16):
        out, lse = operators.forward(q, k, v, window, scale)
        filled = torch.tensor([3, 40], dtype=torch.int32, device=device)
        caches = (draw(2, 128, 2, 64), draw(2, 128, 2, 64))
        new = (draw(2, 1, 4, 64), *caches, draw(2, 1, 2, 64), draw(2, 1, 2, 64))
        found += [
            (operators.forward, (*leaves, window, scale)),
            (operators.backward, (draw(2, 64, 4, 64), q, k, v, out, lse, window, scale)),
            (operators.decode, (*new, filled, window, scale)),
        ]
    return found
