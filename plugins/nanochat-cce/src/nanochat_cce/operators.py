"""Cut Cross-Entropy as custom operators, which torch.compile keeps in one graph.

Two for the loss, of single rows and of their sum, share one for the gradients: the gradient of a
sum is one number, and upstream's kernel is up to 5% faster with that than with one a row (H100).

Ignored rows are computed as if their target were the word 0 and then left out. In the backward
pass their log-sum-exp is infinite and their target no word, so that their softmax is zero. That
keeps every shape static and never waits for the GPU, as upstream's list of valid rows does. Where
most rows are ignored the forward pass does work for nothing; pretraining ignores none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nanochat.backend import Reduction
from nanochat_cce import kernels
from nanochat_cce.options import Options

NO_WORD = -1
"""A target that no word's index equals."""


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
    operator = row_losses if reduction == "none" else total_loss
    loss, _, _ = operator(
        hidden,
        weight,
        targets,
        ignore_index,
        softcap,
        options.threshold(str(hidden.dtype).removeprefix("torch.")),
        options.accumulate_float32,
        torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad),
    )
    if reduction != "mean":
        return loss
    count = (targets != ignore_index).sum()
    # NaN over no rows at all, with gradients of zero, as in torch.
    return torch.where(count > 0, loss / count.clamp(min=1), torch.nan)


def _losses(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    softcap: float | None,
    averages: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of each row (N,), its log-sum-exp (N,), and the mean logit of each word (V,).

    All float32. The last is empty unless the backward pass will filter by it.
    """
    if hidden.size(0) == 0:
        empty = hidden.new_zeros(0, dtype=torch.float32)
        means = hidden.new_zeros(weight.size(0) if averages else 0, dtype=torch.float32)
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
    """What `_losses` returns; the other arguments are for the backward pass."""
    averages = needs_grad and filter_eps is not None
    return _losses(hidden, weight, targets, ignore_index, softcap, averages)


@torch.library.custom_op("nanochat_cce::total_loss", mutates_args=())
def total_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    softcap: float | None,
    filter_eps: float | None,
    accumulate_float32: bool,
    needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with the sum of the losses (float32, ()) for the first."""
    averages = needs_grad and filter_eps is not None
    losses, lse, means = _losses(hidden, weight, targets, ignore_index, softcap, averages)
    return losses.sum(), lse, means


def _forward_shapes(
    hidden: Tensor, weight: Tensor, averages: bool
) -> tuple[Tensor, Tensor, Tensor]:
    rows = hidden.new_empty(hidden.size(0), dtype=torch.float32)
    means = hidden.new_empty(weight.size(0) if averages else 0, dtype=torch.float32)
    return rows, torch.empty_like(rows), means


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
    return _forward_shapes(hidden, weight, needs_grad and filter_eps is not None)


@total_loss.register_fake
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
    _, lse, means = _forward_shapes(hidden, weight, needs_grad and filter_eps is not None)
    return lse.new_empty(()), lse, means


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
    """The gradients of hidden (N, D) and weight (V, D), contiguous, empty where not needed.

    `grad_losses` is that of each row's loss (N,), or of their sum ().
    """
    if hidden.size(0) == 0:
        return (
            hidden.new_zeros(hidden.shape if needs_hidden else 0),
            weight.new_zeros(weight.shape if needs_weight else 0),
        )
    valid = targets != ignore_index
    grad = grad_losses.float()
    with torch.no_grad():
        grad_hidden, grad_weight = kernels.backward(
            grad.where(valid, 0).contiguous() if grad.dim() else grad.reshape(1),
            hidden.contiguous(),
            weight.contiguous(),
            targets.where(valid, NO_WORD).contiguous(),
            lse.where(valid, torch.inf),
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


for _operator in (row_losses, total_loss):
    torch.library.register_autograd(_operator, _backward, setup_context=_save)
