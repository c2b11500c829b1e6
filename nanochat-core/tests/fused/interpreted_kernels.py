"""The Triton kernels on the CPU, run by `test_triton_kernels.py` in a process of its own.

Triton decides when it is imported whether it interprets kernels (TRITON_INTERPRET=1), so these
cannot run beside tests that compile. Not collected by name.
"""

import pytest
import torch

from nanochat.fused import cast, heads, softmax_gradient, symmetric

CPU = torch.device("cpu")


def qkv_of(H, H_kv, d, dtype=torch.float32):
    torch.manual_seed(H * 10 + H_kv)
    return torch.randn(2, 7, H + 2 * H_kv, d, dtype=dtype)


def formula(x, table):
    """RMSNorm and rotary positions in float64, from the table that the kernel is given."""
    swapped = x.roll(x.size(-1) // 2, -1)
    scale = (x.square().mean(-1, keepdim=True) + heads.EPS).rsqrt()
    return (x * table[0].double() + swapped * table[1].double()) * scale


def plain(x):
    return x.contiguous()


def head_first(x):
    """The same values as attention hands gradients back: (B, H, T, d) in memory."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def channel_last_but_one(x):
    """A last dimension that is not contiguous."""
    return x.transpose(2, 3).contiguous().transpose(2, 3)


@pytest.mark.parametrize("layout", [plain, head_first, channel_last_but_one])
@pytest.mark.parametrize(("H", "H_kv", "d"), [(3, 3, 16), (4, 2, 16), (1, 1, 32), (6, 1, 16)])
def test_split_heads(H, H_kv, d, layout):
    qkv, table = qkv_of(H, H_kv, d), heads.rotary_table(7, d, 1e4, CPU)
    leaf = qkv.clone().requires_grad_()
    q, k, v, scale = heads._split_heads(leaf, table, H, H_kv)
    grads = [torch.randn_like(x) for x in (q, k, v)]
    torch.autograd.backward((q, k, v), [layout(g) for g in grads])

    exact = qkv.double().requires_grad_()
    parts = exact.split((H, H_kv, H_kv), dim=2)
    expected = formula(parts[0], table), formula(parts[1], table), parts[2]
    torch.autograd.backward(expected, [g.double() for g in grads])
    for mine, wanted in zip((q, k, v), expected, strict=True):
        torch.testing.assert_close(mine.double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=1e-5, atol=2e-5)
    both = qkv[:, :, : H + H_kv].double()
    wanted = (both.square().mean(-1) + heads.EPS).rsqrt()
    torch.testing.assert_close(scale.double(), wanted, rtol=1e-5, atol=0)


def test_split_heads_of_strided_input_and_unused_outputs():
    H, H_kv, d = 4, 2, 16
    table = heads.rotary_table(7, d, 1e4, CPU)
    wide = torch.randn(2, 7, 8, 2 * d)
    qkv = wide[..., ::2]
    leaf = qkv.clone().requires_grad_()
    q = heads._split_heads(leaf, table, H, H_kv)[0]
    assert torch.equal(q, heads._split_heads(qkv, table, H, H_kv)[0])
    q.sum().backward()  # an expanded gradient for q, none for k and v
    assert not leaf.grad[:, :, H:].any()
    exact = qkv.double().requires_grad_()
    formula(exact[:, :, :H], table).sum().backward()
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=1e-5, atol=2e-5)


def test_split_heads_in_bfloat16():
    qkv, table = qkv_of(2, 1, 16, torch.bfloat16), heads.rotary_table(7, 16, 1e4, CPU)
    q, k, v, scale = heads._split_heads(qkv, table, 2, 1)
    assert q.dtype == k.dtype == v.dtype == torch.bfloat16
    assert scale.dtype == torch.float32
    expected = formula(qkv[:, :, :2].double(), table)
    torch.testing.assert_close(q.double(), expected, rtol=2**-7, atol=1e-4)


def test_split_heads_keeps_the_rules_of_custom_operators():
    table = heads.rotary_table(7, 16, 1e4, CPU)
    qkv = qkv_of(4, 2, 16)
    torch.library.opcheck(heads._split_heads, (qkv.requires_grad_(), table, 4, 2))
    with torch.no_grad():
        q, k, v, scale = heads._split_heads(qkv, table, 4, 2)
    torch.library.opcheck(heads._split_heads_backward, (q, k, v, q, k, scale, table))


# One tile and less, exactly one, and several with the last cut short; likewise in depth.
@pytest.mark.parametrize(("count", "m", "n"), [(3, 10, 12), (1, 128, 64), (2, 300, 70)])
@pytest.mark.parametrize("diagonal", [0.0, 2.0])
def test_symmetric_product(count, m, n, diagonal):
    torch.manual_seed(0)
    x = torch.randn(count, m, n)
    y = symmetric._triton_product(x, 0.5, 0.0, diagonal)
    expected = 0.5 * x.double() @ x.double().mT + diagonal * torch.eye(m, dtype=torch.float64)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(y, y.mT)


@pytest.mark.parametrize("m", [20, 257])
def test_symmetric_product_with_the_matrix_added(m):
    torch.manual_seed(0)
    x = torch.randn(2, m, m)
    x = (x + x.mT) / m**0.5
    y = symmetric._triton_product(x, 0.5, -3.0, 1.0)
    wide = x.double()
    expected = 0.5 * wide @ wide - 3 * wide + torch.eye(m, dtype=torch.float64)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(5, 3), (128, 128), (200, 130), (1, 300)])
@pytest.mark.parametrize("transposed", [False, True])
def test_cast_both_ways(shape, transposed):
    # To float16 and not to 8-bit floats: the interpreter's casts to those are not the hardware's
    # (steps of 64 off at the top of e4m3). Places and saturation are what is tested here.
    torch.manual_seed(0)
    x = torch.randn(*shape[::-1]).T if transposed else torch.randn(*shape)
    x[0, :3] = torch.tensor([1e30, -1e30, 1.0])
    narrow, turned = cast._triton_cast(x, torch.tensor(100.0), torch.float16)
    expected = (x.double() * 100).clamp(-65504, 65504)
    torch.testing.assert_close(narrow.double(), expected, rtol=2**-10, atol=1e-6)
    assert narrow.is_contiguous()
    assert turned.is_contiguous()
    assert torch.equal(turned, narrow.T)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("vocab", [1, 16, 37])  # less than a block, one block, and more than two
def test_softmax_and_gradient(vocab, softcap, monkeypatch):
    monkeypatch.setattr(softmax_gradient, "BLOCK", 16)
    torch.manual_seed(0)
    z = torch.randn(6, vocab) * 4
    z[1] *= 50  # exp() of these overflows
    targets = torch.randint(vocab, (6,))
    targets[::4] = -7
    grad = z.clone()
    losses = softmax_gradient._triton_softmax(grad, targets, -7, softcap)

    exact = z.double().requires_grad_()
    capped = exact if softcap is None else softcap * (exact / softcap).tanh()
    expected = torch.nn.functional.cross_entropy(capped, targets, ignore_index=-7, reduction="none")
    expected.sum().backward()
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad.double(), exact.grad, rtol=1e-4, atol=1e-6)


def test_softmax_and_gradient_of_no_rows():
    none = torch.empty(0, 5)
    assert softmax_gradient._triton_softmax(none, torch.empty(0).long(), -1, 15.0).shape == (0,)
