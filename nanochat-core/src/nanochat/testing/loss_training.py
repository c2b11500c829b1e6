"""Checks of what training asks of a loss beyond its value: gradients of all kinds, compiling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from nanochat.backend import LossProblem, Reduction
from nanochat.testing.contract import Case, Measured, Subject
from nanochat.testing.loss import REDUCTIONS, Loss, case, forward_and_gradient, inputs, loss_of
from nanochat.testing.numerics import compare, same
from nanochat.testing.operators import compiled, deterministic, opcheck
from nanochat.testing.samples import sample


def gradient_of_one_factor(subject: Subject) -> Iterator[Case]:
    """Only hidden, or only the weight, needs a gradient."""
    for wanted in ("hidden", "weight"):
        for reduction in REDUCTIONS:
            label = f"{wanted} alone, {reduction}"
            yield case(subject, label, {}, wanted=(wanted,), reduction=reduction)


def gradient_scale(subject: Subject) -> Iterator[Case]:
    """What multiplies the loss multiplies the gradients: accumulation, loss scaling."""
    for factor in (3.0, 0.125, -1.0):
        for reduction in ("mean", "sum"):
            label = f"{factor} times the {reduction}"
            yield case(subject, label, {}, factor=factor, reduction=reduction)


def second_backward(subject: Subject) -> Iterator[Case]:
    """A second backward pass over a retained graph finds the same gradients."""
    for reduction in REDUCTIONS:
        for softcap in (None, 15.0):
            problem = sample("loss", subject.kind, subject.dtype, softcap=softcap)

            def verify(problem: LossProblem = problem, reduction: str = reduction) -> None:
                hidden, weight, targets = inputs(subject, problem)
                both = [x.requires_grad_() for x in (hidden, weight)]
                y = loss_of(subject)(
                    *both, targets, softcap=problem.softcap, reduction=reduction
                ).sum()
                y = y * 0.5
                first = torch.autograd.grad(y, both, retain_graph=True)
                exact = [g.detach().double().cpu() for g in first]
                for g in first:
                    g.zero_()  # what is done to the first result must not reach the second
                second = torch.autograd.grad(y, both)
                for name, x, right in zip(("hidden", "weight"), second, exact, strict=True):
                    compare(subject, f"the second gradient of {name}", x, right, right, share=1.0)

            yield Case(f"{reduction}, softcap {softcap}", problem, verify)


def inputs_are_kept(subject: Subject) -> Iterator[Case]:
    """Hidden states, weights and targets are left as they were."""
    for reduction in REDUCTIONS:
        problem = sample("loss", subject.kind, subject.dtype, softcap=15.0)

        def verify(problem: LossProblem = problem, reduction: str = reduction) -> None:
            given = inputs(subject, problem)
            kept = [x.clone() for x in given]
            options: dict[str, Any] = {"softcap": 15.0, "reduction": reduction}
            with torch.no_grad():
                loss_of(subject)(*given, **options)
            for name, x, before in zip(given._fields, given, kept, strict=True):
                same(f"{name} after a forward pass without gradients", x, before)
            given.hidden.requires_grad_()
            given.weight.requires_grad_()
            loss_of(subject)(*given, **options).sum().backward()
            for name, x, before in zip(given._fields, given, kept, strict=True):
                same(f"{name} after a training pass", x.detach(), before)

        yield Case(reduction, problem, verify)


def repeats_itself(subject: Subject) -> Iterator[Case]:
    """With the capability `deterministic`: two runs agree to the last bit."""
    deterministic(subject)
    for reduction in REDUCTIONS:
        problem = sample("loss", subject.kind, subject.dtype, tokens=1025)

        def run(problem: LossProblem = problem, reduction: str = reduction) -> list[Tensor]:
            hidden, weight, targets = inputs(subject, problem)
            both = [hidden.requires_grad_(), weight.requires_grad_()]
            y = loss_of(subject)(*both, targets, reduction=reduction)
            return [y.detach(), *torch.autograd.grad(y.sum(), both)]

        def verify(run: Callable[[], list[Tensor]] = run) -> None:
            names = ("the loss", "the gradient of hidden", "the gradient of weight")
            for name, one, other in zip(names, run(), run(), strict=True):
                same(name, one, other)

        yield Case(reduction, problem, verify)


def _head(loss: Loss) -> Loss:
    """The loss with work around it. Powers of two change no digit, and give something to fuse."""

    def head(
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        *,
        softcap: float | None,
        ignore_index: int,
        reduction: Reduction,
    ) -> Tensor:
        return loss(
            hidden * 2,
            weight / 2,
            targets,
            softcap=softcap,
            ignore_index=ignore_index,
            reduction=reduction,
        )

    return head


def compiles_whole(subject: Subject) -> Iterator[Case]:
    """Within torch.compile(fullgraph=True): as exact as without, ignored rows too."""
    for reduction, softcap in (("mean", None), ("mean", 15.0), ("none", 15.0)):
        problem = sample("loss", subject.kind, subject.dtype, softcap=softcap)

        def verify(problem: LossProblem = problem, reduction: str = reduction) -> Measured:
            whole = compiled(_head(loss_of(subject)), subject.device)
            return forward_and_gradient(subject, problem, reduction=reduction, loss=whole)

        yield Case(f"{reduction}, softcap {softcap}", problem, verify)


def operators(subject: Subject) -> Iterator[Case]:
    """torch.library.opcheck of the custom operators that the backend lists."""
    yield from opcheck(subject, sample("loss", subject.kind, subject.dtype))


CHECKS = (
    gradient_of_one_factor,
    gradient_scale,
    second_backward,
    inputs_are_kept,
    repeats_itself,
    compiles_whole,
    operators,
)
