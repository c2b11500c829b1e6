"""`nanochat.kernels`: the backends as plain functions, and how one is chosen."""

import threading

import pytest
import torch

from nanochat import kernels, selection
from nanochat.backend import AttentionProblem, LossProblem, Requirement
from nanochat.errors import UsageError


@pytest.fixture(autouse=True)
def only_the_core(monkeypatch):
    """No installed plugin takes part, and no choice outlives a test."""
    monkeypatch.setenv("NANOCHAT_PLUGINS", "")
    caches = selection._registry, selection._target, selection._choice
    for cache in caches:
        cache.cache_clear()
    kernels.set_kernel_backend("auto")
    yield
    kernels.set_kernel_backend("auto")
    for cache in caches:
        cache.cache_clear()


LOSS = LossProblem("cpu", tokens=64, hidden=8, vocab=32, dtype="float32")
ATTENTION = AttentionProblem("cpu", 1, 16, 2, 2, 8, dtype="float32")


def chosen(problem=LOSS) -> str:
    return kernels.choice_for(problem).backend.name


def loss_example(*shape):
    torch.manual_seed(0)
    hidden = torch.randn(*shape, 8)
    targets = torch.randint(0, 32, shape)
    targets[..., 0] = -1
    return hidden, torch.randn(32, 8), targets


def loss_reference(hidden, weight, targets, softcap=None):
    """(loss of each row, which rows count) in float64."""
    logits = hidden.double() @ weight.double().T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    valid = targets != -1
    picked = logits.gather(-1, targets.where(valid, 0)[..., None])[..., 0]
    return (logits.exp().sum(-1).log() - picked) * valid, valid


def attention_reference(q, k, v, window, scale):
    """With q, k, v as (B, T, H, D), in float64; queries are the last positions."""
    k, v = (x.double().repeat_interleave(q.size(2) // k.size(2), dim=2) for x in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q.double(), k) * scale
    distance = torch.arange(k.size(1))[-q.size(1) :, None] - torch.arange(k.size(1))
    hidden = (distance < 0) if window is None else (distance < 0) | (distance > window)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("bhij,bjhd->bihd", weights, v)


@pytest.mark.parametrize("softcap", [None, 10.0])
@pytest.mark.parametrize("name", ["auto", "torch", "chunked"])
def test_loss_of_any_leading_shape_equals_the_formula(name, softcap):
    kernels.set_kernel_backend(name)
    hidden, weight, targets = loss_example(3, 5)
    rows, valid = loss_reference(hidden, weight, targets, softcap)
    expected = {"mean": rows.sum() / valid.sum(), "sum": rows.sum(), "none": rows}
    for reduction, wanted in expected.items():
        loss = kernels.fused_linear_cross_entropy(
            hidden, weight, targets, softcap=softcap, reduction=reduction
        )
        assert loss.dtype == torch.float32
        assert loss.shape == wanted.shape
        torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-5)


def test_gradients_reach_a_wider_weight_in_its_own_dtype():
    hidden, weight, targets = loss_example(3, 5)
    hidden, weight = hidden.bfloat16(), weight.bfloat16().float()
    hidden.requires_grad_()
    weight.requires_grad_()
    kernels.fused_linear_cross_entropy(hidden, weight, targets).backward()
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    rows, valid = loss_reference(*exact, targets)
    (rows.sum() / valid.sum()).backward()
    for mine, wanted in zip((hidden, weight), exact, strict=True):
        assert mine.grad.dtype == mine.dtype
        assert (mine.grad.double() - wanted.grad).norm() < 0.02 * wanted.grad.norm()


@pytest.mark.parametrize(
    ("window_size", "window"), [((-1, 0), None), ((0, 0), 0), ((3, 0), 3), ((50, -1), 50)]
)
@pytest.mark.parametrize("scale", [None, 0.1])
def test_attention_equals_the_formula(window_size, window, scale):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 7, heads, 8) for heads in (4, 2, 2))
    y = kernels.flash_attn_func(q, k, v, window_size=window_size, softmax_scale=scale)
    expected = attention_reference(q, k, v, window, 8**-0.5 if scale is None else scale)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)


def test_packed_documents_are_as_if_alone():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 9, heads, 8) for heads in (4, 2, 2))
    documents = torch.tensor([[0, 0, 0, 0, 1, 2, 2, 2, 2]])  # int64, as cumsum gives them
    y = kernels.flash_attn_func(q, k, v, documents=documents)
    for part in (slice(0, 4), slice(4, 5), slice(5, 9)):
        expected = attention_reference(q[:, part], k[:, part], v[:, part], None, 8**-0.5)
        torch.testing.assert_close(y[:, part].double(), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError, match=r"documents are \(9,\), the rows are \(1, 9\)"):
        kernels.flash_attn_func(q, k, v, documents=documents[0])


