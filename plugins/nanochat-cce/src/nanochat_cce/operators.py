"""Cut Cross-Entropy as two custom operators, which torch.compile keeps in one graph.

Both work on the losses of single rows; sums and means are taken outside, where autograd knows
them. Ignored rows are computed as if their target were the word 0 and then left out, with a
gradient of zero: that keeps every shape static and never waits for the GPU, as upstream's list of
valid rows does. Where most rows are ignored that is work for nothing; pretraining ignores none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nanochat.backend import Reduction
from nanochat_cce import kernels
from nanochat_cce.options import Options


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -1,
    softcap: float | None = None,
    reduction: Reduction = "mean",
    options: Options,
) -> Tensor:
    """See `LossBackend.linear_cross_entropy`."""
    losses, _, _ = row_losses(
        hidden,
        weight,
        targets,
        ignore_index,
        softcap,
        options.threshold(str(hidden.dtype).removeprefix("torch.")),
        options.accumulate_float32,
        torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad),
    )
    if reduction == "none":
        return losses
    total = losses.sum()
    if reduction == "sum":
        return total
    count = (targets != ignore_index).sum()
    # NaN over no rows at all, with gradients of zero, as in torch.
    return torch.where(count > 0, total / count.clamp(min=1), torch.nan)


@torch.library.custom_op("nanochat_cce::row_losses", mutates_args=())
def row_losses(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    softcap: float | None,
    filter_eps: float | None,
    accumulate_float32: bool,
    needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of each row (N,), its log-sum-exp (N,), and the mean logit of each word (V,).

    All float32. The last is empty unless the backward pass will filter by it.
    """
    rows, words = hidden.size(0), weight.size(0)
    averages = needs_grad and filter_eps is not None
    if rows == 0:
        empty = hidden.new_zeros(0, dtype=torch.float32)
        means = hidden.new_zeros(words if averages else 0, dtype=torch.float32)
        return empty, empty.clone(), means
    valid = targets != ignore_index
    with torch.no_grad():
        losses, lse, means = kernels.forward(
            hidden.contiguous(),
            weight.contiguous(),
            targets.where(valid, 0).contiguous(),
            softcap,
            averages,
        )
    return losses.where(valid, 0), lse, lse.new_empty(0) if means is None else means


@row_losses.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    softcap: float | None,
    filter_eps: float | None,
    accumulate_float32: bool,
    needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = hidden.new_empty(hidden.size(0), dtype=torch.float32)
    averages = needs_grad and filter_eps is not None
    means = hidden.new_empty(weight.size(0) if averages else 0, dtype=torch.float32)
    return rows, torch.empty_like(rows), means


@torch.library.custom_op("nanochat_cce::row_gradients", mutates_args=())
def row_gradients(
    grad_losses: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    lse: Tensor,
    mean_logits: Tensor,
    ignore_index: int,
    softcap: float | None,
    filter_eps: float | None,
    accumulate_float32: bool,
    needs_hidden: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of hidden (N, D) and weight (V, D), contiguous, empty where not needed."""
    if hidden.size(0) == 0:
        return (
            hidden.new_zeros(hidden.shape if needs_hidden else 0),
            weight.new_zeros(weight.shape if needs_weight else 0),
        )
    valid = targets != ignore_index
    with torch.no_grad():
        grad_hidden, grad_weight = kernels.backward(
            grad_losses.float().where(valid, 0).contiguous(),
            hidden.contiguous(),
            weight.contiguous(),
            targets.where(valid, 0).contiguous(),
            lse,
            mean_logits if mean_logits.numel() else None,
            softcap=softcap,
            filter_eps=filter_eps,
            accumulate_float32=accumulate_float32,
            needs=(needs_hidden, needs_weight),
        )
    return (
        hidden.new_empty(0) if grad_hidden is None else grad_hidden,
        weight.new_empty(0) if grad_weight is None else grad_weight,
    )


@row_gradients.register_fake
def _(
    grad_losses: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    lse: Tensor,
    mean_logits: Tensor,
    ignore_index: int,
    softcap: float | None,
    filter_eps: float | None,
    accumulate_float32: bool,
    needs_hidden: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor]:
    return (
        hidden.new_empty(hidden.shape if needs_hidden else (0,)),
        weight.new_empty(weight.shape if needs_weight else (0,)),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, targets, *options, _ = inputs
    _, lse, mean_logits = output
    ctx.save_for_backward(hidden, weight, targets, lse, mean_logits)
    ctx.options = options
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_losses: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    needs_hidden, needs_weight = ctx.needs_input_grad[:2]
    if grad_losses is None:
        return (None,) * 8
    grad_hidden, grad_weight = row_gradients(
        grad_losses, *ctx.saved_tensors, *ctx.options, needs_hidden, needs_weight
    )
    return (
        grad_hidden if needs_hidden else None,
        grad_weight if needs_weight else None,
        *(None,) * 6,
    )


torch.library.register_autograd(row_losses, _backward, setup_context=_save)
