"""The operators over stand-ins for the providers (see conftest): numbers, gradients, compilation.

The stand-ins compute with plain torch on the CPU, behind the real signatures and conventions.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from nanochat.backend import Target
from nanochat.builtin import sdpa
from nanochat.builtin.attention import Sdpa
from nanochat.builtin.loss import Torch
from nanochat.errors import NanochatError
from nanochat.model.cache import KVCache
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat_fa3 import bindings, ops, parity, providers
from nanochat_fa3.backend import FlashAttention

NAMES = ("fa2", "fa3", "fa3-2025", "fa4")
CPU = torch.device("cpu")


@pytest.fixture(params=NAMES)
def provider(request, standin):
    """The name, the stand-in and its operators."""
    module = standin(request.param)
    label = f"standin_{request.param.replace('-', '_')}"
    bind = bindings.bind_fa4 if request.param == "fa4" else bindings.bind_cuda
    kernel = bind(module, label)
    return request.param, module, ops.register(kernel)


@pytest.fixture
def backend(provider):
    attention = FlashAttention()
    attention._operators = provider[2]
    return attention


def draw(*shape, dtype=torch.float64, grad=False):
    return torch.randn(shape, dtype=dtype, requires_grad=grad)


def sdpa_backend():
    backend = Sdpa()
    backend.load()
    return backend


@pytest.fixture
def make_gpt():
    loss = Torch()
    loss.load()

    def make(attention):
        config = GPTConfig(
            sequence_len=160,
            vocab_size=64,
            n_layer=3,
            n_head=4,
            n_kv_head=2,
            n_embd=128,
            window_pattern="SL",
        )
        with torch.device("meta"):
            model = GPT(config, attention=attention, loss=loss)
        torch.manual_seed(3)
        model.initialize("cpu")
        assert any(block.attention.window is not None for block in model.blocks)
        for block in model.blocks:  # zero at the start, which would hide the attention
            torch.nn.init.normal_(block.attention.out.weight, std=0.1)
        return model

    return make


def qkv(length=33, heads=4, kv_heads=2, dim=32, dtype=torch.float64):
    return [draw(2, length, h, dim, dtype=dtype, grad=True) for h in (heads, kv_heads, kv_heads)]


@pytest.mark.parametrize("window", [None, 0, 1, 7, 31, 32, 1000])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_and_its_gradients(backend, window, kv_heads):
    torch.manual_seed(0)
    given = qkv(kv_heads=kv_heads)
    got = backend.attention(*given, window=window, scale=0.3)
    want = sdpa.attention(*given, window=window, scale=0.3)
    weight = torch.randn_like(want)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    for one, other in zip(
        torch.autograd.grad(got, given, weight),
        torch.autograd.grad(want, given, weight),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_gradient_with_strides_of_zero_arrives_contiguous(backend):
    given = qkv()
    backend.attention(*given, window=None, scale=0.3).sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in given)


def test_queries_that_are_a_view_of_a_larger_tensor(backend):
    whole = draw(2, 20, 8, 32)
    q, k, v = whole.split((4, 2, 2), dim=2)
    got = backend.attention(q, k, v, window=5, scale=0.3)
    torch.testing.assert_close(
        got, sdpa.attention(q, k, v, window=5, scale=0.3), rtol=1e-6, atol=1e-6
    )
    assert got.is_contiguous()


DOCUMENTS = {
    "one a row": [[33], [33]],
    "of one position": [[1] * 33, [32, 1]],
    "across rows alike": [[10, 23], [10, 23]],
    "many and one": [[3, 8, 1, 20, 1], [33]],
}


def numbered(lengths):
    return torch.stack([torch.repeat_interleave(torch.tensor(row)) for row in lengths]).int()


@pytest.mark.parametrize("window", [None, 5, 1000])
@pytest.mark.parametrize("lengths", DOCUMENTS.values(), ids=DOCUMENTS)
def test_documents_do_not_see_each_other(backend, lengths, window):
    torch.manual_seed(0)
    given = qkv()
    options = {"window": window, "scale": 0.3, "documents": numbered(lengths)}
    got = backend.attention(*given, **options)
    want = sdpa.attention(*given, **options)
    weight = torch.randn_like(want)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    for one, other in zip(
        torch.autograd.grad(got, given, weight),
        torch.autograd.grad(want, given, weight),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_one_graph_serves_other_documents(standin):
    """How many there are is found while it runs, so nothing is compiled anew."""
    backend = FlashAttention()
    backend._operators = ops.register(bindings.bind_cuda(standin("fa2"), "standin_documents"))
    graphs = []

    def compiler(graph, inputs):
        graphs.append(graph)
        return graph

    def step(q, k, v, documents):
        return backend.attention(q, k, v, window=4, scale=0.3, documents=documents)

    compiled = torch.compile(step, fullgraph=True, dynamic=False, backend=compiler)
    given = [x.detach() for x in qkv()]
    for lengths in DOCUMENTS.values():
        documents = numbered(lengths)
        want = sdpa.attention(*given, window=4, scale=0.3, documents=documents)
        torch.testing.assert_close(compiled(*given, documents), want, rtol=1e-6, atol=1e-6)
    assert len(graphs) == 1


@pytest.mark.parametrize("window", [None, 0, 3, 500])
@pytest.mark.parametrize("new", [1, 4])
def test_decoding_appends_and_attends(backend, window, new):
    torch.manual_seed(1)
    caches = [draw(3, 24, 2, 16) for _ in "kv"]
    reference = [c.clone() for c in caches]
    filled = torch.tensor([0, 5, 20], dtype=torch.int32)
    q, k, v = (draw(3, new, heads, 16) for heads in (4, 2, 2))
    got = backend.attention_with_kvcache(
        q, *caches, k, v, cache_seqlens=filled, window=window, scale=0.3
    )
    want = sdpa.attention_with_kvcache(
        q, *reference, k, v, cache_seqlens=filled, window=window, scale=0.3
    )
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    for one, other in zip(caches, reference, strict=True):
        assert torch.equal(one, other)
    assert filled.tolist() == [0, 5, 20]


def test_a_model_trains_and_decodes_as_on_sdpa(backend, make_gpt):
    """Loss, gradients and the logits of a prompt followed by single tokens."""
    reference = make_gpt(sdpa_backend())
    model = make_gpt(backend)
    model.load_state_dict(reference.state_dict())
    tokens = torch.randint(0, 64, (2, 160), generator=torch.Generator().manual_seed(0))
    losses = []
    for each in (reference, model):
        loss = each(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(*losses)
    theirs = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        whole = reference(tokens)
        cache = KVCache(model.config, 2, 160, CPU, torch.float32)
        parts = [model(tokens[:, :150], cache=cache)]
        parts += [model(tokens[:, i : i + 1], cache=cache) for i in range(150, 160)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-3, atol=1e-4)


def test_providers_are_called_by_keyword_only(provider, backend):
    name, module, _ = provider
    given = qkv()
    backend.attention(*given, window=9, scale=0.3).sum().backward()
    caches = [draw(2, 24, 2, 16) for _ in "kv"]
    new = (draw(2, 1, heads, 16) for heads in (2, 2))
    backend.attention_with_kvcache(
        draw(2, 1, 4, 16),
        *caches,
        *new,
        cache_seqlens=torch.zeros(2, dtype=torch.int32),
        window=None,
        scale=0.3,
    )
    kinds = [kind for kind, _, _ in module.calls]
    assert kinds == ["forward", "backward", "varlen" if name == "fa4" else "decode"]
    for _, positional, named in module.calls:
        assert positional == 0
        assert named["softmax_scale"] == 0.3
        assert named.get("causal", named.get("is_causal")) is True


def test_torch_library_accepts_the_operators(backend):
    samples = backend.operator_samples("cpu")
    assert len(samples) == 7
    for operator, arguments in samples:
        torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("name", ["fa2", "fa4"])
def test_compilation_keeps_one_graph(standin, name):
    bind = bindings.bind_fa4 if name == "fa4" else bindings.bind_cuda
    backend = FlashAttention()
    backend._operators = ops.register(bind(standin(name), f"standin_{name}_compiled"))

    def step(q, k, v):
        full = backend.attention(q * 2, k, v, window=None, scale=0.3)
        return (backend.attention(full, k, v, window=4, scale=0.3) ** 2).sum()

    given = [x.detach().float().requires_grad_() for x in qkv(length=17)]
    want = torch.autograd.grad(step(*given), given)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for one, other in zip(torch.autograd.grad(compiled(*given), given), want, strict=True):
        torch.testing.assert_close(one, other)

    def decode(q, k_cache, v_cache, k, v, filled):
        return backend.attention_with_kvcache(
            q, k_cache, v_cache, k, v, cache_seqlens=filled, window=None, scale=0.3
        )

    caches = [torch.zeros(2, 24, 2, 16) for _ in "kv"]
    q, k, v = (draw(2, 1, heads, 16, dtype=torch.float32) for heads in (4, 2, 2))
    filled = torch.tensor([3, 4], dtype=torch.int32)
    with torch.no_grad():
        torch.compile(decode, fullgraph=True, backend="aot_eager")(q, *caches, k, v, filled)
    assert torch.equal(caches[1][1, 4], v[1, 0])


def test_a_right_provider_passes_the_parity_check(provider):
    parity.require(provider[2], "a stand-in", CPU, torch.float32)
    errors = list(parity.measure(provider[2], CPU, torch.bfloat16))
    assert {m.ok for m in errors} == {True}
    # Of each window the output and three gradients, the same with documents, and twice the
    # decoding with its two caches.
    assert len(errors) == 2 * (4 + 4 + 2 * 3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("window", "the output (window 37)"),
        ("gradient", "the gradient of k (all positions)"),
        ("cache", "the v cache (all positions)"),
    ],
)
def test_a_wrong_provider_is_refused_with_its_error(standin, wrong, said):
    operators = ops.register(bindings.bind_cuda(standin("fa2", wrong), f"standin_{wrong}"))
    with pytest.raises(NanochatError) as refusal:
        parity.require(operators, "FlashAttention-2", CPU, torch.bfloat16)
    assert said in refusal.value.message
    assert "is off by 0." in refusal.value.message
    assert "NANOCHAT_FA3_PROVIDER" in refusal.value.remedy


def test_a_provider_without_code_for_the_gpu_is_refused(standin):
    module = standin("fa2")

    def forward(q, k, v, softmax_scale, causal, window_size):
        raise RuntimeError("CUDA error: no kernel image is available\nmore lines")

    module._flash_attn_forward = forward
    operators = ops.register(bindings.bind_cuda(module, "standin_no_image"))
    with pytest.raises(NanochatError, match="does not run on this cpu device: CUDA error: no kern"):
        parity.require(operators, "FlashAttention-2", CPU, torch.bfloat16)


def test_an_old_result_is_not_mistaken_for_the_log_sum_exp(standin):
    module = standin("fa2")

    def forward(q, k, v, softmax_scale, causal, window_size):
        return q, q, k, v, q, torch.empty(0)  # flash-attn 2.6 and older

    module._flash_attn_forward = forward
    kernel = bindings.bind_cuda(module, "standin_old")
    q, k, v = (x.detach() for x in qkv())
    with pytest.raises(NanochatError, match="unknown version"):
        kernel.forward(q, k, v, None, None, 0.3)


@pytest.mark.parametrize(
    ("name", "function", "text", "said"),
    [
        ("fa2", "_flash_attn_backward", "dout q k v", "does not take out, softmax_lse"),
        ("fa2", "flash_attn_with_kvcache", None, "has no flash_attn_with_kvcache"),
        ("fa3", "_flash_attn_forward", "q k v softmax_scale causal", "takes neither window"),
        ("fa4", "_flash_attn_fwd", "q k v softmax_scale causal", "does not take window_size_left"),
    ],
)
def test_a_stranger_is_refused_when_it_is_bound(standin, name, function, text, said):
    module = standin(name)
    if text is None:
        delattr(module, function)
    else:
        names = ", ".join(text.split())
        scope = {}
        exec(f"def function({names}): ...", scope)
        setattr(module, function, scope["function"])
    bind = bindings.bind_fa4 if name == "fa4" else bindings.bind_cuda
    with pytest.raises(NanochatError, match=said) as refusal:
        bind(module, "standin_stranger")
    assert refusal.value.remedy


H200 = Target("cuda", "NVIDIA H200", (9, 0))
GB10 = Target("cuda", "NVIDIA GB10", (12, 1))


def test_load_tells_of_a_build_for_another_torch(site):
    site.fa2()
    site.module(
        "flash_attn/__init__.py",
        "raise ImportError('flash_attn_2_cuda.so: undefined symbol: _ZN3c105Error')\n",
    )
    backend = FlashAttention()
    assert backend.check(H200).ok
    with pytest.raises(NanochatError, match="undefined symbol") as refusal:
        backend.load()
    assert f"another torch than {torch.__version__}" in refusal.value.remedy
    assert "wheel" in refusal.value.remedy


def test_load_checks_only_what_is_in_doubt(site, standin, monkeypatch):
    site.fa2()
    asked = []
    monkeypatch.setattr(bindings, "bind", lambda s: bindings.bind_cuda(standin("fa2"), "fa2"))
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(parity, "require", lambda *a: asked.append(a[1:]))
    for target, times in ((H200, 0), (GB10, 1)):
        backend = FlashAttention()
        backend.check(target)
        backend.load()
        backend.load()  # for the next problem: nothing is done twice
        assert len(asked) == times
    assert asked == [("FlashAttention-2", torch.device("cuda", 3), torch.bfloat16)]


def test_a_provider_that_fails_the_check_is_not_kept(site, standin, monkeypatch):
    site.fa4()
    monkeypatch.setattr(
        bindings, "bind", lambda s: bindings.bind_cuda(standin("fa2", "gradient"), "fa4")
    )
    monkeypatch.setattr("nanochat_fa3.backend.own_gpu", lambda: nullcontext(CPU))
    backend = FlashAttention()
    assert "compared with float64 when loaded" in backend.check(GB10).reason
    for _ in range(2):
        with pytest.raises(NanochatError, match="FlashAttention-4 computes wrong results"):
            backend.load()


HUB = """
from types import SimpleNamespace
asked = []
def get_kernel(repo_id, *, revision=None, version=None, trust_remote_code=False):
    asked.append((repo_id, version))
    {body}