@pytest.mark.parametrize(
    "filled", [5, torch.tensor([5, 5]), torch.tensor([5, 5], dtype=torch.int32)]
)
def test_decoding_takes_one_length_or_one_for_each_row(filled):
    torch.manual_seed(0)
    k, v = torch.randn(2, 2, 7, 2, 8)
    q = torch.randn(2, 2, 4, 8)
    caches = torch.randn(2, 2, 9, 2, 8)
    caches[0, :, :5], caches[1, :, :5] = k[:, :5], v[:, :5]
    y = kernels.flash_attn_with_kvcache(
        q, *caches, k[:, 5:], v[:, 5:], cache_seqlens=filled, window_size=(3, 0)
    )
    torch.testing.assert_close(
        y.double(), attention_reference(q, k, v, 3, 8**-0.5), rtol=1e-5, atol=1e-5
    )
    assert torch.equal(caches[0, :, :7], k)
    assert torch.equal(caches[1, :, :7], v)


def test_a_backend_is_chosen_by_name_by_alias_and_not_at_all():
    preferred = chosen()
    kernels.set_kernel_backend("torch")
    assert chosen() == "torch"
    kernels.set_kernel_backend("chunked")
    assert chosen() == "chunked"
    kernels.set_kernel_backend("current")
    assert chosen() == "torch"
    kernels.set_kernel_backend("sdpa")
    assert (chosen(ATTENTION), chosen()) == ("sdpa", "torch")  # one hook leaves the other alone
    kernels.set_kernel_backend("auto")
    assert chosen() == preferred
    assert kernels.choice_for(LOSS).how == "auto"


def test_a_scope_ends_with_its_block():
    kernels.set_kernel_backend("torch")
    with kernels.use(loss="chunked"):
        assert chosen() == "chunked"
        with kernels.use(loss="current", attention="sdpa"):
            assert chosen() == "torch"
            with kernels.use(attention="auto"):
                assert chosen() == "torch"
        assert chosen() == "chunked"
        with pytest.raises(ZeroDivisionError), kernels.use(loss="torch"):
            raise ZeroDivisionError
        assert chosen() == "chunked"
        with pytest.raises(UsageError), kernels.use(loss="nonsense"):
            pytest.fail("the block was entered")
        assert chosen() == "chunked"
    assert chosen() == "torch"


def test_threads_share_the_choice_of_the_process_and_not_each_others_scopes():
    seen = {}
    scoped, chosen_anew = threading.Event(), threading.Event()

    def within():
        with kernels.use(loss="chunked"):
            scoped.set()
            chosen_anew.wait(10)
            seen["within"] = chosen()
        seen["after"] = chosen()

    def beside():
        scoped.wait(10)
        seen["beside"] = chosen()

    threads = [threading.Thread(target=f) for f in (within, beside)]
    kernels.set_kernel_backend("torch")
    with kernels.use(loss="chunked"):  # this thread's scope is not theirs either
        for thread in threads:
            thread.start()
        threads[1].join(10)
    assert chosen() == "torch"
    kernels.set_kernel_backend("current")
    chosen_anew.set()
    threads[0].join(10)
    assert seen == {"beside": "torch", "within": "chunked", "after": "torch"}


def test_many_threads_choosing_at_once_each_get_a_right_answer():
    hidden, weight, targets = loss_example(6)
    rows, valid = loss_reference(hidden, weight, targets)
    expected = rows.sum() / valid.sum()
    failures = []
    barrier = threading.Barrier(8)

    def work(number):
        barrier.wait()
        for _ in range(20):
            name = ("torch", "chunked")[number % 2]
            with kernels.use(loss=name):
                loss = kernels.fused_linear_cross_entropy(hidden, weight, targets)
                if chosen() != name or abs(loss.item() - expected.item()) > 1e-4:
                    failures.append(name)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures


@pytest.mark.parametrize("name", ["nonsense", "fp8", "", "measure"])
def test_an_unknown_name_is_refused_and_the_choice_stays(name):
    kernels.set_kernel_backend("torch")
    with pytest.raises(UsageError, match="no attention or loss backend") as caught:
        kernels.set_kernel_backend(name)
    assert "chunked" in caught.value.message
    assert "--list-backends" in caught.value.remedy
    assert chosen() == "torch"


def test_a_name_of_a_plugin_that_is_missing_says_how_to_get_it():
    with pytest.raises(UsageError) as caught:
        kernels.set_kernel_backend("cce")
    assert "pip install 'nanochat-core[cce]'" in caught.value.remedy


def test_a_backend_of_the_other_hook_is_refused():
    refused = pytest.raises(UsageError, match="no attention backend is called 'torch'")
    with refused, kernels.use(attention="torch"):
        pytest.fail("the block was entered")


def test_a_backend_that_cannot_run_here_is_refused_at_once(monkeypatch):
    # Wherever the tests run: the machine is told to be one without a GPU.
    monkeypatch.setattr("nanochat.builtin.devices.Cuda.probe", lambda self: None)
    monkeypatch.setattr("nanochat.builtin.devices.Mps.probe", lambda self: None)
    with pytest.raises(UsageError, match=r"'flex' cannot run here: .*on cpu") as caught:
        kernels.set_kernel_backend("flex")
    assert "sdpa" in caught.value.remedy
    assert chosen(ATTENTION) == "sdpa"


