"""The Muon update and its parts against float64."""

import math

import pytest
import torch

from nanochat.optim.muon import (
    equilibrate,
    muon_update,
    orthogonalize,
    reduce_variance,
    variance_shape,
)

SHAPES = [(24, 24), (64, 16), (16, 64), (1, 12), (2, 12)]


def scalar(value):
    return torch.tensor(float(value))


def conditioned(count, rows, columns, smallest):
    """Matrices of norm 1 whose singular values are `smallest` to 1 times the largest."""
    side = min(rows, columns)
    u = torch.linalg.qr(torch.randn(count, rows, side)).Q
    v = torch.linalg.qr(torch.randn(count, columns, side)).Q
    values = torch.logspace(math.log10(smallest), 0, side)
    x = u * values @ v.mT
    return x / x.norm(dim=(-2, -1), keepdim=True)


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("smallest", [0.5, 0.05])
def test_singular_values_come_near_one(rows, columns, smallest):
    torch.manual_seed(0)
    x = conditioned(3, rows, columns, smallest)
    y = orthogonalize(x)
    assert y.shape == x.shape
    values = torch.linalg.svdvals(y.double())
    assert values.min() > 0.8
    assert values.max() < 1.2
    # The same directions: near the polar factor U V^T, and the nearer the rounder it was.
    u, _, vt = torch.linalg.svd(x.double(), full_matrices=False)
    polar = u @ vt
    cosine = (y.double() * polar).sum((-2, -1)) / (
        y.double().norm(dim=(-2, -1)) * polar.norm(dim=(-2, -1))
    )
    assert cosine.min() > 0.99
    assert (y.double() - polar).abs().max() < 0.2


def test_bfloat16_products_do_nearly_the_same():
    torch.manual_seed(0)
    x = conditioned(2, 64, 32, 0.1)
    y = orthogonalize(x.bfloat16())
    assert y.dtype == torch.bfloat16
    values = torch.linalg.svdvals(y.double())
    assert values.min() > 0.7
    assert values.max() < 1.3


def test_rows_become_equal_and_the_matrix_just_below_one():
    torch.manual_seed(0)
    x = torch.randn(2, 6, 10) * torch.logspace(-4, 4, 6)[:, None]
    y = equilibrate(x)
    rows = y.norm(dim=-1)
    torch.testing.assert_close(rows, torch.full((2, 6), 1 / (1.01 * 6**0.5)))
    assert (y.norm(dim=(-2, -1)) < 1).all()
    torch.testing.assert_close(y / rows[..., None], x / x.norm(dim=-1, keepdim=True))
    x[0, 2] = 0
    assert not equilibrate(x)[0, 2].any()
    assert torch.isfinite(equilibrate(x)).all()


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_reducing_variance_keeps_the_norm_of_an_orthogonal_matrix(rows, columns):
    torch.manual_seed(0)
    variance = torch.zeros(variance_shape(2, rows, columns))
    long_side = rows if rows >= columns else columns
    assert variance[0].numel() == long_side
    for _ in range(4):
        x = torch.randn(2, rows, columns) * torch.rand(2, rows, 1)
        y = reduce_variance(x, variance, scalar(0.9))
        norms = y.norm(dim=(-2, -1))
        torch.testing.assert_close(norms, torch.full((2,), min(rows, columns) ** 0.5))
        # One factor for each neuron: nothing within one is turned.
        ratio = y / x
        dim = -1 if rows >= columns else -2
        spread = ratio.amax(dim) - ratio.amin(dim)
        assert spread.max() < 1e-4 * ratio.abs().max()
    assert (variance > 0).all()


def test_no_gradient_moves_nothing_but_momentum():
    params = torch.randn(1, 4, 4)
    before = params.clone()
    momentum, variance = torch.zeros(1, 4, 4), torch.zeros(1, 4, 1)
    muon_update(
        params, torch.zeros(1, 4, 4), momentum, variance,
        scalar(0.9), scalar(0.02), scalar(0.0), scalar(0.9), torch.float32,
    )  # fmt: skip
    assert torch.equal(params, before)
    assert torch.isfinite(variance).all()


