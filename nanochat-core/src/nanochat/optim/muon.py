"""The Muon update for stacked matrices of one shape.

Momentum, orthogonalisation, and four later refinements: Polar Express coefficients
(arXiv:2505.16932), row equilibration before it (MuonEq, arXiv:2603.28254), the exact Frobenius
norm after it (Muon+, arXiv:2602.21545), a variance-reduced step for each neuron (NorMuon,
arXiv:2510.05491), and weight decay only where it agrees with the update ("cautious",
arXiv:2411.16085).
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanochat.fused.symmetric import symmetric_product

# One (a, b, c) for each iteration X <- aX + (bA + cA^2) X with A = X X^T, for singular values in
# [1e-3, 1]; the published coefficients for five iterations.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def muon_update(
    params: Tensor,
    grads: Tensor,
    momentum: Tensor,
    variance: Tensor,
    beta: Tensor,
    lr: Tensor,
    weight_decay: Tensor,
    beta2: Tensor,
    product_dtype: torch.dtype,
) -> None:
    """One step in place on (K, m, n) matrices.

    `variance` is (K, m, 1) for tall and (K, 1, n) for wide matrices; see `variance_shape`. The
    settings are 0-d tensors, so that moving them recompiles nothing. `product_dtype` is the dtype
    of the orthogonalisation's matrix products.
    """
    momentum.lerp_(grads, 1 - beta)
    update = torch.lerp(grads, momentum, beta)  # Nesterov
    direction = orthogonalize(equilibrate(update).to(product_dtype)).float()
    direction = reduce_variance(direction, variance, beta2)
    agrees = direction * params >= 0
    params.sub_(lr * direction + lr * weight_decay * params * agrees)


def equilibrate(x: Tensor) -> Tensor:
    """Give every row of each matrix the mean row norm, and the matrix a norm just under one."""
    row = x.square().sum(dim=-1, keepdim=True).sqrt().clamp(min=1e-12)
    return x / (row * (1.01 * x.size(-2) ** 0.5))


def orthogonalize(x: Tensor) -> Tensor:
    """Bring the singular values of (K, m, n) matrices of norm <= 1 near one (arXiv:2505.16932)."""
    tall = x.size(-2) > x.size(-1)
    x = x.mT.contiguous() if tall else x
    for a, b, c in POLAR_EXPRESS:
        gram = symmetric_product(x)
        # aX + (bA + cA^2)X as one product: a on the diagonal of the polynomial costs nothing.
        x = symmetric_product(gram, alpha=c, beta=b, diagonal=a) @ x
    return x.mT if tall else x


def variance_dim(rows: int, columns: int) -> int:
    """The dimension over which squares are averaged: the longer side keeps its entries."""
    return -1 if rows >= columns else -2


def variance_shape(count: int, rows: int, columns: int) -> tuple[int, int, int]:
    return (count, rows, 1) if variance_dim(rows, columns) == -1 else (count, 1, columns)


def reduce_variance(x: Tensor, variance: Tensor, beta2: Tensor) -> Tensor:
    """Divide each neuron's update by the running root mean square of its own (arXiv:2510.05491).

    The norm of the whole matrix is set to sqrt(min(m, n)), that of an orthogonal one, before and
    kept by the division. `variance` is updated in place.
    """
    dim = variance_dim(x.size(-2), x.size(-1))
    side = min(x.size(-2), x.size(-1))
    mean = x.square().mean(dim=dim, keepdim=True)
    count = x.size(dim)
    total = (mean.sum(dim=(-2, -1), keepdim=True) * count).clamp(min=1e-12)
    mean = mean * (side / total)
    variance.lerp_(mean, 1 - beta2)
    step = variance.clamp(min=1e-10).rsqrt()
    after = (mean * step.square()).sum(dim=(-2, -1), keepdim=True) * count
    return x * (step * (side / after.clamp(min=1e-20)).sqrt() * (side / total).sqrt())