def test_a_backend_whose_library_is_missing_is_refused_at_once(monkeypatch):
    missing = Requirement("no-such-library", ">=1", "pip install no-such-library")
    monkeypatch.setattr("nanochat.builtin.loss.Chunked.requires", (missing,))
    with pytest.raises(UsageError, match="no-such-library is not installed") as caught:
        kernels.set_kernel_backend("chunked")
    assert caught.value.remedy == "pip install no-such-library"
    assert chosen() == "torch"


def test_shapes_that_do_not_fit_are_named():
    hidden, weight, targets = loss_example(3, 5)
    for wrong in (
        (hidden, weight[:, :4], targets),
        (hidden, weight, targets[:2]),
        (hidden, weight, targets.flatten()),
        (hidden, weight[:, None], targets),
        (hidden[0, 0], weight, targets),
    ):
        with pytest.raises(UsageError, match="do not fit together") as caught:
            kernels.fused_linear_cross_entropy(*wrong)
        assert all(str(tuple(x.shape)) in caught.value.message for x in wrong)
    with pytest.raises(UsageError, match="targets are int32"):
        kernels.fused_linear_cross_entropy(hidden, weight, targets.int())
    with pytest.raises(UsageError, match="'average' is not mean, sum or none"):
        kernels.fused_linear_cross_entropy(hidden, weight, targets, reduction="average")

    q, k = torch.randn(2, 5, 4, 8), torch.randn(2, 5, 2, 8)
    for wrong in (
        (q, k[:, :, :1].expand(2, 5, 3, 8), k[:, :, :1].expand(2, 5, 3, 8)),  # 4 heads over 3
        (q, k[:, :4], k[:, :4]),  # fewer keys than queries
        (q, k, k[:1]),
        (q, k[..., :4], k[..., :4]),
        (q[0], k[0], k[0]),
    ):
        with pytest.raises(UsageError, match="do not fit together"):
            kernels.flash_attn_func(*wrong)
    with pytest.raises(UsageError, match="differ in dtype: float32, bfloat16, float32"):
        kernels.flash_attn_func(q, k.bfloat16(), k)


@pytest.mark.parametrize(
    "options",
    [{"causal": False}, {"window_size": (-1, -1), "causal": False}, {"window_size": (3, 2)}],
)
def test_looking_ahead_is_refused(options):
    q = torch.randn(1, 5, 2, 8)
    with pytest.raises(UsageError, match="looks ahead"):
        kernels.flash_attn_func(q, q, q, **options)
    with pytest.raises(UsageError, match="looks ahead"):
        kernels.flash_attn_with_kvcache(q, q.clone(), q.clone(), q, q, cache_seqlens=0, **options)


def test_a_cache_that_does_not_fit_is_refused_and_left_alone():
    new = torch.randn(2, 3, 2, 8)
    caches = torch.zeros(2, 2, 8, 2, 8)
    call = kernels.flash_attn_with_kvcache
    for filled in (6, -1):
        with pytest.raises(UsageError, match="do not fit behind"):
            call(new, *caches, new, new, cache_seqlens=filled)
    with pytest.raises(UsageError, match="cache_seqlens is \\(3,\\), not \\(2,\\)"):
        call(new, *caches, new, new, cache_seqlens=torch.tensor([1, 2, 3]))
    with pytest.raises(UsageError, match="do not fit keys"):
        call(new, *caches[:, :, :, :1], new, new, cache_seqlens=0)
    for missing in ({}, {"k": new, "v": new}, {"cache_seqlens": 0}):
        with pytest.raises(UsageError, match="needs the new keys and values"):
            call(new, *caches, **missing)
    assert not caches.any()
    call(new, *caches, new, new, cache_seqlens=5)  # the last that fits
    assert torch.equal(caches[0, :, 5:], new)


def test_compiled_in_one_graph_with_the_backend_of_the_moment():
    hidden, weight, targets = loss_example(2, 6)
    torch.manual_seed(1)
    qkv = torch.randn(2, 6, 3, 8)

    def function(hidden, qkv):
        y = kernels.flash_attn_func(*qkv.split(1, dim=2), window_size=(2, 0))
        return kernels.fused_linear_cross_entropy(hidden + y[:, :, 0], weight, targets, softcap=9.0)

    with kernels.use(loss="chunked"):
        results = []
        for f in (function, torch.compile(function, fullgraph=True, dynamic=False)):
            leaves = [x.clone().requires_grad_() for x in (hidden, qkv)]
            loss = f(*leaves)
            loss.backward()
            results.append((loss.detach(), *(x.grad for x in leaves)))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled, rtol=1e-5, atol=1e-6)
