"""The plain loss: all logits at once, in float32, for the compiler to fuse."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nanochat.backend import Reduction
from nanochat.fused.softmax_gradient import cap


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
