"""The custom operators around Liger, with plain PyTorch standing in for its function."""

import pytest
import torch
import torch.nn.functional as F

from nanochat_liger import operators
from nanochat_liger.backend import Liger

N, D, V = 23, 8, 40
IGNORED = -1


def example(ignored="some", dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator).to(dtype)
    weight = torch.randn(V, D, generator=generator).to(dtype)
    targets = torch.randint(0, V, (N,), generator=generator)
    if ignored == "some":
        targets[::3] = IGNORED
    elif ignored == "all":
        targets[:] = IGNORED
    return hidden, weight, targets


def torch_loss(hidden, weight, targets, softcap=None, reduction="mean"):
    logits = hidden.double() @ weight.double().T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction=reduction)


def loss_of(hidden, weight, targets, softcap=None, reduction="mean", **options):
    return operators.linear_cross_entropy(
        hidden, weight, targets, softcap=softcap, reduction=reduction, **options
    )


def gradients(function, hidden, weight, *rest, needs=(True, True)):
    leaves = [
        x.detach().clone().requires_grad_(n) for x, n in zip((hidden, weight), needs, strict=True)
    ]
    loss = function(*leaves, *rest)
    loss.backward(torch.linspace(-1, 2, loss.numel()).view(loss.shape).to(loss.dtype))
    return loss.detach(), [leaf.grad for leaf in leaves]


def assert_same(mine, wanted):
    assert (mine is None) == (wanted is None)
    if mine is not None:
        torch.testing.assert_close(mine.double(), wanted.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("ignored", ["none", "some", "all"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("softcap", [None, 15.0])
def test_autograd_equals_torch(kernel, softcap, reduction, ignored, needs):
    hidden, weight, targets = example(ignored)
    rest = (targets, softcap, reduction)
    mine = gradients(loss_of, hidden, weight, *rest, needs=needs)
    wanted = gradients(torch_loss, hidden, weight, *rest, needs=needs)
    assert mine[0].dtype == torch.float32
    torch.testing.assert_close(mine[0].double(), wanted[0], equal_nan=True, rtol=1e-5, atol=1e-5)
    for a, b in zip(mine[1], wanted[1], strict=True):
        assert_same(a, b)
    # The last call took the gradients: in the forward pass for sums, in the backward for rows.
    assert len(kernel.seen) == (2 if reduction == "none" else 1)
    assert kernel.seen[-1]["needs"] == (True, needs[1])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_second_backward_is_right(kernel, reduction):
    hidden, weight, targets = example()
    hidden.requires_grad_()
    weight.requires_grad_()
    loss = loss_of(hidden, weight, targets, 15.0, reduction).sum()
    first = torch.autograd.grad(3 * loss, (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(3 * loss, (hidden, weight))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignored", ["none", "some"])
def test_the_graph_stays_whole_and_right_when_compiled(kernel, ignored, reduction):
    hidden, weight, targets = example(ignored)
    # The backend that traces forward and backward but generates no code: seconds faster.
    compiled = torch.compile(loss_of, fullgraph=True, backend="aot_eager")
    mine = gradients(compiled, hidden, weight, targets, 15.0, reduction)
    wanted = gradients(loss_of, hidden, weight, targets, 15.0, reduction)
    assert_same(mine[0], wanted[0])
    for a, b in zip(mine[1], wanted[1], strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_operators_keep_the_rules(kernel, dtype):
    hidden, weight, targets = example(dtype=dtype)
    options = (IGNORED, 15.0, False)
    for needs in ((True, True), (False, True)):
        leaves = [x.clone().requires_grad_(n) for x, n in zip((hidden, weight), needs, strict=True)]
        torch.library.opcheck(operators.sum_and_gradients, (*leaves, targets, *options, *needs))
        torch.library.opcheck(operators.row_losses, (*leaves, targets, *options))
        torch.library.opcheck(
            operators.row_gradients, (torch.rand(N), hidden, weight, targets, *options, *needs)
        )


def test_no_gradient_is_computed_where_none_is_needed(kernel):
    hidden, weight, targets = example()
    assert not loss_of(hidden, weight, targets).requires_grad
    with torch.no_grad():
        loss_of(hidden, weight.requires_grad_(), targets)
    assert [seen["needs"] for seen in kernel.seen] == [(False, False)] * 2


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_no_rows_at_all(kernel, reduction):
    hidden = torch.zeros(0, D, requires_grad=True)
    weight = torch.randn(V, D, requires_grad=True)
    targets = torch.zeros(0, dtype=torch.int64)
    assert loss_of(hidden, weight, targets).isnan()
    loss_of(hidden, weight, targets, reduction=reduction).sum().backward()
    assert not weight.grad.any()
    assert hidden.grad.shape == (0, D)


def test_sums_in_float32_reach_the_kernel(kernel):
    hidden, weight, targets = example(dtype=torch.bfloat16)
    weight.requires_grad_()
    for reduction in ("mean", "none"):
        for asked, dtype in ((False, None), (True, torch.float32)):
            loss = loss_of(hidden, weight, targets, None, reduction, accumulate_float32=asked)
            loss.sum().backward()
            assert kernel.seen[-1]["sum"] == dtype


def test_the_samples_for_the_conformance_suite_fit(kernel):
    backend = Liger()
    backend._operators = operators
    for operator, arguments in backend.operator_samples("cpu"):
        torch.library.opcheck(operator, arguments)
