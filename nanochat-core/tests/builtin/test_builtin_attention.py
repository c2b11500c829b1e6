"""The attention backends of the core against the formula in float64."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from nanochat.backend import AttentionProblem, Target
from nanochat.builtin.attention import Flex, Sdpa
from nanochat.builtin.flex import block_mask

CPU = Target(kind="cpu", name="processor")
H100 = Target(kind="cuda", name="NVIDIA H100 80GB HBM3", capability=(9, 0))


@pytest.fixture(scope="module")
def sdpa() -> Sdpa:
    backend = Sdpa()
    backend.load()
    return backend


def reference(q, k, v, window, scale):
    """Softmax attention with one head after another, in float64; queries are the last positions."""
    group = q.size(2) // k.size(2)
    first = k.size(1) - q.size(1)
    out = torch.empty(*q.shape[:3], v.size(3), dtype=torch.float64)
    for head in range(q.size(2)):
        keys, values = k[:, :, head // group].double(), v[:, :, head // group].double()
        for i in range(q.size(1)):
            start = 0 if window is None else max(0, first + i - window)
            seen = slice(start, first + i + 1)
            scores = (keys[:, seen] * q[:, i, head, None].double()).sum(-1) * scale
            weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
            out[:, i, head] = (weights[..., None] * values[:, seen]).sum(1)
    return out


def qkv(T, H, H_kv, D, B=2, dtype=torch.float32):
    """Queries, keys and values as the model makes them: slices of one product."""
    torch.manual_seed(T * 100 + H * 10 + D)
    product = torch.randn(B, T, H + 2 * H_kv, D, dtype=dtype)
    return product, product.split((H, H_kv, H_kv), dim=2)


def problem(**changes) -> AttentionProblem:
    facts = {
        "device": "cuda",
        "batch": 4,
        "sequence_len": 512,
        "heads": 4,
        "kv_heads": 4,
        "head_dim": 64,
    }
    return AttentionProblem(**{**facts, **changes})


@pytest.mark.parametrize("window", [None, 0, 1, 7, 16, 17, 40])
@pytest.mark.parametrize(("H", "H_kv", "D"), [(2, 2, 16), (4, 2, 8), (3, 1, 24), (1, 1, 64)])
def test_sdpa_equals_the_formula_forward_and_backward(sdpa, H, H_kv, D, window):
    T, scale = 17, 1.3 / D**0.5
    product, _ = qkv(T, H, H_kv, D)
    grad = torch.randn(2, T, H, D)
    product.requires_grad_()
    exact = product.detach().double().requires_grad_()

    y = sdpa.attention(*product.split((H, H_kv, H_kv), dim=2), window=window, scale=scale)
    y.backward(grad)
    expected = reference(*exact.split((H, H_kv, H_kv), dim=2), window, scale)
    expected.backward(grad.double())

    assert y.shape == (2, T, H, D)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(product.grad.double(), exact.grad, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("window", [None, 0, 3])
def test_sdpa_of_a_single_position_is_its_value(sdpa, window):
    _, (q, k, v) = qkv(1, 4, 2, 16)
    y = sdpa.attention(q, k, v, window=window, scale=0.25)
    torch.testing.assert_close(y, v.repeat_interleave(2, dim=2))


def test_sdpa_keeps_bfloat16_and_is_as_close_as_its_inputs_allow(sdpa):
    _, (q, k, v) = qkv(33, 4, 2, 32, dtype=torch.bfloat16)
    y = sdpa.attention(q, k, v, window=7, scale=32**-0.5)
    assert y.dtype == torch.bfloat16
    expected = reference(q, k, v, 7, 32**-0.5)
    torch.testing.assert_close(y.double(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("new", [1, 5])
@pytest.mark.parametrize("window", [None, 0, 2, 30])
def test_kvcache_with_rows_of_different_length(sdpa, window, new):
    """Row b holds filled[b] positions; what lies behind them in the cache must not be seen."""
    H, H_kv, D, T_max, scale = 4, 2, 8, 12, 0.4
    filled = torch.tensor([0, 3, 7], dtype=torch.int32)
    _, (_, k_all, v_all) = qkv(T_max, H, H_kv, D, B=3)
    _, (q, k, v) = qkv(new, H, H_kv, D, B=3)
    k_cache, v_cache = torch.full_like(k_all, 1e4), torch.full_like(v_all, 1e4)
    for b, n in enumerate(filled):
        k_cache[b, :n], v_cache[b, :n] = k_all[b, :n], v_all[b, :n]
    before = k_cache.clone(), v_cache.clone()

    y = sdpa.attention_with_kvcache(
        q, k_cache, v_cache, k, v, cache_seqlens=filled, window=window, scale=scale
    )

    for b, n in enumerate(filled.tolist()):
        keys = torch.cat((k_all[b : b + 1, :n], k[b : b + 1]), dim=1)
        values = torch.cat((v_all[b : b + 1, :n], v[b : b + 1]), dim=1)
        expected = reference(q[b : b + 1], keys, values, window, scale)
        torch.testing.assert_close(y[b : b + 1].double(), expected, rtol=1e-5, atol=1e-5)
        for cache, was, fresh in ((k_cache, before[0], k), (v_cache, before[1], v)):
            assert torch.equal(cache[b, n : n + new], fresh[b])
            assert torch.equal(cache[b, :n], was[b, :n])
            assert torch.equal(cache[b, n + new :], was[b, n + new :])


@pytest.mark.parametrize("window", [None, 3])
def test_decoding_token_by_token_equals_attention_at_once(sdpa, window):
    H, H_kv, D, T, prompt, scale = 4, 2, 8, 11, 4, 0.35
    _, (q, k, v) = qkv(T, H, H_kv, D)
    caches = torch.zeros(2, 2, T, H_kv, D)
    outputs = []
    for start, stop in [(0, prompt), *((t, t + 1) for t in range(prompt, T))]:
        part = slice(start, stop)
        filled = torch.full((2,), start, dtype=torch.int32)
        outputs.append(
            sdpa.attention_with_kvcache(
                q[:, part],
                *caches,
                k[:, part],
                v[:, part],
                cache_seqlens=filled,
                window=window,
                scale=scale,
            )
        )
    expected = sdpa.attention(q, k, v, window=window, scale=scale)
    torch.testing.assert_close(torch.cat(outputs, dim=1), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(caches[0], k)
    assert torch.equal(caches[1], v)


def test_kvcache_may_be_narrower_than_the_queries(sdpa):
    _, (q, k, v) = qkv(1, 2, 2, 16)
    caches = torch.zeros(2, 2, 8, 2, 16, dtype=torch.bfloat16)
    y = sdpa.attention_with_kvcache(
        q,
        *caches,
        k,
        v,
        cache_seqlens=torch.zeros(2, dtype=torch.int32),
        window=None,
        scale=0.25,
    )
    assert y.dtype == torch.float32
    assert torch.equal(y, v.bfloat16().float())


@pytest.mark.parametrize("length", [1, 127, 128, 129, 256, 300, 513, 640])
def test_flex_mask_is_the_one_torch_makes(length):
    device = torch.device("cpu")
    for window in sorted({0, 1, 7, 127, 128, 129, 200, 255, 256, 384, length - 1, length + 50}):

        def visible(b, h, query, key, window=window):
            return (key <= query) & (query - key <= window)

        ours = block_mask(length, window, None, device)
        theirs = create_block_mask(visible, None, None, length, length, device="cpu")
        assert torch.equal(ours.to_dense(), theirs.to_dense()), window
        assert ours.seq_lengths == theirs.seq_lengths
        # Listing a block as full that is not would show positions out of the window. Torch also
        # lists a block cut short by the end as partial.
        for mine, torchs in (
            (ours.kv_num_blocks, theirs.kv_num_blocks),
            (ours.full_kv_num_blocks, theirs.full_kv_num_blocks),
            (ours.q_num_blocks, theirs.q_num_blocks),
            (ours.full_q_num_blocks, theirs.full_q_num_blocks),
        ):
            assert torch.equal(mine, torchs), window


@pytest.mark.parametrize("length", [128, 300, 513])
@pytest.mark.parametrize("window", [None, 7, 128, 200])
def test_flex_mask_of_documents_is_the_one_torch_makes(length, window):
    generator = torch.Generator().manual_seed(length)
    rows = torch.rand(4, length, generator=generator) < torch.tensor([[0], [1], [0.01], [0.005]])
    rows[3, 256:257] = True  # at the edge of a block
    documents = (2 * rows.cumsum(1)).int()

    def visible(b, h, query, key):
        near = key <= query if window is None else (key <= query) & (query - key <= window)
        return near & (documents[b, query] == documents[b, key])

    ours = block_mask(length, window, documents, torch.device("cpu"))
    theirs = create_block_mask(visible, 4, None, length, length, device="cpu")
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    for mine, torchs in (
        (ours.kv_num_blocks, theirs.kv_num_blocks),
        (ours.full_kv_num_blocks, theirs.full_kv_num_blocks),
        (ours.q_num_blocks, theirs.q_num_blocks),
        (ours.full_q_num_blocks, theirs.full_q_num_blocks),
    ):
        assert torch.equal(mine, torchs)


def test_torch_library_accepts_the_operator_of_the_tables():
    for operator, arguments in Flex().operator_samples("cpu"):
        torch.library.opcheck(operator, arguments)


def test_flex_sends_full_layers_and_decoding_to_sdpa(sdpa):
    from nanochat.builtin import flex
    from nanochat.builtin import sdpa as kernel

    _, (q, k, v) = qkv(9, 4, 2, 16)
    for window in (None, 8, 100):
        y = flex.attention(q, k, v, window=window, scale=0.3)
        assert torch.equal(y, sdpa.attention(q, k, v, window=None, scale=0.3))
    assert flex.attention_with_kvcache is kernel.attention_with_kvcache


def test_flex_evaluates_any_length_without_compiling(sdpa, monkeypatch):
    """CORE has hundreds of lengths: uncompiled and without gradients a mask stands in."""
    from nanochat.builtin import flex

    def refuse():
        raise AssertionError("it compiled")

    monkeypatch.setattr(flex, "_compiled_flex_attention", refuse)
    q, k, v = (torch.randn(1, 37, 2, 16) for _ in range(3))
    with torch.no_grad():
        y = flex.attention(q, k, v, window=5, scale=0.3)
    torch.testing.assert_close(y, sdpa.attention(q, k, v, window=5, scale=0.3))


def test_flex_compiled_into_a_model_equals_the_formula(sdpa):
    backend = Flex()
    backend.load()
    T, H, H_kv, D, window = 200, 2, 1, 16, 70
    _, (q, k, v) = qkv(T, H, H_kv, D, B=1)

    @torch.compile(dynamic=False, fullgraph=True)
    def layer(q, k, v):
        return backend.attention(q, k, v, window=window, scale=0.25)

    with torch.no_grad():  # no backward pass on a CPU: `check` refuses it there
        y = layer(q, k, v)
    torch.testing.assert_close(y.double(), reference(q, k, v, window, 0.25), rtol=1e-5, atol=1e-5)


def test_flex_is_refused_where_it_has_no_backward_pass():
    refused = Flex().check(CPU)
    assert not refused.ok
    assert "no backward pass on cpu" in refused.reason
    assert "sdpa" in refused.remedy
    assert Flex().check(H100).ok
    assert Sdpa().check(CPU).ok


def test_flex_is_refused_for_small_heads():
    assert not Flex().supports(problem(head_dim=8)).ok
    assert Flex().supports(problem(head_dim=16)).ok


def test_sdpa_is_discouraged_only_for_windows_in_training_on_cuda():
    slow = Sdpa().supports(problem(windows=(None, 128)))
    assert slow.ok
    assert slow.discouraged
    assert "flex" in slow.remedy
    for free in (
        problem(),
        problem(windows=(None, 511, 4096)),  # windows that hide nothing
        problem(windows=(128,), training=False),
        problem(windows=(128,), device="cpu"),
    ):
        support = Sdpa().supports(free)
        assert support.ok
        assert not support.discouraged
