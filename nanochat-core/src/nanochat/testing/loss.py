"""Checks of linear cross-entropy with gradients, against the formula in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.backend import LossProblem
from nanochat.testing.contract import Case, ConformanceError, Measured, Subject, worst
from nanochat.testing.numerics import compare
from nanochat.testing.operators import claims
from nanochat.testing.samples import DTYPES, sample

Loss = Callable[..., Tensor]

REDUCTIONS = ("mean", "sum", "none")
IGNORED = -1


class Inputs(NamedTuple):
    """hidden (N, D), weight (V, D) and targets (N,)."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor


def inputs(
    subject: Subject, problem: LossProblem, ignored: float = 0.2, ignore_index: int = IGNORED
) -> Inputs:
    """Seeded by the problem's shape; about that part of the rows is ignored.

    Logits have a standard deviation of 3, or of the softcap where there is one, so that it acts.
    The first and the last class are among the targets.
    """
    p = problem
    generator = torch.Generator().manual_seed(p.tokens * 1000 + p.vocab)
    dtype = getattr(torch, p.dtype)
    hidden = torch.randn(p.tokens, p.hidden, generator=generator)
    size = (p.softcap or 3.0) / p.hidden**0.5
    weight = torch.randn(p.vocab, p.hidden, generator=generator) * size
    targets = torch.randint(0, p.vocab, (p.tokens,), generator=generator)
    targets[0], targets[-1] = 0, p.vocab - 1
    drop = torch.rand(p.tokens, generator=generator) < ignored
    if 0 < ignored < 1:
        drop[0] = drop[-1] = False
    targets[drop] = ignore_index
    return Inputs(
        hidden.to(subject.device, dtype),
        weight.to(subject.device, dtype),
        targets.to(subject.device),
    )


def reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    """The formula: the product in the dtype of its factors, the rest at least in float32."""
    logits = F.linear(hidden, weight)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction=reduction)