# The published table of Polar Express for five iterations, each rounded as printed.
COEFFICIENTS = [
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]


class SlowMuon:
    """One matrix in float64, neuron by neuron, from the papers' formulas."""

    def __init__(self, param):
        self.param = param.double()
        self.rows, self.columns = param.shape
        self.momentum = torch.zeros_like(self.param)
        self.variance = [0.0] * max(param.shape)

    def neurons(self, x):
        """Views of a matrix along its longer side."""
        return [x[i] for i in range(self.rows)] if self.rows >= self.columns else list(x.mT)

    def step(self, grad, beta, lr, decay, beta2):
        grad = grad.double()
        self.momentum = beta * self.momentum + (1 - beta) * grad
        update = (1 - beta) * grad + beta * self.momentum
        for row in update:
            row /= row.norm() * 1.01 * math.sqrt(self.rows)
        # On singular values, where each iteration is an odd polynomial of fifth degree.
        u, values, vt = torch.linalg.svd(update, full_matrices=False)
        for a, b, c in COEFFICIENTS:
            values = a * values + b * values**3 + c * values**5
        update = u @ torch.diag(values) @ vt
        target = math.sqrt(min(self.rows, self.columns))
        update *= target / update.norm()
        for i, neuron in enumerate(self.neurons(update)):
            mean = (neuron**2).mean().item()
            self.variance[i] = beta2 * self.variance[i] + (1 - beta2) * mean
            neuron /= math.sqrt(self.variance[i])
        update *= target / update.norm()
        for index in range(self.param.numel()):
            p, d = self.param.view(-1)[index], update.reshape(-1)[index]
            keep = decay if p * d >= 0 else 0.0
            self.param.view(-1)[index] = p - lr * d - lr * keep * p


@pytest.mark.parametrize(("rows", "columns"), [(12, 12), (24, 8), (8, 24), (1, 12)])
def test_several_steps_follow_the_slow_one(rows, columns):
    torch.manual_seed(0)
    params = torch.randn(2, rows, columns)
    slow = [SlowMuon(p) for p in params.clone()]
    momentum = torch.zeros_like(params)
    variance = torch.zeros(variance_shape(2, rows, columns))
    begin = params.clone()
    for step in range(6):
        grads = torch.randn(2, rows, columns) * (0.1 + torch.rand(rows, 1))
        beta, lr, decay, beta2 = 0.85 + 0.02 * step, 0.02 * (1 + step), 0.3, 0.9
        muon_update(
            params, grads.clone(), momentum, variance,
            scalar(beta), scalar(lr), scalar(decay), scalar(beta2), torch.float32,
        )  # fmt: skip
        for matrix, grad in zip(slow, grads, strict=True):
            matrix.step(grad, beta, lr, decay, beta2)
    expected = torch.stack([matrix.param for matrix in slow])
    moved = (expected - begin).norm()
    assert moved > 0.5
    assert (params.double() - expected).norm() / moved < 1e-4
    stored = torch.tensor([matrix.variance for matrix in slow])
    torch.testing.assert_close(variance.flatten(1).double(), stored.double(), rtol=1e-3, atol=0)


def test_decay_only_where_it_agrees_with_the_update():
    """With a huge decay, entries that the update pushes away from zero move by it alone."""
    torch.manual_seed(0)
    grads = torch.randn(1, 6, 6)

    def moved(decay):
        params = torch.ones(1, 6, 6) * torch.sign(
            torch.randn(1, 6, 6, generator=torch.Generator().manual_seed(1))
        )
        before = params.clone()
        muon_update(
            params, grads.clone(), torch.zeros(1, 6, 6), torch.zeros(1, 6, 1),
            scalar(0.0), scalar(0.01), scalar(decay), scalar(0.9), torch.float32,
        )  # fmt: skip
        return before, params - before

    before, plain = moved(0.0)
    _, decayed = moved(1.0)
    shrinks = plain * before < 0
    assert shrinks.any()
    assert (~shrinks).any()
    torch.testing.assert_close(decayed[~shrinks], plain[~shrinks])
    torch.testing.assert_close(decayed[shrinks], (plain - 0.01 * before)[shrinks])
