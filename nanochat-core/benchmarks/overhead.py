"""What a backend costs over the bare call of the library it wraps, forward and backward.

    python overhead.py

Times both in turn, so that a clock that drifts meets both alike: at the shapes of
docs/benchmarks.md, where many calls are queued so that the GPU never waits for the host, and at
small ones, where the host is what takes time. Prints a Markdown table: milliseconds of a forward
and a backward pass, the ratio, and the difference in microseconds. A library that is not installed
is left out, with the reason.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nanochat.backend import AttentionProblem, LossProblem
from nanochat.bench.work import LOGIT_DEVIATION
from nanochat.plan import choose, choose_device
from nanochat.registry import discover

ATTENTION = ((16, 2048, 10, None), (16, 2048, 10, 512), (1, 16384, 8, 1024), (1, 256, 2, None))
LOSS = ((8192, 65536), (65536, 32768), (512, 4096))
SPANS, CALLS = 9, 10
Pair = tuple[Callable[[], Tensor], Callable[[], Tensor]]


def main() -> None:
    print("| backend | shape | bare call | backend | ratio | difference |")
    print("|---|---|---|---|---|---|")
    for shape in ATTENTION:
        attention(*shape)
    for shape in LOSS:
        loss(*shape)


def attention(batch: int, length: int, heads: int, window: int | None) -> None:
    problem = AttentionProblem("cuda", batch, length, heads, heads, 128, (window,))
    label = f"B {batch}, T {length}, H {heads}, window {window or 'none'}"
    q, k, v = (
        torch.randn(batch, length, heads, 128, device="cuda", dtype=torch.bfloat16).requires_grad_()
        for _ in "qkv"
    )
    upstream = torch.randn_like(q)
    scale = 128**-0.5
    backend = loaded("attention", "fa3", problem)
    if backend is not None:
        from flash_attn.cute.interface import flash_attn_func

        seen = (None, None) if window is None else (window, 0)

        def bare() -> Tensor:
            return flash_attn_func(q, k, v, softmax_scale=scale, causal=True, window_size=seen)[0]

        def ours() -> Tensor:
            return backend.attention(q, k, v, window=window, scale=scale)

        row("fa3 (FA4)", label, (bare, ours), (q, k, v), upstream)
    if window is None:
        backend = loaded("attention", "sdpa", problem)

        def plain() -> Tensor:
            y = torch.nn.functional.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, scale=scale
            )
            return y.transpose(1, 2)

        def through() -> Tensor:
            return backend.attention(q, k, v, window=None, scale=scale)

        row("sdpa", label, (plain, through), (q, k, v), upstream)


def loss(tokens: int, vocab: int, hidden_size: int = 1280) -> None:
    problem = LossProblem("cuda", tokens, hidden_size, vocab, softcap=15.0)
    label = f"N {tokens}, D {hidden_size}, V {vocab}"
    options: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
    hidden = torch.randn(tokens, hidden_size, **options).requires_grad_()
    weight = torch.randn(vocab, hidden_size, **options)
    weight = (weight * LOGIT_DEVIATION * hidden_size**-0.5).requires_grad_()
    targets = torch.randint(vocab, (tokens,), device="cuda")
    backend = loaded("loss", "cce", problem)
    if backend is not None:
        from cut_cross_entropy import linear_cross_entropy

        def cce() -> Tensor:
            return linear_cross_entropy(
                hidden, weight, targets, softcap=15.0, ignore_index=-1, impl="cce"
            )

        row("cce", label, (cce, calling(backend, hidden, weight, targets)), (hidden, weight))
    backend = loaded("loss", "liger", problem)
    if backend is not None:
        from liger_kernel.ops.fused_linear_cross_entropy import (
            LigerFusedLinearCrossEntropyFunction,
        )

        def liger() -> Tensor:
            return LigerFusedLinearCrossEntropyFunction.apply(
                hidden, weight, targets, None, None, -1, 0.0, 0.0, "mean", 15.0
            )[0]

        row("liger", label, (liger, calling(backend, hidden, weight, targets)), (hidden, weight))


def calling(backend: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Callable[[], Tensor]:
    return lambda: backend.linear_cross_entropy(hidden, weight, targets, softcap=15.0)


def loaded(hook: Any, name: str, problem: Any) -> Any:
    """The backend, or None with a line that says why it is left out."""
    from nanochat.errors import UsageError

    registry = discover()
    _, target = choose_device(registry, "cuda")
    try:
        backend = choose(registry, hook, name, target, problem).backend
    except UsageError as error:
        print(f"| {name} | left out: {error} |")
        return None
    backend.load()
    return backend


def row(
    name: str,
    label: str,
    pair: Pair,
    leaves: tuple[Tensor, ...],
    upstream: Tensor | None = None,
) -> None:
    times: tuple[list[float], list[float]] = ([], [])
    for span in range(SPANS + 1):
        for call, kept in zip(pair, times, strict=True):
            spent = timed(call, leaves, upstream)
            if span:  # the first compiles
                kept.append(spent)
    bare, ours = (statistics.median(kept) for kept in times)
    print(
        f"| {name} | {label} | {bare:.3f} ms | {ours:.3f} ms | {ours / bare:.3f} "
        f"| {1e3 * (ours - bare):+.0f} us |",
        flush=True,
    )


def timed(call: Callable[[], Tensor], leaves: tuple[Tensor, ...], upstream: Tensor | None) -> float:
    """Milliseconds of one of several calls in a row."""
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(CALLS):
        for leaf in leaves:
            leaf.grad = None
        call().backward(upstream)
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / CALLS


if __name__ == "__main__":
    main()