def forward_and_gradient(
    subject: Subject,
    problem: LossProblem,
    *,
    reduction: str = "mean",
    ignored: float = 0.2,
    ignore_index: int = IGNORED,
    wanted: tuple[str, ...] = ("hidden", "weight"),
    factor: float = 1.0,
    layout: Callable[[Tensor], Tensor] | None = None,
    loss: Loss | None = None,
) -> Measured:
    """The loss, and the gradients of `factor` times it, against float64."""
    loss = loss or loss_of(subject)
    hidden, weight, targets = inputs(subject, problem, ignored, ignore_index)
    factors = {
        name: (layout(x) if layout else x).detach().requires_grad_(name in wanted)
        for name, x in (("hidden", hidden), ("weight", weight))
    }
    options: dict[str, Any] = {"ignore_index": ignore_index, "reduction": reduction}
    y = loss(factors["hidden"], factors["weight"], targets, softcap=problem.softcap, **options)
    if y.dtype != torch.float32:
        raise ConformanceError(f"the loss is {y.dtype}, not float32")
    # Rows that count differently: a gradient that forgets what comes after the loss is seen.
    outer = torch.linspace(0.5, 1.5, problem.tokens) if reduction == "none" else torch.ones(())
    outer = outer * factor

    def formula(
        device: str | torch.device, dtype: torch.dtype
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        both = [x.detach().to(device, dtype).requires_grad_() for x in factors.values()]
        out = reference(
            both[0], both[1], targets.to(device), problem.softcap, ignore_index, reduction
        )
        return out, torch.autograd.grad(out, both, outer.to(device, out.dtype))

    exact, exact_grads = formula("cpu", torch.float64)
    plain, plain_grads = formula(subject.device, hidden.dtype)
    found = [compare(subject, "the loss", y, exact, plain, dtype=hidden.dtype, share=1.0)]
    (y * outer.to(y.device)).sum().backward()
    for (name, x), right, theirs in zip(factors.items(), exact_grads, plain_grads, strict=True):
        if name in wanted:
            what = f"the gradient of {name}"
            if x.grad is not None and x.grad.dtype != x.dtype:
                raise ConformanceError(f"{what} is {x.grad.dtype}, {name} is {x.dtype}")
            found.append(compare(subject, what, x.grad, right, theirs, share=1.0))
        elif x.grad is not None:
            raise ConformanceError(f"{name} needs no gradient and has got one")
    return worst(found)


def loss_of(subject: Subject) -> Loss:
    return subject.backend.linear_cross_entropy  # type: ignore[attr-defined]


def case(subject: Subject, label: str, changes: dict[str, Any], **options: Any) -> Case:
    problem = sample("loss", subject.kind, changes.pop("dtype", subject.dtype), **changes)
    return Case(label, problem, lambda: forward_and_gradient(subject, problem, **options))


def capabilities(subject: Subject) -> Iterator[Case]:
    """The word `softcap` agrees with what supports() answers."""
    yield from claims(subject, {"softcap": {"softcap": 15.0}})


def reductions(subject: Subject) -> Iterator[Case]:
    """Mean, sum and none, with and without a softcap."""
    for reduction in REDUCTIONS:
        for softcap in (None, 15.0):
            label = f"{reduction}, softcap {softcap}"
            yield case(subject, label, {"softcap": softcap}, reduction=reduction)


def softcaps(subject: Subject) -> Iterator[Case]:
    """Caps from one that flattens nearly everything to one that hardly acts."""
    for softcap in (1.0, 15.0, 30.0, 1000.0):
        # Logits are as large as the cap, except for the last, which is to change nothing.
        yield case(subject, f"softcap {softcap}", {"softcap": softcap}, reduction="sum")


def ignored_rows(subject: Subject) -> Iterator[Case]:
    """Rows whose target is ignore_index count neither in the sum nor in the mean."""
    for reduction in REDUCTIONS:
        for ignore_index, ignored in ((-1, 0.3), (-100, 0.3), (-1, 0.95), (-1, 0.0), (5, 0.3)):
            yield case(
                subject,
                f"{reduction}, {ignored:.0%} of rows at {ignore_index}",
                {},
                reduction=reduction,
                ignored=ignored,
                ignore_index=ignore_index,
            )


def all_rows_ignored(subject: Subject) -> Iterator[Case]:
    """Without a row that counts: the sum is 0, the mean NaN, and gradients of a sum are 0."""
    problem = sample("loss", subject.kind, subject.dtype)
    for reduction in REDUCTIONS:

        def verify(reduction: str = reduction) -> None:
            hidden, weight, targets = inputs(subject, problem, ignored=1.0)
            hidden, weight = (x.requires_grad_() for x in (hidden, weight))
            targets = torch.full_like(targets, IGNORED)
            y = loss_of(subject)(hidden, weight, targets, ignore_index=-1, reduction=reduction)
            if reduction == "mean":
                if not math.isnan(y.item()):
                    raise ConformanceError(f"the mean over no rows is {y.item()}, not NaN")
                return
            if y.any():
                raise ConformanceError(f"the loss is {y.detach().abs().max().item()}, not 0")
            y.sum().backward()
            for name, x in (("hidden", hidden), ("weight", weight)):
                if x.grad is None or not x.grad.isfinite().all() or x.grad.any():
                    raise ConformanceError(f"the gradient of {name} is not 0 everywhere")

        yield Case(reduction, problem, verify)


def shapes(subject: Subject) -> Iterator[Case]:
    """Numbers of rows and of classes that are no multiple of a block."""
    for tokens, vocab in ((1, 512), (2, 17), (127, 129), (129, 1000), (300, 257), (1025, 333)):
        for reduction in ("mean", "none"):
            changes: dict[str, Any] = {"tokens": tokens, "vocab": vocab}
            label = f"{tokens} rows, {vocab} classes, {reduction}"
            yield case(subject, label, changes, reduction=reduction, ignored=0.0)
    for hidden in (16, 96, 128, 320):
        yield case(subject, f"hidden {hidden}", {"hidden": hidden})


def dtypes(subject: Subject) -> Iterator[Case]:
    """Every dtype that is not refused, as exact as plain torch in it."""
    for dtype in DTYPES:
        for softcap in (None, 15.0):
            yield case(subject, f"{dtype}, softcap {softcap}", {"dtype": dtype, "softcap": softcap})


def layouts(subject: Subject) -> Iterator[Case]:
    """Inputs of any strides."""
    for label, layout in (
        ("transposed", lambda x: x.T.contiguous().T),
        ("every second number", lambda x: torch.stack((x, -x), -1).flatten(-2)[:, ::2]),
        ("every second row", lambda x: torch.cat((x, -x), 1).view(-1, x.size(1))[::2]),
    ):
        for reduction in ("mean", "none"):
            yield case(subject, f"{label}, {reduction}", {}, layout=layout, reduction=reduction)


def large_logits(subject: Subject) -> Iterator[Case]:
    """Logits of some hundreds: exp() of them overflows float32."""
    for softcap in (None, 15.0):
        problem = sample("loss", subject.kind, subject.dtype, softcap=softcap)

        def verify(problem: LossProblem = problem) -> Measured:
            def loss(hidden: Tensor, weight: Tensor, *args: Any, **options: Any) -> Tensor:
                return loss_of(subject)(hidden * 64, weight, *args, **options)

            def formula(both: list[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
                y = reference(both[0] * 64, both[1], targets, problem.softcap, IGNORED, "mean")
                return y, torch.autograd.grad(y, both[0])[0]

            hidden, weight, targets = inputs(subject, problem)
            x = hidden.requires_grad_()
            y = loss(x, weight, targets, softcap=problem.softcap)
            y.backward()
            wide = [t.detach().cpu().double().requires_grad_() for t in (hidden, weight)]
            narrow = [t.detach().requires_grad_() for t in (hidden, weight)]
            exact, exact_grad = formula(wide, targets.cpu())
            plain, plain_grad = formula(narrow, targets)
            what = "the gradient of hidden"
            return worst(
                (
                    compare(subject, "the loss", y, exact, plain, dtype=hidden.dtype, share=1.0),
                    compare(subject, what, x.grad, exact_grad, plain_grad, share=1.0),
                )
            )

        yield Case(f"softcap {softcap}", problem, verify)


def without_gradients(subject: Subject) -> Iterator[Case]:
    """Evaluation under no_grad: the same loss, and nothing kept for a backward pass."""
    problem = sample("loss", subject.kind, subject.dtype, softcap=15.0)
    for reduction in REDUCTIONS:

        def verify(reduction: str = reduction) -> Measured:
            hidden, weight, targets = inputs(subject, problem)
            weight.requires_grad_()
            with torch.no_grad():
                y = loss_of(subject)(hidden, weight, targets, softcap=15.0, reduction=reduction)
            if y.requires_grad:
                raise ConformanceError("the loss requires a gradient under no_grad")
            wide = [x.detach().cpu().double() for x in (hidden, weight)]
            exact = reference(wide[0], wide[1], targets.cpu(), 15.0, IGNORED, reduction)
            plain = reference(hidden, weight.detach(), targets, 15.0, IGNORED, reduction)
            return compare(subject, "the loss", y, exact, plain, dtype=hidden.dtype, share=1.0)

        yield Case(reduction, problem, verify)


CHECKS = (
    capabilities,
    reductions,
    softcaps,
    ignored_rows,
    all_rows_ignored,
    shapes,
    dtypes,
    layouts,
    large_logits,
    without_gradients,
)
