"""Liger's fused linear cross-entropy as custom operators, which torch.compile keeps in one graph.

Only the function that starts the kernel is used, not upstream's autograd function, whose traps end
here:
- compiled, it returns a wrong loss when rows are ignored: inside an operator nothing is traced;
- its mean over no rows is 0.0: it is only ever asked for sums, and the mean is taken outside;
- its gradient of the weight is None when the input needs none: both needs are passed explicitly;
- its backward pass scales the stored gradients in place, so that a second one scales them again:
  here they are scaled into new tensors.

One wait for the GPU is left, upstream's count of the rows that are not ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from nanochat.backend import Reduction


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -1,
    softcap: float | None = None,
    reduction: Reduction = "mean",
    accumulate_float32: bool = False,
) -> Tensor:
    """See `LossBackend.linear_cross_entropy`."""
    if reduction == "none":
        return row_losses(hidden, weight, targets, ignore_index, softcap, accumulate_float32)
    grad = torch.is_grad_enabled()
    total, _, _ = sum_and_gradients(
        hidden,
        weight,
        targets,
        ignore_index,
        softcap,
        accumulate_float32,
        grad and hidden.requires_grad,
        grad and weight.requires_grad,
    )
    if reduction == "sum":
        return total
    count = (targets != ignore_index).sum()
    # NaN over no rows at all, with gradients of zero, as in torch.
    return torch.where(count > 0, total / count.clamp(min=1), torch.nan)


@lru_cache(maxsize=1)
def upstream() -> Callable[..., Any]:
    """Import liger_kernel, and with it Triton: the function that runs the kernel chunk by chunk."""
    from liger_kernel.ops.fused_linear_cross_entropy import fused_linear_cross_entropy_forward

    return fused_linear_cross_entropy_forward


def _run(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    softcap: float | None,
    reduction: Reduction,
    *,
    accumulate_float32: bool = False,
    needs: tuple[bool, bool] = (False, False),
    grad_losses: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (float32), and the gradients of hidden and weight, empty where not needed."""
    if hidden.size(0) == 0:  # upstream divides by the number of rows
        loss = hidden.new_zeros(0 if reduction == "none" else (), dtype=torch.float32)
        grad_hidden, grad_weight = torch.zeros_like(hidden), torch.zeros_like(weight)
    else:
        with torch.no_grad():  # which lets it write its products into one buffer
            loss, _, _, _, grad_hidden, grad_weight, _ = upstream()(
                _input=hidden.contiguous(),
                weight=weight.contiguous(),
                target=targets.contiguous(),
                ignore_index=ignore_index,
                softcap=softcap,
                reduction=reduction,
                accum_dtype=torch.float32 if accumulate_float32 else None,
                compute_gradients=any(needs),
                weight_requires_grad=needs[1],
                token_grad_output=grad_losses,
            )
    return (
        loss,
        grad_hidden if needs[0] else hidden.new_empty(0),
        grad_weight if needs[1] else weight.new_empty(0),
    )


def _empty_gradients(
    hidden: Tensor, weight: Tensor, needs_hidden: bool, needs_weight: bool
) -> tuple[Tensor, Tensor]:
    return (
        hidden.new_empty(hidden.shape if needs_hidden else (0,)),
        weight.new_empty(weight.shape if needs_weight else (0,)),
    )


# Sums: the gradients come with the loss.


@torch.library.custom_op("nanochat_liger::sum_and_gradients", mutates_args=())
def sum_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    softcap: float | None,
    accumulate_float32: bool,
    needs_hidden: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of the row losses (float32, ()), and its gradients where they are needed.

    In float16 the gradient of the weight is infinite, not silently wrong, where the sum over all
    rows exceeds 65,504.
    """
    return _run(
        hidden,
        weight,
        targets,
        ignore_index,
        softcap,
        "sum",
        accumulate_float32=accumulate_float32,
        needs=(needs_hidden, needs_weight),
    )


@sum_and_gradients.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    softcap: float | None,
    accumulate_float32: bool,
    needs_hidden: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    total = hidden.new_empty((), dtype=torch.float32)
    return total, *_empty_gradients(hidden, weight, needs_hidden, needs_weight)


def _save_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, grad_hidden, grad_weight = output
    ctx.needs = inputs[6:8]
    ctx.save_for_backward(grad_hidden, grad_weight)
    ctx.set_materialize_grads(False)


def _scale_gradients(ctx: Any, grad_total: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_total is None:
        return (None,) * 8
    scaled = [
        (grad * grad_total).to(grad.dtype) if needed else None
        for grad, needed in zip(ctx.saved_tensors, ctx.needs, strict=True)
    ]
    return (*scaled, *(None,) * 6)


torch.library.register_autograd(sum_and_gradients, _scale_gradients, setup_context=_save_gradients)


# Losses of rows: each has its own gradient, so the backward pass makes the logits again.


@torch.library.custom_op("nanochat_liger::row_losses", mutates_args=())
def row_losses(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    softcap: float | None,
    accumulate_float32: bool,
) -> Tensor:
    """The loss of each row (N,), float32, 0 where it is ignored."""
    return _run(hidden, weight, targets, ignore_index, softcap, "none")[0]


@row_losses.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    softcap: float | None,
    accumulate_float32: bool,
) -> Tensor:
    return hidden.new_empty(hidden.size(0), dtype=torch.float32)


@torch.library.custom_op("nanochat_liger::row_gradients", mutates_args=())
def row_gradients(
    grad_losses: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    softcap: float | None,
    accumulate_float32: bool,
    needs_hidden: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of hidden (N, D) and weight (V, D), contiguous, empty where not needed."""
    _, grad_hidden, grad_weight = _run(
        hidden,
        weight,
        targets,
        ignore_index,
        softcap,
        "none",
        accumulate_float32=accumulate_float32,
        needs=(needs_hidden, needs_weight),
        grad_losses=grad_losses.where(targets != ignore_index, 0),
    )
    return grad_hidden, grad_weight


@row_gradients.register_fake
def _(
    grad_losses: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    softcap: float | None,
    accumulate_float32: bool,
    needs_hidden: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor]:
    return _empty_gradients(hidden, weight, needs_hidden, needs_weight)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.options = inputs[3:]


def _row_backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:2]
    grads = row_gradients(grad_losses, *ctx.saved_tensors, *ctx.options, *needs)
    kept = [grad if needed else None for grad, needed in zip(grads, needs, strict=True)]
    return (*kept, *(None,) * 4)


torch.library.register_autograd(row_losses, _row_backward, setup_context=_save_inputs)
