"""The loss backends of the core against the formula in float64."""

import json
import warnings

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from nanochat.builtin import chunked_cross_entropy, chunks
from nanochat.builtin.loss import Chunked, Torch

N, D, V = 53, 16, 40
IGNORED = -1


def never(*tensors):
    return False


@pytest.fixture(params=["torch", "chunked", "chunked, recorded", "chunked by torch's operator"])
def backend(request, monkeypatch):
    """Every implementation; where torch has an operator of its own, ours is run beside it."""
    if request.param in ("chunked", "chunked, recorded"):
        monkeypatch.setattr(chunked_cross_entropy, "_torch_has_its_own", never)
        if "recorded" in request.param:
            monkeypatch.setattr(chunked_cross_entropy, "RECORDED", ("cpu",))
    elif "operator" in request.param and not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        pytest.skip(f"torch {torch.__version__} has no operator of its own (2.13 has)")
    backend = Torch() if request.param == "torch" else Chunked()
    backend.load()
    return backend


@pytest.fixture
def chunked():
    backend = Chunked()
    backend.load()
    return backend


@pytest.fixture
def chunks_of(monkeypatch):
    """Sets how many rows a chunk has at most; how it is summed follows from that."""

    def set_rows(rows):
        monkeypatch.setattr(chunks, "STEP", 1)
        monkeypatch.setattr(chunks, "_rows_in", lambda scratch, vocab: rows)

    return set_rows


@pytest.fixture(autouse=True)
def small_chunks(chunks_of):
    """53 rows come in chunks of 18, 18 and 17."""
    chunks_of(20)


def example(dtype=torch.float32, ignored="some", n=N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, D, generator=generator).to(dtype)
    weight = torch.randn(V, D, generator=generator).to(dtype)
    targets = torch.randint(0, V, (n,), generator=generator)
    if ignored == "some":
        targets[::4] = IGNORED
    elif ignored == "a chunk":
        targets[18:36] = IGNORED
    elif ignored == "all":
        targets[:] = IGNORED
    return hidden, weight, targets


def reference(hidden, weight, targets, softcap=None, reduction="mean", ignore_index=IGNORED):
    """The loss and its gradient with respect to the logits' factors, by the formula, in float64."""
    hidden, weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    valid = targets != ignore_index
    picked = logits[torch.arange(len(targets)), targets.where(valid, 0)]
    rows = (logits.exp().sum(-1).log() - picked) * valid
    if reduction == "none":
        return rows, hidden, weight
    return rows.sum() / (valid.sum() if reduction == "mean" else 1), hidden, weight


