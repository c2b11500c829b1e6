"""Linear cross-entropy in chunks of rows, with the gradient taken in the forward pass.

For a chunk of rows the logits are made once; one fused kernel turns them into the loss of each row
and, in place, into their own gradient, which two matrix products carry to `hidden` and `weight`.
So the (N, V) logits never exist, and no product is computed twice: 6NDV operations in all, as in
the plain loss. The idea is Liger's (arXiv:2410.10989); the backward pass only scales.

The work is one custom operator, opaque to the compiler around it, so it costs no compilation
however many chunks there are.

torch 2.13 brings an operator of this kind. In float32 on a CPU it needs 0.5 to 0.7 of the time of
ours and is as exact, so it is taken there, without a softcap, which it does not know. In bfloat16
it returns the loss itself in bfloat16, 0.06 to 0.25 off at a loss of 9.5: there ours stays.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.backend import Reduction
from nanochat.builtin.chunks import rows_per_chunk, sums_in_float32
from nanochat.fused.softmax_gradient import (
    cap,
    losses_and_gradient,
    softmax_and_gradient,
)

RECORDED = ("xla",)
"""Kinds of torch devices that record a program. torch_xla 2.9 loses what an operator writes through
a view of its own tensor; elsewhere that spares a copy."""


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -1,
    softcap: float | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """See `LossBackend.linear_cross_entropy`."""
    if reduction == "none":
        return _row_losses(hidden, weight, targets, ignore_index, softcap)
    if softcap is None and _torch_has_its_own(hidden, weight):
        total = _of_torch(hidden, weight, targets, ignore_index)
    else:
        grad = torch.is_grad_enabled()
        total, _, _ = _loss_and_gradients(
            hidden,
            weight,
            targets,
            ignore_index,
            softcap,
            grad and hidden.requires_grad,
            grad and weight.requires_grad,
        )
    if reduction == "sum":
        return total
    counted = (targets != ignore_index).sum()
    # Over no rows at all torch's mean is NaN, yet its gradients are zeros: 0 / 0 would make NaN.
    return torch.where(counted > 0, total / counted.clamp(min=1), torch.nan)


def _torch_has_its_own(hidden: Tensor, weight: Tensor) -> bool:
    return (
        hidden.device.type == "cpu"
        and hidden.dtype == weight.dtype == torch.float32
        and hasattr(F, "linear_cross_entropy")
        and hasattr(torch.nn, "LinearCrossEntropyOptions")
    )


def _of_torch(hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
    """The sum of the row losses."""
    options = torch.nn.LinearCrossEntropyOptions(
        batch_chunk_size=rows_per_chunk(hidden.size(0), *weight.shape),
        chunking_method=None,
        # Otherwise a second backward pass is an error, and torch.compile breaks the graph.
        allow_retain_graph=True,
    )
    return F.linear_cross_entropy(
        hidden, weight, targets, ignore_index=ignore_index, reduction="sum", options=options
    )


@torch.library.custom_op("nanochat::chunked_cross_entropy", mutates_args=())
def _loss_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    softcap: float | None,
    needs_hidden: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of the row losses (float32, ()), and its gradients where they are needed."""
    walk = _record_chunks if hidden.device.type in RECORDED else _fill_chunks
    losses, grad_hidden, grad_weight = walk(
        hidden, weight, targets, ignore_index, softcap, needs_hidden, needs_weight
    )
    return losses.sum(), grad_hidden, grad_weight.to(_gradient_dtype(weight))