"""


@pytest.mark.parametrize(
    ("capability", "repository"), [((9, 0), "flash-attn3"), ((8, 9), "flash-attn2")]
)
def test_the_hub_is_asked_for_a_version_and_only_on_load(
    site, standin, monkeypatch, capability, repository
):
    site.hub(text=HUB.format(body="return SimpleNamespace(flash_attn_interface=provided)"))
    target = Target("cuda", "a GPU", capability)
    backend = FlashAttention()
    assert backend.check(target).ok
    import kernels

    assert kernels.asked == []
    kernels.provided = standin("fa3")
    bindings.bind(providers.select(target))
    assert kernels.asked == [(f"kernels-community/{repository}", 1)]


def test_an_unreachable_hub_is_told(site):
    site.hub(text=HUB.format(body="raise OSError('no route to host\\\\nmore')"))
    backend = FlashAttention()
    backend.check(H200)
    with pytest.raises(
        NanochatError, match=r"flash-attn3 \(version 1\) could not be had.*no route"
    ):
        backend.load()


def test_load_without_a_gpu_says_so(monkeypatch):
    from nanochat.builtin.devices import Cuda

    monkeypatch.setattr(Cuda, "probe", lambda self: None)
    with pytest.raises(NanochatError, match="FlashAttention runs on NVIDIA GPUs"):
        FlashAttention().load()
