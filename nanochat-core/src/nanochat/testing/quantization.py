"""Checks of quantized linear layers: a model that keeps its parameters and stays close."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nanochat.backend import QuantizationProblem
from nanochat.testing.contract import Case, ConformanceError, Measured, Subject, worst
from nanochat.testing.numerics import same
from nanochat.testing.operators import compiled, opcheck
from nanochat.testing.samples import DTYPES, sample

OUTPUT_BOUND = 0.1
GRADIENT_BOUND = 0.2
"""Relative errors that any format may make; `error_bounds` of a backend states others."""


class Model(nn.Module):
    """Two layers that may be quantized and one that may not, on (tokens, 128)."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(128, 256, bias=False)
        self.block = nn.ModuleDict({"down": nn.Linear(256, 128, bias=False)})
        self.head = nn.Linear(128, 128, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block["down"](torch.relu(self.up(x)).square()))


def may_quantize(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and name != "head"


def model_on(subject: Subject, dtype: str = "") -> Model:
    torch.manual_seed(3)
    return Model().to(subject.device, getattr(torch, dtype or subject.dtype))


def example(subject: Subject, problem: QuantizationProblem) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(problem.tokens, 128, generator=generator)
    return x.to(subject.device, getattr(torch, problem.dtype))


def _prepare(subject: Subject, model: nn.Module) -> int:
    return subject.backend.prepare(model, may_quantize)  # type: ignore[attr-defined]


def _step(subject: Subject, model: nn.Module, x: Tensor, call: Any = None) -> dict[str, Tensor]:
    """One forward and backward pass as in training: the output and every gradient."""
    x = x.detach().clone().requires_grad_()
    model.zero_grad()
    with subject.backend.context():  # type: ignore[attr-defined]
        y = (call or model)(x)
    y.float().square().mean().backward()
    found = {"the output": y.detach()}
    for name, tensor in (("the input", x), *model.named_parameters()):
        if tensor.grad is None:
            raise ConformanceError(f"the gradient of {name} is None")
        found[f"the gradient of {name}"] = tensor.grad.clone()
    return found


def _close(
    subject: Subject, got: dict[str, Tensor], exact: dict[str, Tensor], bound: float | None = None
) -> Measured:
    found = []
    for what, right in exact.items():
        kind = "gradient" if "gradient" in what else "output"
        default = GRADIENT_BOUND if kind == "gradient" else OUTPUT_BOUND
        allowed = bound or subject.stated(kind) or default
        mine = got[what]
        if mine.shape != right.shape or mine.dtype != right.dtype:
            raise ConformanceError(f"{what} is {mine.dtype} {tuple(mine.shape)} when quantized")
        error = _distance(mine, right)
        if not error <= allowed:
            raise ConformanceError(
                f"{what} is {error:.1e} from full precision, {allowed:.1e} is allowed"
            )
        found.append(Measured(f"error of {what}", error, allowed))
    return worst(found)


def _distance(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact.double()).norm() / exact.double().norm())


def _case(
    subject: Subject, label: str, verify: Callable[[QuantizationProblem], Any], **changes: Any
) -> Case:
    problem = sample("quantization", subject.kind, changes.pop("dtype", subject.dtype), **changes)
    return Case(label, problem, lambda: verify(problem))


def parameters_are_kept(subject: Subject) -> Iterator[Case]:
    """prepare() keeps the names, shapes, dtypes and values of parameters, and the state dict."""

    def verify(_: QuantizationProblem) -> None:
        model = model_on(subject)
        objects = dict(model.named_parameters())
        before = copy.deepcopy(model.state_dict())
        _prepare(subject, model)
        after = model.state_dict()
        if list(after) != list(before):
            changed = sorted(set(after) ^ set(before)) or "the order"
            raise ConformanceError(f"the state dict differs in {changed}")
        if dict(model.named_parameters()).keys() != objects.keys():
            raise ConformanceError("the names of the parameters have changed")
        for name, tensor in before.items():
            if (after[name].shape, after[name].dtype) != (tensor.shape, tensor.dtype):
                raise ConformanceError(f"{name} has another shape or dtype")
            same(name, after[name], tensor)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad != objects[name].requires_grad:
                raise ConformanceError(f"{name} no longer requires a gradient")

    yield _case(subject, "", verify)


def only_what_is_included(subject: Subject) -> Iterator[Case]:
    """include() is asked about each layer, what it refuses is left alone, the count is right."""

    def verify(_: QuantizationProblem) -> None:
        model = model_on(subject)
        head = model.head
        layers = [model.up, model.block["down"]]
        swapped = _prepare(subject, model)
        now = [model.up, model.block["down"]]
        if model.head is not head:
            raise ConformanceError("it swapped a layer that include() refused")
        changed = sum(
            a is not b or type(a) is not nn.Linear for a, b in zip(layers, now, strict=True)
        )
        if swapped != changed:
            raise ConformanceError(f"it says that it swapped {swapped} layers, {changed} changed")
        if swapped not in (0, len(layers)):
            raise ConformanceError(f"it swapped {swapped} of {len(layers)} layers")
        model = model_on(subject)
        layer = model.up
        none = subject.backend.prepare(model, lambda name, module: False)  # type: ignore[attr-defined]
        if none != 0 or model.up is not layer:
            raise ConformanceError("it swapped layers though include() refused them all")

    yield _case(subject, "", verify)


