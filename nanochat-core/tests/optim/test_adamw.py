"""The AdamW update against torch's own."""

import pytest
import torch

from nanochat.optim.adamw import adamw_update


def scalars(*values):
    return [torch.tensor(float(v)) for v in values]


@pytest.mark.parametrize(
    ("lr", "betas", "eps", "decay"),
    [
        (0.02, (0.9, 0.99), 1e-8, 0.0),
        (0.3, (0.8, 0.995), 1e-10, 0.001),
        (0.5, (0.96, 0.95), 1e-3, 0.5),
    ],
)
def test_it_follows_torch_in_float64(lr, betas, eps, decay):
    torch.manual_seed(0)
    param = torch.randn(7, 5)
    expected = torch.nn.Parameter(param.double())
    reference = torch.optim.AdamW([expected], lr=lr, betas=betas, eps=eps, weight_decay=decay)
    mean, square = torch.zeros_like(param), torch.zeros_like(param)
    for step in range(1, 30):
        grad = torch.randn(7, 5) * 10.0 ** (step % 5 - 3)
        rate = lr / step  # a schedule
        reference.param_groups[0]["lr"] = rate
        expected.grad = grad.double()
        reference.step()
        adamw_update(param, grad, mean, square, *scalars(step, rate, *betas, eps, decay))
    torch.testing.assert_close(param.double(), expected.data, rtol=2e-5, atol=2e-6)
    state = reference.state[expected]
    torch.testing.assert_close(mean.double(), state["exp_avg"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(square.double(), state["exp_avg_sq"], rtol=1e-4, atol=1e-6)


def test_narrow_tensors_are_updated_in_float32():
    """A bfloat16 table moves by the float32 result, rounded once, and keeps its dtypes."""
    torch.manual_seed(0)
    param = torch.randn(50).bfloat16()
    grad = torch.randn(50).bfloat16()
    mean, square = torch.zeros_like(param), torch.zeros_like(param)
    settings = scalars(1, 0.1, 0.8, 0.99, 1e-10, 0.1)
    wide = [t.float() for t in (param, grad, mean, square)]
    adamw_update(*wide, *settings)
    adamw_update(param, grad, mean, square, *settings)
    for ours, expected in zip((param, mean, square), (wide[0], *wide[2:]), strict=True):
        assert ours.dtype == torch.bfloat16
        assert torch.equal(ours, expected.bfloat16())
