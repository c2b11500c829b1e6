"""Checks of causal self-attention with gradients, against softmax attention in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from nanochat.backend import AttentionProblem
from nanochat.testing.contract import Case, ConformanceError, Measured, Subject, worst
from nanochat.testing.numerics import compare, row_size, same
from nanochat.testing.operators import claims, compiled, deterministic, opcheck
from nanochat.testing.samples import DTYPES, sample

Attention = Callable[..., Tensor]

LAYOUTS = ("contiguous", "slices of one product", "heads first", "every second number")


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None,
    scale: float,
    first: int = 0,
    documents: Tensor | None = None,
) -> Tensor:
    """The formula, in the dtype of its inputs. `first` is the position of the first query."""
    group = q.size(2) // k.size(2)
    k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * scale
    query = torch.arange(first, first + q.size(1), device=q.device)
    distance = query[:, None] - torch.arange(k.size(1), device=q.device)
    seen = distance >= 0 if window is None else (distance >= 0) & (distance <= window)
    if documents is not None:
        documents = documents.to(q.device)
        seen = seen & (documents[:, None, :, None] == documents[:, None, None, :])
    weights = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1)
    return torch.einsum("bhij,bjhd->bihd", weights, v)


def leaves(subject: Subject, problem: AttentionProblem, layout: str = LAYOUTS[0]) -> list[Tensor]:
    """q, k and v (B, T, H or H_kv, D), the same for the same problem in every layout."""
    p = problem
    generator = torch.Generator().manual_seed(p.sequence_len * 100 + p.heads * 10 + p.head_dim)
    heads = (p.heads, p.kv_heads, p.kv_heads)
    shape = (p.batch, p.sequence_len, sum(heads), p.head_dim)
    product = torch.randn(shape, generator=generator)
    product = product.to(subject.device, getattr(torch, p.dtype))
    parts = list(product.split(heads, dim=2))
    if layout == "slices of one product":
        return parts
    if layout == "heads first":
        return [x.transpose(1, 2).contiguous().transpose(1, 2) for x in parts]
    if layout == "every second number":
        return [torch.stack((x, -x), dim=-1).flatten(-2)[..., ::2] for x in parts]
    return [x.contiguous() for x in parts]


def gradient(subject: Subject, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(like.shape, generator=generator).to(subject.device, like.dtype)


def forward_and_gradient(
    subject: Subject,
    problem: AttentionProblem,
    *,
    layout: str = LAYOUTS[0],
    scale: float | None = None,
    wanted: str = "qkv",
    attention: Attention | None = None,
    documents: Tensor | None = None,
) -> Measured:
    """Output and gradients of the problem's first window against float64."""
    attention = attention or attention_of(subject)
    window = problem.windows[0]
    scale = problem.head_dim**-0.5 if scale is None else scale
    qkv = [
        x.detach().requires_grad_(name in wanted)
        for name, x in zip("qkv", leaves(subject, problem, layout), strict=True)
    ]
    apart = {} if documents is None else {"documents": documents.to(subject.device)}
    y = attention(*qkv, window=window, scale=scale, **apart)
    if y.dtype != qkv[0].dtype:
        raise ConformanceError(f"the output is {y.dtype}, its queries are {qkv[0].dtype}")
    grad = gradient(subject, y)
    if layout != LAYOUTS[0]:
        grad = grad.transpose(1, 2).contiguous().transpose(1, 2)

    def formula(
        device: str | torch.device, dtype: torch.dtype
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        q, k, v = inputs = [x.detach().to(device, dtype).requires_grad_() for x in qkv]
        out = reference(q, k, v, window, scale, documents=documents)
        return out, torch.autograd.grad(out, inputs, grad.to(device, dtype))

    exact, exact_grads = formula("cpu", torch.float64)
    plain, plain_grads = formula(subject.device, qkv[0].dtype)
    found = [compare(subject, "the output", y, exact, plain)]
    y.backward(grad)
    unit = row_size(exact_grads[2])
    for name, x, right, theirs in zip("qkv", qkv, exact_grads, plain_grads, strict=True):
        if name in wanted:
            what = f"the gradient of {name}"
            if x.grad is not None and x.grad.dtype != x.dtype:
                raise ConformanceError(f"{what} is {x.grad.dtype}, {name} is {x.dtype}")
            # A query that sees one key has no gradient: its size is that of the values' gradient.
            found.append(
                compare(subject, what, x.grad, right, theirs, unit=0.0 if name == "v" else unit)
            )
        elif x.grad is not None:
            raise ConformanceError(f"{name} needs no gradient and has got one")
    return worst(found)


def attention_of(subject: Subject) -> Attention:
    return subject.backend.attention  # type: ignore[attr-defined]


def _case(subject: Subject, label: str, changes: dict[str, Any], **options: Any) -> Case:
    problem = sample("attention", subject.kind, changes.pop("dtype", subject.dtype), **changes)
    return Case(label, problem, lambda: forward_and_gradient(subject, problem, **options))


def capabilities(subject: Subject) -> Iterator[Case]:
    """The words `window` and `gqa` agree with what supports() answers."""
    yield from claims(subject, {"window": {"windows": (40,)}, "gqa": {"kv_heads": 2}})


def head_sizes(subject: Subject) -> Iterator[Case]:
    """Heads of 16 to 256, forward and gradient."""
    for size in (16, 32, 64, 80, 96, 128, 256):
        yield _case(subject, f"head_dim {size}", {"head_dim": size, "batch": 1})


def grouped_queries(subject: Subject) -> Iterator[Case]:
    """Several query heads a key head, also when their number is no power of two."""
    for heads, kv_heads in ((4, 2), (4, 1), (6, 3), (6, 2), (5, 1)):
        label = f"{heads} heads on {kv_heads}"
        yield _case(subject, label, {"heads": heads, "kv_heads": kv_heads})
        changes = {"heads": heads, "kv_heads": kv_heads, "windows": (33,)}
        yield _case(subject, f"{label}, window 33", changes)


def windows(subject: Subject) -> Iterator[Case]:
    """Windows of 0, 1, at the edges of blocks, and longer than the sequence."""
    for window in (0, 1, 31, 63, 64, 65, 127, 128, 129, 298, 299, 300, 1000):
        changes = {"windows": (window,), "sequence_len": 300, "batch": 1, "heads": 2, "kv_heads": 2}
        yield _case(subject, f"window {window} of 300", changes)


def lengths(subject: Subject) -> Iterator[Case]:
    """Sequences that are no multiple of a block, down to one position."""
    for length in (1, 2, 3, 17, 63, 64, 65, 127, 128, 129, 257):
        for window in (None, 40):
            changes = {"sequence_len": length, "windows": (window,), "heads": 2, "kv_heads": 1}
            yield _case(subject, f"{length} positions, window {window}", changes)


def layouts(subject: Subject) -> Iterator[Case]:
    """Inputs and gradients of any strides."""
    for layout in LAYOUTS[1:]:
        for window in (None, 40):
            changes = {"windows": (window,), "kv_heads": 2}
            yield _case(subject, f"{layout}, window {window}", changes, layout=layout)


def scales(subject: Subject) -> Iterator[Case]:
    """A scale other than 1 / sqrt(head_dim)."""
    for scale in (0.05, 0.3):
        yield _case(subject, f"scale {scale}", {}, scale=scale)


def dtypes(subject: Subject) -> Iterator[Case]:
    """Every dtype that is not refused, as exact as plain torch in it."""
    for dtype in DTYPES:
        for window in (None, 40):
            changes = {"dtype": dtype, "kv_heads": 2, "windows": (window,)}
            yield _case(subject, f"{dtype}, window {window}", changes)


def single_gradients(subject: Subject) -> Iterator[Case]:
    """Only one of q, k and v needs a gradient."""
    for wanted in "qkv":
        yield _case(subject, f"{wanted} alone", {"windows": (40,)}, wanted=wanted)


def second_backward(subject: Subject) -> Iterator[Case]:
    """A second backward pass over a retained graph finds the same gradients."""
    problem = sample("attention", subject.kind, subject.dtype)

    def verify() -> None:
        qkv = [x.requires_grad_() for x in leaves(subject, problem)]
        y = attention_of(subject)(*qkv, window=None, scale=0.125)
        grad = gradient(subject, y)
        first = torch.autograd.grad(y, qkv, grad, retain_graph=True)
        exact = [g.detach().double().cpu() for g in first]
        for g in first:
            g.zero_()  # what is done to the first result must not reach the second
        second = torch.autograd.grad(y, qkv, grad)
        for name, x, right in zip("qkv", second, exact, strict=True):
            what = f"the second gradient of {name}"
            compare(subject, what, x, right, right, unit=row_size(exact[2]))

    yield Case("", problem, verify)


def inputs_are_kept(subject: Subject) -> Iterator[Case]:
    """Queries, keys, values and the gradient of the output are left as they were."""
    for window in (None, 40):
        problem = sample("attention", subject.kind, subject.dtype, windows=(window,))

        def verify(problem: AttentionProblem = problem, window: int | None = window) -> None:
            attention = attention_of(subject)
            qkv = leaves(subject, problem)
            kept = [x.clone() for x in qkv]
            with torch.no_grad():
                attention(*qkv, window=window, scale=0.125)
            for name, x, before in zip("qkv", qkv, kept, strict=True):
                same(f"{name} after a forward pass without gradients", x, before)
            qkv = [x.requires_grad_() for x in qkv]
            y = attention(*qkv, window=window, scale=0.125)
            grad = gradient(subject, y)
            grad_before = grad.clone()
            y.backward(grad)
            for name, x, before in zip("qkv", qkv, kept, strict=True):
                same(f"{name} after a training pass", x.detach(), before)
            same("the gradient of the output", grad, grad_before)

        yield Case(f"window {window}", problem, verify)


def repeats_itself(subject: Subject) -> Iterator[Case]:
    """With the capability `deterministic`: two runs agree to the last bit."""
    deterministic(subject)
    for window in (None, 40):
        changes: dict[str, Any] = {"windows": (window,), "kv_heads": 2, "sequence_len": 300}
        problem = sample("attention", subject.kind, subject.dtype, **changes)

        def run(problem: AttentionProblem = problem, window: int | None = window) -> list[Tensor]:
            qkv = [x.requires_grad_() for x in leaves(subject, problem)]
            y = attention_of(subject)(*qkv, window=window, scale=0.125)
            return [y.detach(), *torch.autograd.grad(y, qkv, gradient(subject, y))]

        def verify(run: Callable[[], list[Tensor]] = run) -> None:
            names = ("the output", *(f"the gradient of {x}" for x in "qkv"))
            for name, one, other in zip(names, run(), run(), strict=True):
                same(name, one, other)

        yield Case(f"window {window}", problem, verify)


def fused_layer(attention: Attention) -> Attention:
    """Attention with work around it. Powers of two change no digit, and give something to fuse."""

    def layer(
        q: Tensor, k: Tensor, v: Tensor, *, window: int | None, scale: float, **apart: Tensor
    ) -> Tensor:
        return attention(q * 2, k, v, window=window, scale=scale / 2, **apart)

    return layer


def compiles_whole(subject: Subject) -> Iterator[Case]:
    """Within torch.compile(fullgraph=True): no graph break, and as exact as without."""
    for window in (None, 40):
        problem = sample(
            "attention", subject.kind, subject.dtype, windows=(window,), kv_heads=2, batch=1
        )

        def verify(problem: AttentionProblem = problem) -> Measured:
            whole = compiled(fused_layer(attention_of(subject)), subject.device)
            return forward_and_gradient(subject, problem, attention=whole)

        yield Case(f"window {window}", problem, verify)


def operators(subject: Subject) -> Iterator[Case]:
    """torch.library.opcheck of the custom operators that the backend lists."""
    yield from opcheck(subject, sample("attention", subject.kind, subject.dtype))


CHECKS = (
    capabilities,
    head_sizes,
    grouped_queries,
    windows,
    lengths,
    layouts,
    scales,
    dtypes,
    single_gradients,
    second_backward,
    inputs_are_kept,
    repeats_itself,
    compiles_whole,
    operators,
)
