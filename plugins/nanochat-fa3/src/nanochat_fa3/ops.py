"""A provider's functions as operators of torch: forward, backward, decode, and runs of documents.

Whatever a provider does about `torch.compile` itself (FlashAttention-4: nothing), the compiler
sees an opaque operator with shapes and a gradient, and the graph stays whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanochat_fa3.bindings import Kernel, Runs

NAMESPACE = "nanochat_fa3"

LONGEST_STEP = 128


@dataclass(frozen=True)
class Operators:
    """The operators of one provider, as `torch.ops` knows them, and attention through them.

    `attention(q, k, v, documents, window, scale)` calls the provider without an operator between
    where nothing is compiled: that saves 0.1 ms of the host's time a pass.
    """

    attention: Any
    forward: Any
    backward: Any
    decode: Any
    runs: Any


def _runs(documents: Tensor) -> tuple[Tensor, Tensor]:
    """Where the documents of (B, T) numbers begin in one line of positions, and how many there are.

    Returns (B * T + 1,) int32 on the device, the starts in order and B * T behind them, and (2,)
    int32 on the host: the number of documents, and the length of the longest. Waits once for the
    device, since providers want both numbers to launch.
    """
    new = torch.ones_like(documents, dtype=torch.bool)
    new[:, 1:] = documents[:, 1:] != documents[:, :-1]
    new = new.flatten()
    total = new.numel()
    places = torch.arange(total, device=new.device, dtype=torch.int32)
    starts = torch.where(new, places, total).sort().values
    starts = torch.cat((starts, starts.new_full((1,), total)))
    sizes = torch.stack((new.sum(dtype=torch.int32), starts.diff().max()))
    return starts.int(), sizes.cpu()


def _read(starts: Tensor | None, sizes: Tensor | None) -> Runs | None:
    if starts is None or sizes is None:
        return None
    count, longest = sizes.tolist()
    # In steps, since a provider may compile anew for another longest.
    return Runs(starts[: count + 1], -(-longest // LONGEST_STEP) * LONGEST_STEP)


def _in_line(*tensors: Tensor) -> tuple[Tensor, ...]:
    """(B, T, H, D) as (B * T, H, D)."""
    return tuple(x.flatten(0, 1) for x in tensors)


def _forward(
    kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, runs: Runs | None, window: Any, scale: float
) -> tuple[Tensor, Tensor]:
    if runs is None:
        out, lse = kernel.forward(q, k, v, None, window, scale)
    else:
        out, lse = kernel.forward(*_in_line(q, k, v), runs, window, scale)
        out = out.view(q.shape)
    return out.contiguous(), lse.contiguous()


def _backward(
    kernel: Kernel,
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    runs: Runs | None,
    window: Any,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    dout = dout.contiguous()  # a sum's gradient has strides of 0, which kernels cannot load
    if runs is None:
        dq, dk, dv = kernel.backward(dout, q, k, v, out, lse, None, window, scale)
    else:
        flat = kernel.backward(*_in_line(dout, q, k, v, out), lse, runs, window, scale)
        dq, dk, dv = (x.view(y.shape) for x, y in zip(flat, (q, k, v), strict=True))
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


def register(kernel: Kernel) -> Operators:
    """Register `nanochat_fa3::{name}_forward`, `_backward`, `_decode`, and `_runs` of documents.

    Call it once for a name: a second registration replaces the first.
    """
    runs = torch.library.custom_op(f"{NAMESPACE}::{kernel.name}_runs", _runs, mutates_args=())

    @runs.register_fake
    def _(documents: Tensor) -> tuple[Tensor, Tensor]:
        starts = documents.new_empty((documents.numel() + 1,), dtype=torch.int32)
        return starts, torch.empty((2,), dtype=torch.int32, device="cpu")

    @torch.library.custom_op(f"{NAMESPACE}::{kernel.name}_forward", mutates_args=())
    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        starts: Tensor | None,
        sizes: Tensor | None,
        window: int | None,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        return _forward(kernel, q, k, v, _read(starts, sizes), window, scale)

    @forward.register_fake
    def _(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, *_: Any) -> tuple[Tensor, Tensor]:
        batch, length, heads = q.shape[:3]
        shape = (batch, heads, length) if starts is None else (heads, batch * length)
        return q.new_empty(q.shape), q.new_empty(shape, dtype=torch.float32)

    @torch.library.custom_op(f"{NAMESPACE}::{kernel.name}_backward", mutates_args=())
    def backward(
        dout: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        starts: Tensor | None,
        sizes: Tensor | None,
        out: Tensor,
        lse: Tensor,
        window: int | None,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _backward(kernel, dout, q, k, v, out, lse, _read(starts, sizes), window, scale)

    @backward.register_fake
    def _(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
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
    def _(q: Tensor, *_: Any) -> Tensor:
        return q.new_empty(q.shape)

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        q, k, v, starts, sizes, ctx.window, ctx.scale = inputs
        ctx.save_for_backward(q, k, v, starts, sizes, *output)

    def gradient(ctx: Any, dout: Tensor, _dlse: Tensor) -> tuple[Tensor | None, ...]:
        # The log-sum-exp never leaves this module, so nothing has a gradient through it.
        dq, dk, dv = backward(dout, *ctx.saved_tensors, ctx.window, ctx.scale)
        return dq, dk, dv, None, None, None, None

    forward.register_autograd(gradient, setup_context=setup)

    class Uncompiled(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any,
            q: Tensor,
            k: Tensor,
            v: Tensor,
            runs: Runs | None,
            window: int | None,
            scale: float,
        ) -> Tensor:
            out, lse = _forward(kernel, q, k, v, runs, window, scale)
            ctx.save_for_backward(q, k, v, out, lse)
            ctx.options = (runs, window, scale)
            return out

        @staticmethod
        def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
            grads = _backward(kernel, dout, *ctx.saved_tensors, *ctx.options)
            return (*grads, None, None, None)

    def attention(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        documents: Tensor | None,
        window: int | None,
        scale: float,
    ) -> Tensor:
        if torch.compiler.is_compiling():
            starts, sizes = (None, None) if documents is None else runs(documents)
            return forward(q, k, v, starts, sizes, window, scale)[0]
        where = None if documents is None else _read(*_runs(documents))
        return Uncompiled.apply(q, k, v, where, window, scale)

    return Operators(attention, forward, backward, decode, runs)


def samples(operators: Operators, device: str) -> list[tuple[Any, tuple[Any, ...]]]:
    """Each operator with arguments that suit it, in bfloat16, with and without a window."""

    def draw(*shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(sum(shape))
        return torch.randn(shape, generator=generator).to(device, torch.bfloat16)

    scale = 0.125
    q, k, v = draw(2, 64, 4, 64), draw(2, 64, 2, 64), draw(2, 64, 2, 64)
    leaves = tuple(x.clone().requires_grad_() for x in (q, k, v))
    documents = (torch.arange(64, device=device, dtype=torch.int32) // 20).expand(2, 64)
    found: list[tuple[Any, tuple[Any, ...]]] = [(operators.runs, (documents,))]
    for window, runs in ((None, (None, None)), (16, operators.runs(documents))):
        out, lse = operators.forward(q, k, v, *runs, window, scale)
        filled = torch.tensor([3, 40], dtype=torch.int32, device=device)
        caches = (draw(2, 128, 2, 64), draw(2, 128, 2, 64))
        new = (draw(2, 1, 4, 64), *caches, draw(2, 1, 2, 64), draw(2, 1, 2, 64))
        found += [
            (operators.forward, (*leaves, *runs, window, scale)),
            (operators.backward, (draw(2, 64, 4, 64), q, k, v, *runs, out, lse, window, scale)),
            (operators.decode, (*new, filled, window, scale)),
        ]
    return found