def close_to_full_precision(subject: Subject) -> Iterator[Case]:
    """Output and gradients within the stated bound, in every dtype that is not refused."""
    for dtype in DTYPES:

        def verify(problem: QuantizationProblem) -> Measured:
            model, x = model_on(subject, problem.dtype), example(subject, problem)
            exact = _step(subject, model, x)
            _prepare(subject, model)
            return _close(subject, _step(subject, model, x), exact)

        yield _case(subject, dtype, verify, dtype=dtype)


def row_counts(subject: Subject) -> Iterator[Case]:
    """Numbers of rows that are not refused, and inputs of three dimensions."""
    for tokens in (16, 17, 48, 200):

        def verify(problem: QuantizationProblem) -> Measured:
            model, x = model_on(subject), example(subject, problem)
            exact = _step(subject, model, x)
            _prepare(subject, model)
            return _close(subject, _step(subject, model, x), exact)

        yield _case(subject, f"{tokens} rows", verify, tokens=tokens)

    def in_three(problem: QuantizationProblem) -> Measured:
        model, x = model_on(subject), example(subject, problem).view(4, -1, 128)
        exact = _step(subject, model, x)
        _prepare(subject, model)
        return _close(subject, _step(subject, model, x), exact)

    yield _case(subject, "(4, 16, 128)", in_three)


def full_precision_is_exact(subject: Subject) -> Iterator[Case]:
    """Within full_precision() the model is what it was, after it quantized again."""

    def verify(problem: QuantizationProblem) -> None:
        model, x = model_on(subject), example(subject, problem)
        full = subject.backend.full_precision  # type: ignore[attr-defined]
        with torch.no_grad():
            exact = model(x)
            _prepare(subject, model)
            with subject.backend.context():  # type: ignore[attr-defined]
                quantized = model(x)
            with full(model):
                same("the output within full_precision()", model(x), exact)
                with full(model):
                    same("the output within two full_precision()", model(x), exact)
                same("the output after an inner full_precision()", model(x), exact)
            with subject.backend.context():  # type: ignore[attr-defined]
                again = model(x)
        _close(subject, {"the output": again}, {"the output": quantized}, bound=1e-2)
        if torch.equal(again, exact) and not torch.equal(quantized, exact):
            raise ConformanceError("after full_precision() the model stays in full precision")

    yield _case(subject, "", verify)


def trains_its_masters(subject: Subject) -> Iterator[Case]:
    """After a step of SGD on the parameters the model computes with the new ones."""

    def verify(problem: QuantizationProblem) -> Measured:
        plain, model, x = model_on(subject), model_on(subject), example(subject, problem)
        _prepare(subject, model)
        _step(subject, model, x)
        with torch.no_grad():
            for other, parameter in zip(plain.parameters(), model.parameters(), strict=True):
                parameter.mul_(-2)
                other.mul_(-2)
        return _close(subject, _step(subject, model, x), _step(subject, plain, x))

    yield _case(subject, "", verify)


def compiles_whole(subject: Subject) -> Iterator[Case]:
    """Within torch.compile(fullgraph=True): no graph break, and as close to full precision.

    A compiler keeps more digits between operations, so numbers on the edge between two narrow ones
    round to the other: the results differ by about as much as each is off.
    """

    def verify(problem: QuantizationProblem) -> Measured:
        model, x = model_on(subject), example(subject, problem)
        exact = _step(subject, model_on(subject), x)
        _prepare(subject, model)
        eager = _step(subject, model, x)
        whole = _step(subject, model, x, compiled(model, subject.device))
        found = []
        for what, right in exact.items():
            uncompiled = _distance(eager[what], right)
            allowed = 1.25 * uncompiled + 1e-2
            error = _distance(whole[what], right)
            if not error <= allowed:
                raise ConformanceError(
                    f"{what} is {error:.1e} from full precision when compiled, "
                    f"{uncompiled:.1e} when not"
                )
            found.append(Measured(f"error of {what}", error, allowed))
        return worst(found)

    yield _case(subject, "", verify, compiled=True)


def operators(subject: Subject) -> Iterator[Case]:
    """torch.library.opcheck of the custom operators that the backend lists."""
    yield from opcheck(subject, sample("quantization", subject.kind, subject.dtype))


CHECKS = (
    parameters_are_kept,
    only_what_is_included,
    close_to_full_precision,
    row_counts,
    full_precision_is_exact,
    trains_its_masters,
    compiles_whole,
    operators,
)