def _fill_chunks(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    softcap: float | None,
    needs_hidden: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The row losses (N,), and the gradients of their sum, empty where not needed.

    A function of its own, so that the logits are gone when gradients are copied: that would be the
    peak.
    """
    tokens = hidden.size(0)
    rows = rows_per_chunk(tokens, *weight.shape)
    wide = sums_in_float32(tokens, *weight.shape)
    losses = torch.empty(tokens, dtype=torch.float32, device=hidden.device)
    grad_hidden = torch.empty_like(hidden) if needs_hidden else hidden.new_empty(0)
    grad_weight = weight.new_empty(
        weight.shape if needs_weight else (0,),
        dtype=torch.float32 if wide else _gradient_dtype(weight),
    )
    logits = hidden.new_empty(min(rows, tokens), weight.size(0))
    for start in range(0, tokens, rows):
        part = slice(start, start + rows)
        x = hidden[part]
        z = logits[: x.size(0)]
        torch.mm(x, weight.T, out=z)
        losses[part] = softmax_and_gradient(z, targets[part], ignore_index, softcap)
        if needs_hidden:
            torch.mm(z, weight, out=grad_hidden[part])
        if needs_weight:
            _add_product(grad_weight, z, x, first=start == 0)
    if needs_weight and tokens == 0:
        grad_weight.zero_()
    return losses, grad_hidden, grad_weight


def _record_chunks(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    softcap: float | None,
    needs_hidden: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same without writing anything in place; weights are summed in float32."""
    rows = rows_per_chunk(hidden.size(0), *weight.shape)
    losses: list[Tensor] = []
    grad_hidden: list[Tensor] = [] if needs_hidden else [hidden.new_empty(0)]
    grad_weight = None if needs_weight else weight.new_empty(0)
    for x, wanted in zip(hidden.split(rows), targets.split(rows), strict=True):
        loss, grad = losses_and_gradient(x @ weight.T, wanted, ignore_index, softcap)
        grad = grad.to(hidden.dtype)
        losses.append(loss)
        if needs_hidden:
            grad_hidden.append(grad @ weight)
        if needs_weight:
            product = (grad.T @ x).float()
            grad_weight = product if grad_weight is None else grad_weight + product
    assert grad_weight is not None  # `split` gives at least one part, if an empty one
    return torch.cat(losses), torch.cat(grad_hidden), grad_weight


def _add_product(total: Tensor, grad_logits: Tensor, hidden: Tensor, *, first: bool) -> None:
    """total += grad_logits.T @ hidden (the `first` time =), where total may be wider than both."""
    left = grad_logits.T
    if total.dtype == grad_logits.dtype:
        torch.mm(left, hidden, out=total) if first else torch.addmm(total, left, hidden, out=total)
    elif total.is_cuda:
        if first:
            torch.mm(left, hidden, out_dtype=total.dtype, out=total)
        else:
            torch.addmm(total, left, hidden, out_dtype=total.dtype, out=total)
    else:
        product = (left @ hidden).to(total.dtype)
        total.copy_(product) if first else total.add_(product)


def _gradient_dtype(weight: Tensor) -> torch.dtype:
    # A sum over many rows, before it is divided by their number, may overflow float16.
    return torch.float32 if weight.dtype == torch.float16 else weight.dtype


@_loss_and_gradients.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    softcap: float | None,
    needs_hidden: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    total = hidden.new_empty((), dtype=torch.float32)
    grad_hidden = torch.empty_like(hidden) if needs_hidden else hidden.new_empty(0)
    grad_weight = weight.new_empty(
        weight.shape if needs_weight else (0,), dtype=_gradient_dtype(weight)
    )
    return total, grad_hidden, grad_weight


def _save_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, grad_hidden, grad_weight = output
    ctx.needs = inputs[5:7]
    ctx.dtype = inputs[1].dtype
    ctx.save_for_backward(grad_hidden, grad_weight)
    ctx.set_materialize_grads(False)


def _scale_gradients(ctx: Any, grad_total: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    # Out of place, so that a second backward pass finds the same gradients.
    grad_hidden, grad_weight = ctx.saved_tensors
    needs_hidden, needs_weight = ctx.needs
    return (
        (grad_hidden * grad_total).to(grad_hidden.dtype) if needs_hidden else None,
        (grad_weight * grad_total).to(ctx.dtype) if needs_weight else None,
        *(None,) * 5,
    )


torch.library.register_autograd(
    _loss_and_gradients, _scale_gradients, setup_context=_save_gradients
)


def _row_losses(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, softcap: float | None
) -> Tensor:
    """The loss of each row (N,). Its gradient depends on what comes after, so it is recomputed."""
    return _RowLosses.apply(hidden, weight, targets, ignore_index, softcap)


class _RowLosses(torch.autograd.Function):
    """Row losses by chunks; the backward pass makes each chunk's logits again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        ignore_index: int,
        softcap: float | None,
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, targets)
        ctx.options = (ignore_index, softcap)
        rows = rows_per_chunk(hidden.size(0), *weight.shape)
        losses = [
            F.cross_entropy(
                cap((part @ weight.T).float(), softcap),
                wanted,
                ignore_index=ignore_index,
                reduction="none",
            )
            for part, wanted in zip(hidden.split(rows), targets.split(rows), strict=True)
        ]
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, targets = ctx.saved_tensors
        ignore_index, softcap = ctx.options
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        rows = rows_per_chunk(hidden.size(0), *weight.shape)
        grad_hidden: list[Tensor] = []
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        for part, wanted, grad in zip(
            hidden.split(rows), targets.split(rows), grad_losses.split(rows), strict=True
        ):
            grad_logits = part @ weight.T
            softmax_and_gradient(grad_logits, wanted, ignore_index, softcap)
            grad_logits *= grad[:, None].to(hidden.dtype)
            if needs_hidden:
                grad_hidden.append(grad_logits @ weight)
            if needs_weight:
                grad_weight += (grad_logits.T @ part).float()
        return (
            torch.cat(grad_hidden) if needs_hidden else None,
            grad_weight.to(weight.dtype) if needs_weight else None,
            None,
            None,
            None,
        )
