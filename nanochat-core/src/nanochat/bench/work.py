"""What is timed: the kernel of one hook, or a whole step, as three phases over random data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nanochat.backend import (
    AttentionBackend,
    AttentionProblem,
    LossBackend,
    LossProblem,
    QuantizationBackend,
    QuantizationProblem,
)
from nanochat.bench.jobs import DOCUMENT_LENGTH
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.model.layers import Linear
from nanochat.optim import OptimizerSettings, build_optimizer
from nanochat.plan import Plan
from nanochat.runtime import Runtime
from nanochat.train.run import may_quantize

LOGIT_DEVIATION = 2.0
"""Spread of the random logits. A loss that skips small gradients finds few to skip there."""


@dataclass(frozen=True)
class Round:
    """A forward pass, the backward pass of what it returned, and what ends a round.

    The end returns the gradients that it takes away: what nothing holds would not be computed at
    all on a device that records programs.
    `count` is how many times the run does this for each of the others; `flops` is of one round,
    forward and backward.
    """

    forward: Callable[[], Tensor]
    backward: Callable[[Tensor], None]
    update: Callable[[], object]
    flops: float
    count: int = 1
    updates: bool = False
    swapped: int = 0


def attention_round(
    backend: AttentionBackend,
    problem: AttentionProblem,
    window: int | None,
    count: int,
    runtime: Runtime,
    compile: bool,
) -> Round:
    """Attention of one window."""
    heads = (problem.heads, problem.kv_heads, problem.kv_heads)
    q, k, v = (
        torch.randn(
            problem.batch,
            problem.sequence_len,
            number,
            problem.head_dim,
            device=runtime.device,
            dtype=runtime.dtype,
        ).requires_grad_()
        for number in heads
    )
    options: dict[str, Any] = {"window": window, "scale": problem.head_dim**-0.5}
    if problem.documents:
        starts = document_starts(problem.batch, problem.sequence_len, runtime.device)
        options["documents"] = starts.cumsum(dim=1).int()
    upstream = torch.randn_like(q)
    call = _called(lambda: backend.attention(q, k, v, **options), runtime, compile)
    return Round(
        forward=call,
        backward=lambda y: y.backward(upstream),
        update=lambda: _forget(q, k, v),
        flops=attention_flops(problem, window),
        count=count,
    )


def document_starts(batch: int, length: int, device: torch.device) -> Tensor:
    """Where random documents of `DOCUMENT_LENGTH` on average begin, (B, T) bool."""
    starts = torch.rand(batch, length, device=device) < 1 / DOCUMENT_LENGTH
    starts[:, 0] = True
    return starts


def attention_flops(problem: AttentionProblem, window: int | None) -> float:
    """Forward and backward (2.5 times the forward), of the pairs that the window lets be seen."""
    length = problem.sequence_len
    seen = length if window is None else min(window + 1, length)
    pairs = seen * (seen + 1) / 2 + (length - seen) * seen
    return 3.5 * 4 * problem.batch * problem.heads * problem.head_dim * pairs


def loss_round(
    backend: LossBackend, problem: LossProblem, runtime: Runtime, compile: bool
) -> Round:
    """Linear cross-entropy on normalised hidden states, with gradients of both factors."""
    options: dict[str, Any] = {"device": runtime.device, "dtype": runtime.dtype}
    hidden = torch.randn(problem.tokens, problem.hidden, **options).requires_grad_()
    deviation = LOGIT_DEVIATION * problem.hidden**-0.5
    weight = torch.randn(problem.vocab, problem.hidden, **options).mul_(deviation)
    weight.requires_grad_()
    targets = torch.randint(problem.vocab, (problem.tokens,), device=runtime.device)
    call = _called(
        lambda: backend.linear_cross_entropy(hidden, weight, targets, softcap=problem.softcap),
        runtime,
        compile,
    )
    return Round(
        forward=call,
        backward=lambda loss: loss.backward(),
        update=lambda: _forget(hidden, weight),
        flops=6.0 * problem.tokens * problem.hidden * problem.vocab,
    )


def quantization_round(
    backend: QuantizationBackend, problem: QuantizationProblem, runtime: Runtime, compile: bool
) -> Round:
    """Every distinct linear layer of the run, once each."""
    layers = nn.ModuleList(
        Linear(in_features, out_features) for out_features, in_features in problem.layers
    ).to(runtime.device)
    swapped = backend.prepare(layers, lambda name, module: isinstance(module, nn.Linear))
    inputs = [
        torch.randn(
            problem.tokens, in_features, device=runtime.device, dtype=runtime.dtype
        ).requires_grad_()
        for _, in_features in problem.layers
    ]
    # A sum would have a gradient of constant stride 0, which no run has.
    upstream = [
        torch.randn(problem.tokens, out, device=runtime.device, dtype=runtime.dtype)
        for out, _ in problem.layers
    ]

    def total() -> Tensor:
        products = (
            (layer(x) * g).sum(dtype=torch.float32)
            for layer, x, g in zip(layers, inputs, upstream, strict=True)
        )
        return torch.stack(list(products)).sum()

    compiled = _called(total, runtime, compile, layers)

    def forward() -> Tensor:
        with backend.context():
            return compiled()

    return Round(
        forward=forward,
        backward=lambda loss: loss.backward(),
        update=lambda: _forget(*inputs, *layers.parameters()),
        flops=sum(6.0 * problem.tokens * out * into for out, into in problem.layers),
        swapped=swapped,
    )


def step_round(plan: Plan, config: GPTConfig, batch: int, runtime: Runtime, compile: bool) -> Round:
    """A whole training step on one batch of each device, which lies there already."""
    with torch.device("meta"):
        model = GPT(
            config, attention=plan.attention.backend, loss=plan.loss.backend, dtype=runtime.dtype
        )
    runtime.materialize(model)
    optimizer = build_optimizer(model, OptimizerSettings(), runtime, compile=compile)
    quantization = plan.quantization.backend
    swapped = quantization.prepare(model, may_quantize)
    call = runtime.compile_model(model) if compile else runtime.call_model(model)
    shape = (batch * runtime.devices, config.sequence_len)
    rows = torch.randint(config.vocab_size, (2, *shape))
    if config.document_token is not None:
        rows[0][document_starts(*shape, rows.device)] = config.document_token
    tokens, targets = map(runtime.place, rows.unbind())

    def loss_of(tokens: Tensor, targets: Tensor) -> Tensor:
        with quantization.context():
            loss: Tensor = call(tokens, targets)
        return loss

    def forward() -> Tensor:
        if runtime.records:  # as the loop does: the phases are one program
            return runtime.accumulate_gradients(loss_of, [(tokens, targets)])
        return loss_of(tokens, targets)

    def backward(loss: Tensor) -> None:
        if not runtime.records:
            loss.backward()

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Round(
        forward=forward,
        backward=backward,
        update=update,
        flops=model.flops_per_token() * batch * config.sequence_len,
        updates=True,
        swapped=swapped,
    )


class _Call(nn.Module):
    """A function as a module, since that is what a runtime compiles."""

    def __init__(self, function: Callable[[], Tensor], owner: nn.Module | None) -> None:
        super().__init__()
        self.function = function
        self.owner = owner

    def forward(self) -> Tensor:
        return self.function()


def _called(
    function: Callable[[], Tensor],
    runtime: Runtime,
    compile: bool,
    owner: nn.Module | None = None,
) -> Callable[[], Tensor]:
    """The function, compiled as the run compiles its model, or as it is."""
    return runtime.compile_model(_Call(function, owner)) if compile else function


def _forget(*tensors: Tensor) -> list[Tensor | None]:
    grads = [tensor.grad for tensor in tensors]
    for tensor in tensors:
        tensor.grad = None
    return grads
