"""Upstream's Triton kernels on the CPU, run by `test_cce_interpreted.py` in a process of its own.

Triton decides when it is imported whether it interprets kernels (TRITON_INTERPRET=1). Its
interpreter is no GPU: no races, no bfloat16 arithmetic, no filter that saves time. What is tested
is that this plugin and the kernels mean the same. Not collected by name.
"""

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.language.extra import libdevice
from triton.runtime import interpreter

from nanochat_cce import operators
from nanochat_cce.backend import CutCrossEntropy
from nanochat_cce.kernels import load
from nanochat_cce.options import Options

IGNORED = -1
NEWER = load().info is not None
EXACT = Options(filter_eps=None)


@pytest.fixture(autouse=True)
def mended_interpreter(monkeypatch):
    """Triton's interpreter returns None from libdevice, and its `dot` rounds sums to float16."""

    def elementwise(function):
        def apply(x, _semantic=None):
            return tl.tensor(interpreter.TensorHandle(function(x.handle.data), x.dtype), x.type)

        return apply

    for name in ("tanh", "log1p"):
        monkeypatch.setattr(libdevice, name, elementwise(getattr(np, name)))

    def dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        exact = np.matmul(a.data.astype(np.float32), b.data.astype(np.float32)) + d.data
        return interpreter.TensorHandle(exact.astype(d.data.dtype), d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)


def example(n, d, v, dtype, ignored="some", scale=1.0):
    generator = torch.Generator().manual_seed(n + d + v)
    hidden = (scale * torch.randn(n, d, generator=generator)).to(dtype)
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


def loss_of(hidden, weight, targets, softcap=None, reduction="mean", options=EXACT):
    return operators.linear_cross_entropy(
        hidden, weight, targets, softcap=softcap, reduction=reduction, options=options
    )


def assert_close(mine, exact, dtype):
    # The release multiplies hidden and weight in their own dtype for the logit of the target, and
    # sums gradients there: a few units of float16. Relative to the largest element.
    tolerance = 2e-2 if dtype == torch.float16 else 2e-5
    assert mine is not None
    assert (mine.double() - exact).abs().max() <= tolerance * max(exact.abs().max(), 1e-3)


DTYPES = [torch.float16, *([torch.float32] if NEWER else [])]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    ("n", "d", "v", "softcap", "ignored"),
    [
        (40, 48, 200, None, "none"),  # less than a tile of rows, tiles of words cut short
        (150, 64, 130, 15.0, "some"),
        (300, 40, 128, 5.0, "some"),  # several tiles of rows, an odd depth, a single tile of words
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


@pytest.mark.parametrize("alone", ["hidden", "weight"])
def test_one_gradient_alone_and_a_second_backward(alone):
    hidden, weight, targets = example(40, 32, 70, torch.float16)
    leaf = (hidden if alone == "hidden" else weight).requires_grad_()
    loss = loss_of(hidden, weight, targets, 15.0)
    rows, *exact = reference(hidden, weight, targets, 15.0)
    reduce(rows, targets, "mean").backward()
    wanted = exact[alone == "weight"].grad
    (first,) = torch.autograd.grad(2 * loss, leaf, retain_graph=True)
    (second,) = torch.autograd.grad(loss, leaf)
    assert_close(first, 2 * wanted, torch.float16)
    assert_close(second, wanted, torch.float16)


def test_no_gradient_is_needed():
    hidden, weight, targets = example(40, 32, 70, torch.float16)
    rows, *_ = reference(hidden, weight, targets, 15.0)
    assert_close(loss_of(hidden, weight, targets, 15.0, "none"), rows, torch.float16)
    with torch.no_grad():
        loss = loss_of(hidden, weight.requires_grad_(), targets, 15.0)
    assert not loss.requires_grad


def test_all_ignored():
    hidden, weight, targets = example(40, 32, 70, torch.float16, "all")
    hidden.requires_grad_()
    weight.requires_grad_()
    assert loss_of(hidden, weight, targets, reduction="sum") == 0
    loss = loss_of(hidden, weight, targets)
    assert loss.isnan()
    loss.backward()
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_the_filter_drops_only_small_gradients():
    # Sharp logits: few words hold the probability, so whole tiles of the others are small.
    hidden, weight, targets = example(20, 32, 400, torch.float16, "none", scale=12.0)
    targets.copy_((hidden.float() @ weight.float().T).argmax(-1))
    rows, _, exact = reference(hidden, weight, targets, None)
    rows.sum().backward()
    grads = []
    for eps in ("auto", 0.9):
        leaf = weight.clone().requires_grad_()
        loss_of(hidden, leaf, targets, reduction="sum", options=Options(filter_eps=eps)).backward()
        grads.append(leaf.grad)
    assert_close(grads[0], exact.grad, torch.float16)
    untouched = [(grad == 0).all(1).sum() for grad in grads]
    assert untouched[1] > untouched[0]


@pytest.mark.skipif(not NEWER, reason="sums in float32 are of 25.6, not of this version")
def test_sums_in_float32_are_more_exact():
    hidden, weight, targets = example(600, 32, 70, torch.float16)
    rows, _, exact = reference(hidden, weight, targets, 15.0)
    rows.sum().backward()
    errors = []
    for accumulate in (False, True):
        leaf = weight.clone().requires_grad_()
        options = Options(filter_eps=None, accumulate_float32=accumulate)
        loss_of(hidden, leaf, targets, 15.0, "sum", options).backward()
        errors.append((leaf.grad.double() - exact.grad).norm())
    assert errors[1] <= errors[0]


def test_operators_keep_the_rules():
    hidden, weight, targets = example(20, 32, 40, torch.float16)
    hidden.requires_grad_()
    weight.requires_grad_()
    # The interpreter adds up in the order of its tiles: the same every time.
    torch.library.opcheck(
        operators.row_losses, (hidden, weight, targets, -1, 15.0, 1e-5, False, True)
    )


def test_the_backend_as_a_model_calls_it():
    backend = CutCrossEntropy()
    backend.load()
    hidden, weight, targets = example(40, 32, 70, torch.float16)
    rows, *_ = reference(hidden, weight, targets, 15.0)
    loss = backend.linear_cross_entropy(hidden, weight, targets, softcap=15.0)
    assert_close(loss, reduce(rows, targets, "mean"), torch.float16)
