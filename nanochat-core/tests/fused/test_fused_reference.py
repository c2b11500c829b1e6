"""The fused operations in plain torch, as every device but NVIDIA's runs them, against float64."""

import pytest
import torch

from nanochat.fused.cast import _cast_both_ways, cast_both_ways
from nanochat.fused.heads import EPS, rotary_table, split_heads
from nanochat.fused.symmetric import _symmetric_product, symmetric_product


def rotated(x, base):
    """RMSNorm and rotary positions of x (B, T, H, d), pair of channels by pair, in float64."""
    x = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()
    half = x.size(-1) // 2
    positions = torch.arange(x.size(1), dtype=torch.float64)
    channels = []
    for c in range(half):
        angle = (positions * base ** (-2 * c / x.size(-1)))[:, None]
        a, b = x[..., c], x[..., half + c]
        channels.append((a * angle.cos() + b * angle.sin(), b * angle.cos() - a * angle.sin()))
    first, second = zip(*channels, strict=True)
    return torch.stack((*first, *second), dim=-1)


@pytest.mark.parametrize(("H", "H_kv", "d"), [(2, 2, 16), (4, 2, 8), (6, 1, 24), (1, 1, 4)])
def test_split_heads_equals_the_formula(H, H_kv, d):
    torch.manual_seed(0)
    qkv = torch.randn(2, 9, H + 2 * H_kv, d, requires_grad=True)
    exact = qkv.detach().double().requires_grad_()
    table = rotary_table(9, d, 1e4, torch.device("cpu"))

    q, k, v = split_heads(qkv, table, H, H_kv)
    parts = exact.split((H, H_kv, H_kv), dim=2)
    expected = rotated(parts[0], 1e4), rotated(parts[1], 1e4), parts[2]
    grads = [torch.randn_like(x) for x in (q, k, v)]
    torch.autograd.backward((q, k, v), grads)
    torch.autograd.backward(expected, [g.double() for g in grads])

    for mine, wanted in zip((q, k, v), expected, strict=True):
        torch.testing.assert_close(mine.double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(qkv.grad.double(), exact.grad, rtol=1e-5, atol=2e-5)


def test_split_heads_computes_bfloat16_in_float32():
    torch.manual_seed(0)
    qkv = torch.randn(2, 9, 4, 16).bfloat16()
    q, k, v = split_heads(qkv, rotary_table(9, 16, 1e4, torch.device("cpu")), 2, 1)
    assert q.dtype == k.dtype == v.dtype == torch.bfloat16
    expected = rotated(qkv[:, :, :2].double(), 1e4)
    # One rounding at the end: half a step of bfloat16.
    torch.testing.assert_close(q.double(), expected, rtol=2**-8, atol=1e-5)


def test_products_of_queries_and_keys_depend_on_their_distance_alone():
    torch.manual_seed(0)
    table = rotary_table(50, 32, 1e4, torch.device("cpu"))
    qkv = torch.randn(1, 1, 3, 32).expand(1, 50, 3, 32)
    q, k, _ = split_heads(qkv, table, 1, 1)
    scores = (q[0, :, 0] @ k[0, :, 0].T).double()
    for distance in (-3, 0, 1, 20):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)
    assert scores.max() - scores.min() > 1


def test_a_head_of_zeros_has_finite_gradients():
    qkv = torch.zeros(1, 2, 3, 16, requires_grad=True)
    q, k, v = split_heads(qkv, rotary_table(2, 16, 1e4, torch.device("cpu")), 1, 1)
    (q.sum() + k.sum() + v.sum()).backward()
    assert not q.any()
    assert qkv.grad.isfinite().all()


@pytest.mark.parametrize("diagonal", [0.0, 1.5])
@pytest.mark.parametrize("beta", [0.0, -2.25])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_symmetric_product_equals_the_formula(alpha, beta, diagonal):
    torch.manual_seed(0)
    x = torch.randn(3, 20, 20)
    x = x + x.mT if beta else x[:, :, :13]
    given = x.clone()
    y = symmetric_product(x, alpha=alpha, beta=beta, diagonal=diagonal)
    expected = alpha * x.double() @ x.double().mT + diagonal * torch.eye(20, dtype=torch.float64)
    if beta:
        expected += beta * x.double()
    assert y.shape == (3, 20, 20)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=2e-5)
    assert torch.equal(x, given)


def test_symmetric_product_of_strided_matrices():
    torch.manual_seed(0)
    x = torch.randn(2, 30, 11).mT
    expected = (x.double() @ x.double().mT).float()
    torch.testing.assert_close(symmetric_product(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_cast_both_ways_rounds_and_saturates(dtype, given):
    torch.manual_seed(0)
    x = (torch.randn(37, 20) * 3).to(given)
    x[0, :3] = torch.tensor([1e30, -1e30, 0.0])
    scale = torch.tensor(37.0)
    narrow, transposed = cast_both_ways(x, scale, dtype)
    assert narrow.dtype == transposed.dtype == dtype
    assert narrow.shape == (37, 20)
    assert transposed.shape == (20, 37)
    assert narrow.is_contiguous()
    assert transposed.is_contiguous()
    assert torch.equal(transposed.T.float(), narrow.float())
    largest = torch.finfo(dtype).max
    assert narrow[0, :3].float().tolist() == [largest, -largest, 0.0]
    exact = (x.double() * 37).clamp(-largest, largest)
    half_step = {torch.float8_e4m3fn: 2**-4, torch.float8_e5m2: 2**-3}[dtype]
    tiny = {torch.float8_e4m3fn: 2**-10, torch.float8_e5m2: 2**-17}[dtype]
    limit = (exact.abs() * half_step).clamp(min=tiny) * (1 + 1e-6)
    assert ((narrow.double() - exact).abs() <= limit).all()


@pytest.mark.parametrize("shape", [(20, 37), (1, 16), (16, 1)])
def test_cast_of_a_transposed_tensor(shape):
    x = torch.randn(shape).T
    narrow, transposed = cast_both_ways(x, torch.tensor(2.0), torch.float8_e4m3fn)
    assert narrow.is_contiguous()
    assert transposed.is_contiguous()
    expected = (x * 2).to(torch.float8_e4m3fn)
    assert torch.equal(narrow.float(), expected.float())
    assert torch.equal(transposed.float(), expected.float().T)


def test_the_operators_keep_the_rules_of_custom_operators():
    x = torch.randn(2, 12, 8)
    torch.library.opcheck(_symmetric_product, (x, 0.5, 0.0, 1.0))
    torch.library.opcheck(_symmetric_product, (x[:, :8], 0.5, 2.0, 0.0))
    # opcheck compares results, and torch compares no 8-bit floats: float16 stands in for them.
    for strided in (x[0], x[0].T):
        torch.library.opcheck(_cast_both_ways, (strided, torch.tensor(2.0), torch.float16))
