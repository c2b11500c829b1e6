"""The custom operators around Cut Cross-Entropy, with plain PyTorch standing in for its kernels."""

import pytest
import torch
import torch.nn.functional as F

from nanochat_cce import operators
from nanochat_cce.backend import CutCrossEntropy
from nanochat_cce.options import Options

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


def loss_of(hidden, weight, targets, softcap=None, reduction="mean", options=None):
    return operators.linear_cross_entropy(
        hidden,
        weight,
        targets,
        softcap=softcap,
        reduction=reduction,
        options=options or Options(),
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
def test_autograd_equals_torch(kernels, softcap, reduction, ignored, needs):
    hidden, weight, targets = example(ignored)
    rest = (targets, softcap, reduction)
    mine = gradients(loss_of, hidden, weight, *rest, needs=needs)
    wanted = gradients(torch_loss, hidden, weight, *rest, needs=needs)
    assert mine[0].dtype == torch.float32
    torch.testing.assert_close(mine[0].double(), wanted[0], equal_nan=True, rtol=1e-5, atol=1e-5)
    for a, b in zip(mine[1], wanted[1], strict=True):
        assert_same(a, b)
    # The gradient that nobody needs is not computed either.
    assert {seen["needs"] for seen in kernels.seen} == {needs}


def test_a_second_backward_is_right(kernels):
    hidden, weight, targets = example()
    hidden.requires_grad_()
    loss = loss_of(hidden, weight, targets)
    (first,) = torch.autograd.grad(3 * loss, hidden, retain_graph=True)
    (second,) = torch.autograd.grad(3 * loss, hidden)
    assert torch.equal(first, second)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignored", ["none", "some"])
def test_the_graph_stays_whole_when_compiled(kernels, ignored, reduction):
    hidden, weight, targets = example(ignored)
    # The backend that traces forward and backward but generates no code: seconds faster.
    compiled = torch.compile(loss_of, fullgraph=True, backend="aot_eager")
    mine = gradients(compiled, hidden, weight, targets, 15.0, reduction)
    wanted = gradients(loss_of, hidden, weight, targets, 15.0, reduction)
    assert_same(mine[0], wanted[0])
    for a, b in zip(mine[1], wanted[1], strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("operator", [operators.row_losses, operators.total_loss])
def test_operators_keep_the_rules(kernels, operator, dtype):
    hidden, weight, targets = example(dtype=dtype)
    arguments = (targets, IGNORED, 15.0, 1e-4, False)
    torch.library.opcheck(
        operator, (hidden.requires_grad_(), weight.requires_grad_(), *arguments, True)
    )
    with torch.no_grad():
        losses, lse, means = operator(hidden, weight, *arguments, True)
    for needs in ((True, True), (False, True)):
        torch.library.opcheck(
            operators.row_gradients,
            (losses, hidden.detach(), weight.detach(), targets, lse, means, *arguments[1:], *needs),
        )


def test_no_rows_at_all(kernels):
    hidden = torch.zeros(0, D, requires_grad=True)
    weight = torch.randn(V, D, requires_grad=True)
    targets = torch.zeros(0, dtype=torch.int64)
    assert loss_of(hidden, weight, targets).isnan()
    loss_of(hidden, weight, targets, reduction="sum").backward()
    assert not weight.grad.any()
    assert hidden.grad.shape == (0, D)


def test_strided_inputs(kernels):
    hidden, weight, targets = example("none")
    wide, tall = torch.randn(N, 2 * D), torch.randn(D, V)
    wide[:, ::2], tall[:] = hidden, weight.T
    assert_same(loss_of(wide[:, ::2], tall.T, targets), loss_of(hidden, weight, targets))


def test_options_reach_the_kernels(kernels):
    hidden, weight, targets = example(dtype=torch.bfloat16)
    for options, eps in (
        (Options(), 2**-12),
        (Options(filter_eps=None), None),
        (Options(filter_eps=0.01, accumulate_float32=True), 0.01),
    ):
        leaf = hidden.clone().requires_grad_()
        loss_of(leaf, weight, targets, options=options).backward()
        seen = kernels.seen[-1]
        assert seen["filter_eps"] == eps
        assert seen["accumulate_float32"] == options.accumulate_float32
        # The order of words serves the filter alone.
        assert seen["means"] == (eps is not None)
    assert Options().threshold("float16") == torch.finfo(torch.float16).eps / 32
    assert Options().threshold("float32") == torch.finfo(torch.float32).eps / 32


def test_the_samples_for_the_conformance_suite_fit(kernels):
    backend = CutCrossEntropy()
    backend._operators = operators
    for operator, arguments in backend.operator_samples("cpu"):
        torch.library.opcheck(operator, arguments)
