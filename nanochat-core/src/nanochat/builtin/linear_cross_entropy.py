"""The plain loss: all logits at once, in float32, for the compiler to fuse."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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
) -> Tensor:
    """See `LossBackend.linear_cross_entropy`."""
    logits = cap(F.linear(hidden, weight).float(), softcap)
    return F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction=reduction)


def cap(logits: Tensor, softcap: float | None) -> Tensor:
    """Squash logits into (-softcap, softcap) (arXiv:2408.00118)."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)
