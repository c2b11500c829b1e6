"""The AdamW update (arXiv:1711.05101)."""

from __future__ import annotations

from torch import Tensor


def adamw_update(
    param: Tensor,
    grad: Tensor,
    mean: Tensor,
    square: Tensor,
    step: Tensor,
    lr: Tensor,
    beta1: Tensor,
    beta2: Tensor,
    eps: Tensor,
    weight_decay: Tensor,
) -> None:
    """One step in place. Settings are 0-d tensors, so that moving them recompiles nothing.

    Arithmetic is in float32 whatever the dtypes of the parameter and its moments.
    """
    p, g, m, s = param.float(), grad.float(), mean.float(), square.float()
    p = p * (1 - lr * weight_decay)
    m = m + (g - m) * (1 - beta1)
    s = s + (g.square() - s) * (1 - beta2)
    denominator = (s / (1 - beta2**step)).sqrt() + eps
    p = p - (lr / (1 - beta1**step)) * m / denominator
    param.copy_(p)
    mean.copy_(m)
    square.copy_(s)