def assert_gradients(ours, exact, tolerance=2e-5):
    for mine, wanted in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine.grad.double(), wanted.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("ignored", ["none", "some", "a chunk"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("softcap", [None, 5.0, 15.0])
def test_loss_and_gradients_equal_the_formula(backend, softcap, reduction, ignored):
    hidden, weight, targets = example(ignored=ignored)
    hidden.requires_grad_()
    weight.requires_grad_()
    loss = backend.linear_cross_entropy(
        hidden, weight, targets, softcap=softcap, reduction=reduction
    )
    expected, *exact = reference(hidden, weight, targets, softcap, reduction)
    upstream = torch.linspace(-1, 2, N) if reduction == "none" else torch.tensor(0.7)
    loss.backward(upstream)
    expected.backward(upstream.double())

    assert loss.dtype == torch.float32
    assert loss.shape == expected.shape
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    assert_gradients((hidden, weight), exact)


@pytest.mark.parametrize("rows", [1, 52, 53, 54, 1000])
def test_chunks_of_any_size_give_the_same(chunked, chunks_of, rows):
    chunks_of(rows)
    for reduction in ("mean", "none"):
        for softcap in (None, 15.0):
            hidden, weight, targets = example()
            hidden.requires_grad_()
            weight.requires_grad_()
            loss = chunked.linear_cross_entropy(
                hidden, weight, targets, softcap=softcap, reduction=reduction
            )
            expected, *exact = reference(hidden, weight, targets, softcap, reduction)
            loss.sum().backward()
            expected.sum().backward()
            torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
            assert_gradients((hidden, weight), exact)


@pytest.mark.parametrize("softcap", [None, 15.0])
@pytest.mark.parametrize("loss", ["chunked", "torch"])
def test_no_rows_to_count_give_no_gradient(loss, softcap):
    """A batch without a single target must not poison what other batches have accumulated."""
    backend = Chunked() if loss == "chunked" else Torch()
    backend.load()
    hidden = torch.randn(12, 8, requires_grad=True)
    weight = torch.randn(20, 8, requires_grad=True)
    targets = torch.full((12,), -1)
    backend.linear_cross_entropy(hidden, weight, targets, softcap=softcap).backward()
    assert not hidden.grad.any()
    assert not weight.grad.any()


@pytest.mark.parametrize("softcap", [None, 15.0])
def test_a_mean_over_no_rows_is_nan_and_a_sum_zero(backend, softcap):
    for n in (N, 0):
        hidden, weight, targets = example(ignored="all", n=n)
        hidden.requires_grad_()
        weight.requires_grad_()
        loss = backend.linear_cross_entropy(hidden, weight, targets, softcap=softcap)
        assert loss.isnan()
        total = backend.linear_cross_entropy(
            hidden, weight, targets, softcap=softcap, reduction="sum"
        )
        assert total == 0
        total.backward()
        assert not hidden.grad.any()
        assert not weight.grad.any()
        rows = backend.linear_cross_entropy(
            hidden, weight, targets, softcap=softcap, reduction="none"
        )
        assert rows.shape == (n,)
        assert not rows.any()


def test_ignore_index_may_be_any_number(backend):
    hidden, weight, targets = example(ignored="none")
    for index in (-100, int(targets[5])):
        loss = backend.linear_cross_entropy(hidden, weight, targets, ignore_index=index)
        expected, *_ = reference(hidden, weight, targets, ignore_index=index)
        torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("softcap", [None, 15.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("wanted", ["hidden", "weight"])
def test_gradient_of_one_factor_alone(backend, wanted, reduction, softcap):
    hidden, weight, targets = example()
    (hidden if wanted == "hidden" else weight).requires_grad_()
    loss = backend.linear_cross_entropy(
        hidden, weight, targets, softcap=softcap, reduction=reduction
    )
    loss.sum().backward()
    expected, exact_hidden, exact_weight = reference(hidden, weight, targets, softcap, reduction)
    expected.sum().backward()
    if wanted == "hidden":
        assert_gradients([hidden], [exact_hidden])
        assert weight.grad is None
    else:
        assert_gradients([weight], [exact_weight])
        assert hidden.grad is None


@pytest.mark.parametrize("softcap", [None, 15.0])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_second_backward_pass_finds_the_same_gradients(backend, reduction, softcap):
    hidden, weight, targets = example()
    hidden.requires_grad_()
    weight.requires_grad_()
    loss = backend.linear_cross_entropy(
        hidden, weight, targets, softcap=softcap, reduction=reduction
    ).sum()
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    kept = [g.clone() for g in first]
    for g in first:
        g.zero_()  # what is done to the first result must not reach the second
    second = torch.autograd.grad(loss, (hidden, weight))
    for a, b in zip(kept, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("softcap", [None, 15.0])
@pytest.mark.parametrize("scale", [lambda x: x * 3, lambda x: x / 8])
def test_gradients_scale_with_the_loss(backend, scale, softcap):
    hidden, weight, targets = example()
    hidden.requires_grad_()
    weight.requires_grad_()
    scale(backend.linear_cross_entropy(hidden, weight, targets, softcap=softcap)).backward()
    expected, *exact = reference(hidden, weight, targets, softcap)
    scale(expected).backward()
    assert_gradients((hidden, weight), exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("softcap", [None, 15.0])
@pytest.mark.parametrize("rows", [20, 500])
def test_chunks_in_a_narrow_dtype_are_as_good_as_the_plain_loss(chunks_of, dtype, softcap, rows):
    """Over 100 chunks, where gradients summed in the narrow dtype would fail, and over 4."""
    chunks_of(rows)
    errors = {}
    for kind in (Torch, Chunked):
        backend = kind()
        backend.load()
        hidden, weight, targets = example(dtype, n=2000)
        hidden.requires_grad_()
        weight.requires_grad_()
        loss = backend.linear_cross_entropy(hidden, weight, targets, softcap=softcap)
        loss.backward()
        expected, *exact = reference(hidden, weight, targets, softcap)
        expected.backward()
        assert loss.dtype == torch.float32
        assert hidden.grad.dtype == weight.grad.dtype == dtype
        errors[kind.name] = [
            (loss.double() - expected).abs() / expected.abs(),
            *(
                (mine.grad.double() - wanted.grad).norm() / wanted.grad.norm()
                for mine, wanted in zip((hidden, weight), exact, strict=True)
            ),
        ]
    rounding = torch.finfo(dtype).eps
    for ours, plain in zip(errors["chunked"], errors["torch"], strict=True):
        assert ours < 1.2 * plain + 0.1 * rounding


def test_large_logits_do_not_overflow(backend):
    hidden, weight, targets = example()
    for softcap in (None, 15.0):
        big = (hidden * 100).requires_grad_()
        loss = backend.linear_cross_entropy(big, weight, targets, softcap=softcap)
        loss.backward()
        logits = big.detach().double() @ weight.double().T
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        valid = targets != IGNORED
        picked = logits[torch.arange(N), targets.where(valid, 0)]
        expected = ((torch.logsumexp(logits, -1) - picked) * valid).sum() / valid.sum()
        torch.testing.assert_close(loss.detach().double(), expected, rtol=1e-5, atol=1e-5)
        assert big.grad.isfinite().all()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_inputs_of_any_strides(backend, reduction):
    hidden, weight, targets = example()
    wide = torch.randn(N, 2 * D)
    wide[:, ::2] = hidden
    cases = (wide[:, ::2], weight), (hidden.T.contiguous().T, weight.T.contiguous().T)
    for strided in cases:
        leaves = [x.detach().requires_grad_() for x in strided]
        loss = backend.linear_cross_entropy(*leaves, targets, reduction=reduction)
        loss.sum().backward()
        expected, *exact = reference(hidden, weight, targets, reduction=reduction)
        expected.sum().backward()
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
        assert_gradients(leaves, exact)


@pytest.mark.parametrize("softcap", [None, 15.0])
def test_compiled_in_one_graph_equals_eager(chunked, softcap):
    hidden, weight, targets = example()

    def model(x, w):
        return chunked.linear_cross_entropy(torch.relu(x), w, targets, softcap=softcap) * 2

    results = []
    for function in (model, torch.compile(model, fullgraph=True, dynamic=False)):
        leaves = [x.clone().requires_grad_() for x in (hidden, weight)]
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            loss = function(*leaves)
            loss.backward()
        results.append((loss.detach(), *(x.grad for x in leaves)))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_operator_keeps_the_rules_of_custom_operators(dtype, strided):
    hidden, weight, targets = example(dtype)
    if strided:
        hidden, weight = hidden.T.contiguous().T, weight.T.contiguous().T
    for needs in ((True, True), (True, False), (False, True), (False, False)):
        inputs = [
            x.detach().requires_grad_(n) for x, n in zip((hidden, weight), needs, strict=True)
        ]
        torch.library.opcheck(
            chunked_cross_entropy._loss_and_gradients, (*inputs, targets, IGNORED, 15.0, *needs)
        )


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("softcap", [None, 15.0])
def test_the_logits_are_never_held(backend, tmp_path, softcap, reduction):
    """By every allocation, those within operators too, of the forward and the backward pass."""
    n, vocab = 400, 3000
    torch.manual_seed(0)
    hidden = torch.randn(n, D, requires_grad=True)
    weight = torch.randn(vocab, D, requires_grad=True)
    targets = torch.randint(0, vocab, (n,))

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        backend.linear_cross_entropy(
            hidden, weight, targets, softcap=softcap, reduction=reduction
        ).sum().backward()
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    trace = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    memory = [event["args"] for event in trace if event["name"] == "[memory]"]
    totals = [facts["Total Allocated"] for facts in memory]

    assert hidden.grad is not None
    assert weight.grad is not None
    logits, chunk, parameters = 4 * n * vocab, 4 * 20 * vocab, 4 * vocab * D
    if isinstance(backend, Chunked):
        assert max(facts["Bytes"] for facts in memory) <= max(chunk, parameters)
        assert max(totals) - totals[0] < 0.5 * logits
    else:  # the measure does see them where they are held
        assert max(facts["Bytes"] for facts in memory) == logits
        assert max(totals) - totals[0] > logits


def test_evaluation_keeps_nothing_for_a_backward_pass(chunked):
    hidden, weight, targets = example()
    weight.requires_grad_()
    expected, *_ = reference(hidden, weight, targets)
    with torch.no_grad():
        loss = chunked.linear_cross_entropy(hidden, weight, targets)
    assert not loss.requires_grad
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=1e-5)
