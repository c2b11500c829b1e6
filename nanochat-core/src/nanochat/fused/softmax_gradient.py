"""A chunk of logits to the loss of each row, and in place to the gradient of that loss.

    p = softmax(cap(z)),  loss = -log p[target],  dz = (p - onehot(target)) cap'(z)

On an NVIDIA GPU one kernel handles a row: it reads the row from memory once, and a second time
from the cache, where a compiler makes two kernels that read all rows from memory twice.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

BLOCK = 8192
WARPS = 32


def cap(logits: Tensor, softcap: float | None) -> Tensor:
    """Squash logits into (-softcap, softcap) (arXiv:2408.00118)."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def softmax_and_gradient(
    logits: Tensor, targets: Tensor, ignore_index: int, softcap: float | None
) -> Tensor:
    """The loss of each row (N,), float32; `logits` (N, V) are overwritten with their gradient.

    Rows whose target is `ignore_index` have a loss and a gradient of zero. `logits` are
    contiguous, `targets` (N,) int64.
    """
    if logits.is_cuda:
        return _softmax_and_gradient(logits, targets, ignore_index, softcap)
    return _in_torch(logits, targets, ignore_index, softcap)


@torch.library.custom_op("nanochat::softmax_and_gradient", mutates_args=("logits",))
def _softmax_and_gradient(
    logits: Tensor, targets: Tensor, ignore_index: int, softcap: float | None
) -> Tensor:
    if find_spec("triton") is not None:
        return _triton_softmax(logits, targets, ignore_index, softcap)
    return _in_torch(logits, targets, ignore_index, softcap)


@_softmax_and_gradient.register_fake
def _(logits: Tensor, targets: Tensor, ignore_index: int, softcap: float | None) -> Tensor:
    return logits.new_empty(logits.size(0), dtype=torch.float32)


def _in_torch(logits: Tensor, targets: Tensor, ignore_index: int, softcap: float | None) -> Tensor:
    losses, grad = losses_and_gradient(logits, targets, ignore_index, softcap)
    logits.copy_(grad)
    return losses


def losses_and_gradient(
    logits: Tensor, targets: Tensor, ignore_index: int, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """The same out of place: the losses (N,), and the gradient (N, V) in float32.

    The target's logit is found by comparing, not by gathering, which XLA cannot partition.
    """
    capped = cap(logits.float(), softcap)
    log_sum = capped.logsumexp(dim=-1, keepdim=True)
    valid = (targets != ignore_index)[:, None]
    words = torch.arange(logits.size(1), device=logits.device)
    is_target = words == torch.where(valid, targets[:, None], 0)
    wanted = torch.where(is_target, capped, 0.0).sum(dim=-1, keepdim=True)
    grad = torch.exp(capped - log_sum) - is_target.float()
    if softcap is not None:
        grad = grad * (1 - (capped / softcap).square())
    losses = torch.where(valid, log_sum - wanted, 0.0)
    return losses[:, 0], torch.where(valid, grad, 0.0)


def _triton_softmax(
    logits: Tensor, targets: Tensor, ignore_index: int, softcap: float | None
) -> Tensor:
    rows, vocab = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    if rows:
        _kernel()[(rows,)](
            logits,
            targets,
            losses,
            vocab,
            ignore_index,
            softcap or 0.0,
            CAPPED=softcap is not None,
            EVEN=vocab % BLOCK == 0,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
    return losses


@lru_cache(maxsize=1)
def _kernel() -> Any:
    from nanochat.fused.softmax_gradient_kernel import softmax_gradient_kernel

    return softmax_gradient_kernel
