"""Upstream's Triton kernel on the CPU, run by `test_liger_interpreted.py` in a process of its own.

Triton decides when it is imported whether it interprets kernels (TRITON_INTERPRET=1). Its
interpreter is no GPU: no races and no bfloat16 arithmetic. What is tested is that this plugin and
the kernel mean the same. Not collected by name.
"""

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.language.extra import libdevice
from triton.runtime import interpreter

from nanochat_liger import operators
from nanochat_liger.backend import Liger

IGNORED = -1


@pytest.fixture(autouse=True)
def mended_interpreter(monkeypatch):
    """Triton's interpreter returns None from libdevice and leaves floats what they are."""

    def tanh(x, _semantic=None):
        return tl.tensor(interpreter.TensorHandle(np.tanh(x.handle.data), x.dtype), x.type)

    # The kernel has imported it by name.
    from liger_kernel.ops import cross_entropy

    monkeypatch.setattr(libdevice, "tanh", tanh)
    monkeypatch.setattr(cross_entropy, "tanh", tanh)
    convert = interpreter._implicit_cvt

    def convert_floats(value):
        if isinstance(value, float):
            handle = interpreter.TensorHandle(np.array([value], np.float32), tl.float32)
            return tl.tensor(handle, tl.float32)
        return convert(value)

    monkeypatch.setattr(interpreter, "_implicit_cvt", convert_floats)


def example(n, d, v, dtype, ignored="some"):
    generator = torch.Generator().manual_seed(n + d + v)
    hidden = torch.randn(n, d, generator=generator).to(dtype)
    weight = (torch.randn(v, d, generator=generator) / d**0.5).to(dtype)
    targets = torch.randint(0, v, (n,), generator=generator)
    if ignored == "some":
        targets[::3] = IGNORED
    elif ignored == "all":
        targets[:] = IGNORED
    return hidden, weight, targets


def reference(hidden, weight, targets, softcap):
    """Row losses by the formula, in float64, and the leaves they depend on."""
    hidden, weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    valid = targets != IGNORED
    picked = logits.gather(1, targets.where(valid, 0)[:, None])[:, 0]
    return (logits.logsumexp(-1) - picked) * valid, hidden, weight


def reduce(rows, targets, reduction):
    if reduction == "none":
        return rows
    return rows.sum() / ((targets != IGNORED).sum() if reduction == "mean" else 1)


def loss_of(hidden, weight, targets, softcap=None, reduction="mean", **options):
    return operators.linear_cross_entropy(
        hidden, weight, targets, softcap=softcap, reduction=reduction, **options
    )


def assert_close(mine, exact, dtype):
    # Logits are rounded to the dtype of their factors. Relative to the largest element.
    tolerance = 1e-2 if dtype == torch.float16 else 2e-5
    assert mine is not None
    assert (mine.double() - exact).abs().max() <= tolerance * max(exact.abs().max(), 1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    ("n", "d", "v", "softcap", "ignored"),
    [
        (30, 48, 200, None, "none"),
        (70, 16, 130, 15.0, "some"),  # many chunks, the last cut short
        (40, 40, 33, 5.0, "some"),
    ],
)
def test_losses_and_gradients(n, d, v, softcap, ignored, reduction, dtype):
    hidden, weight, targets = example(n, d, v, dtype, ignored)
    hidden.requires_grad_()
    weight.requires_grad_()
    loss = loss_of(hidden, weight, targets, softcap, reduction)
    rows, *exact = reference(hidden, weight, targets, softcap)
    expected = reduce(rows, targets, reduction)
    upstream = torch.linspace(-1, 2, n) if reduction == "none" else torch.tensor(0.7)
    loss.backward(upstream)
    expected.backward(upstream.double())
    assert loss.dtype == torch.float32
    assert loss.shape == expected.shape
    assert_close(loss, expected, dtype)
    assert_close(hidden.grad, exact[0].grad, dtype)
    assert_close(weight.grad, exact[1].grad, dtype)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("alone", ["hidden", "weight"])
def test_one_gradient_alone_and_a_second_backward(alone, reduction):
    """Upstream loses the weight's gradient there, and scales twice."""
    hidden, weight, targets = example(40, 16, 70, torch.float32)
    leaf = (hidden if alone == "hidden" else weight).requires_grad_()
    loss = loss_of(hidden, weight, targets, 15.0, reduction).sum()
    rows, *exact = reference(hidden, weight, targets, 15.0)
    reduce(rows, targets, reduction).sum().backward()
    wanted = exact[alone == "weight"].grad
    (first,) = torch.autograd.grad(3 * loss, leaf, retain_graph=True)
    (second,) = torch.autograd.grad(3 * loss, leaf)
    assert_close(first, 3 * wanted, torch.float32)
    assert_close(second, 3 * wanted, torch.float32)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_gradient_is_needed(reduction):
    hidden, weight, targets = example(40, 16, 70, torch.float32)
    rows, *_ = reference(hidden, weight, targets, 15.0)
    expected = reduce(rows, targets, reduction)
    assert_close(loss_of(hidden, weight, targets, 15.0, reduction), expected, torch.float32)
    with torch.no_grad():
        loss = loss_of(hidden, weight.requires_grad_(), targets, 15.0, reduction)
    assert not loss.requires_grad


def test_all_ignored():
    """Upstream's mean is 0.0 there."""
    hidden, weight, targets = example(40, 16, 70, torch.float32, "all")
    hidden.requires_grad_()
    weight.requires_grad_()
    assert loss_of(hidden, weight, targets, reduction="sum") == 0
    loss = loss_of(hidden, weight, targets)
    assert loss.isnan()
    loss.backward()
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_sums_in_float32_are_more_exact():
    hidden, weight, targets = example(400, 8, 100, torch.float16)
    rows, _, exact = reference(hidden, weight, targets, 15.0)
    rows.sum().backward()
    errors = []
    for accumulate in (False, True):
        leaf = weight.clone().requires_grad_()
        loss_of(hidden, leaf, targets, 15.0, "sum", accumulate_float32=accumulate).backward()
        assert leaf.grad.dtype == torch.float16
        errors.append((leaf.grad.double() - exact.grad).norm())
    assert errors[1] < errors[0]


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
def test_operators_keep_the_rules(needs):
    hidden, weight, targets = example(20, 16, 40, torch.float32)
    hidden.requires_grad_(needs[0])
    weight.requires_grad_(needs[1])
    options = (-1, 15.0, False)
    torch.library.opcheck(operators.sum_and_gradients, (hidden, weight, targets, *options, *needs))
    torch.library.opcheck(operators.row_losses, (hidden, weight, targets, *options))


def test_the_backend_as_a_model_calls_it():
    backend = Liger()
    backend.load()
    hidden, weight, targets = example(40, 16, 70, torch.float32)
    rows, *_ = reference(hidden, weight, targets, 15.0)
    loss = backend.linear_cross_entropy(hidden, weight, targets, softcap=15.0)
    assert_close(loss, reduce(rows, targets, "mean"), torch.float32)
