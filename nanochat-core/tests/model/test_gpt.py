"""The model as a run uses it: built on meta, initialised, trained, decoded."""

import math
import shutil
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from nanochat.errors import NanochatError
from nanochat.model.cache import KVCache
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT

CONFIG = GPTConfig(
    sequence_len=160,
    vocab_size=100,
    n_layer=3,
    n_head=4,
    n_kv_head=2,
    n_embd=64,
    window_pattern="SSL",
)


def tokens_of(config=CONFIG, rows=2, length=None, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, length or config.sequence_len)
    return torch.randint(0, config.vocab_size, shape, generator=generator)


@pytest.fixture(scope="module")
def model(build):
    return build(CONFIG)


def test_building_allocates_nothing(backend):
    config = GPTConfig(n_layer=48, n_embd=6144, n_head=48, n_kv_head=48)  # too large for any test
    with torch.device("meta"):
        model = GPT(config, attention=backend("attention", "sdpa"), loss=backend("loss", "torch"))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert model.parameter_counts()["total"] > 2e10


@pytest.mark.parametrize("pattern", ["L", "SSL"])
def test_with_a_document_token_packed_documents_are_as_if_alone(build, pattern):
    """Losses and gradients of a packed row are those of its documents in rows of their own."""
    first, lengths = 7, (1, 5, 90, 64)
    config = replace(CONFIG, window_pattern=pattern, document_token=first)
    packed = build(config)
    alone = build(replace(config, document_token=None))
    tokens = tokens_of(config, rows=1)
    tokens[tokens == first] = 8
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    tokens[0, starts] = first
    targets = tokens_of(config, rows=1, seed=2)

    rows = packed(tokens, targets, reduction="none")
    rows.sum().backward()
    parts = [
        alone(tokens[:, s : s + n], targets[:, s : s + n], reduction="none")
        for s, n in zip(starts, lengths, strict=True)
    ]
    torch.cat(parts).sum().backward()
    # Rotary positions turn queries and keys alike, but not to the last digit.
    torch.testing.assert_close(rows, torch.cat(parts), rtol=2e-4, atol=2e-4)
    theirs = dict(alone.named_parameters())
    for name, parameter in packed.named_parameters():
        exact = theirs[name].grad
        assert (parameter.grad - exact).norm() <= 2e-3 * exact.norm() + 1e-6, name
    # Without the mask they are not alike.
    assert (alone(tokens, targets, reduction="none") - rows).abs().max() > 0.1


def test_every_value_is_set_by_initialisation(build, monkeypatch):
    """Memory is handed out full of NaN here, so that what is left as it was found is seen."""
    to_empty = GPT.to_empty

    def to_nan(self, **options):
        result = to_empty(self, **options)
        with torch.no_grad():
            for tensor in (*self.parameters(), *self.buffers()):
                tensor.fill_(math.nan)
        return result

    monkeypatch.setattr(GPT, "to_empty", to_nan)
    model = build(CONFIG, trained=False)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        assert torch.isfinite(tensor).all(), name


def test_the_seed_decides_the_weights(build):
    first, again, other = (build(CONFIG, trained=False, seed=s).state_dict() for s in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])
    # Buffers that follow from the configuration are no part of a checkpoint.
    assert "rotary" not in first


def test_statistics_of_initialisation(build):
    config = GPTConfig(vocab_size=4096, n_layer=4, n_head=2, n_kv_head=1, n_embd=256)
    model = build(config, trained=False)
    width = config.n_embd**-0.5

    def spread(weight):
        assert abs(weight.mean().item()) < 0.05 * weight.std().item()
        return weight.std().item()

    assert spread(model.embedding.weight) == pytest.approx(0.8, rel=0.02)
    assert spread(model.output.weight) == pytest.approx(0.001, rel=0.02)
    for table in model.value_embeddings.values():
        assert spread(table.weight) == pytest.approx(width, rel=0.02)
        assert table.weight.abs().max() <= 3**0.5 * width
    for block in model.blocks:
        assert spread(block.attention.qkv.weight) == pytest.approx(width, rel=0.02)
        assert spread(block.feed_forward.up.weight) == pytest.approx(0.4 * width, rel=0.02)
        assert not block.attention.out.weight.any()
        assert not block.feed_forward.down.weight.any()
        if block.attention.value_gate is not None:
            gate = block.attention.value_gate.weight
            assert gate.min() >= 0
            assert 0.01 < gate.max() <= 0.02
    torch.testing.assert_close(
        model.residual_scale.data, torch.tensor([1.15, 1.15 - 0.1 / 3, 1.15 - 0.2 / 3, 1.05])
    )
    torch.testing.assert_close(model.embedding_scale.data, torch.tensor([0.20, 0.15, 0.10, 0.05]))
    assert (model.smear_scale.item(), model.backout_scale.item()) == (0, pytest.approx(0.2))


def test_the_loss_begins_at_that_of_a_guess(build):
    model = build(CONFIG, trained=False)
    tokens = tokens_of()
    with torch.no_grad():
        loss = model(tokens, tokens.roll(-1, 1)).item()
    assert loss == pytest.approx(math.log(CONFIG.vocab_size), abs=0.01)


def test_no_token_sees_a_later_one(model):
    tokens = tokens_of(rows=1)
    with torch.no_grad():
        before = model(tokens)[0]
        for position in (1, 77, CONFIG.sequence_len - 1):
            changed = tokens.clone()
            changed[0, position] = (changed[0, position] + 1) % CONFIG.vocab_size
            difference = (model(changed)[0] - before).abs().amax(dim=-1)
            assert difference[:position].max() < 1e-5
            assert difference[position:].min() > 1e-4, "a later token that never notices"


@pytest.mark.parametrize("smear", [0.0, 0.7])
def test_a_window_ends_where_it_says(build, smear):
    """In a layer of window 128 a token is seen by itself and the 128 that follow it."""
    config = GPTConfig(
        sequence_len=300, vocab_size=50, n_layer=2, n_head=2, n_kv_head=1, n_embd=32,
        window_pattern="SL",
    )  # fmt: skip
    assert config.windows == (128, None)
    model = build(config)
    with torch.no_grad():
        model.smear_scale.fill_(smear)
    seen = []
    model.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    tokens = tokens_of(config, rows=1)
    changed = tokens.clone()
    changed[0, 20] = (changed[0, 20] + 1) % config.vocab_size
    with torch.no_grad():
        difference = (model.hidden(changed) - model.hidden(tokens)).abs().amax(dim=-1)[0]
    in_window = (seen[0] - seen[1]).abs().amax(dim=-1)
    last = 20 + 128 + (1 if smear else 0)  # smeared, the next token carries it one further
    assert in_window[:20].max() == 0
    assert in_window[20 : last + 1].min() > 1e-5
    assert in_window[last + 1 :].max() < 1e-6
    assert difference[-1] > 1e-5, "the last layer sees everything"


def test_the_cap_bounds_the_logits(build):
    tokens = tokens_of()
    capped = build(CONFIG)
    free = build(
        GPTConfig(**{**CONFIG.__dict__, "softcap": None}),
    )
    with torch.no_grad():
        for model in (capped, free):
            model.output.weight.mul_(50)
        bounded, logits = capped(tokens), free(tokens)
    assert logits.abs().max() > 100
    assert bounded.abs().max() <= 15
    torch.testing.assert_close(bounded, 15 * torch.tanh(logits / 15))


def test_the_padded_vocabulary_is_never_predicted(model):
    assert CONFIG.padded_vocab_size == 128
    tokens = tokens_of()
    assert model(tokens).shape[-1] == 100
    model.zero_grad()
    model(tokens, tokens).backward()
    assert not model.output.weight.grad[100:].any()
    assert not model.embedding.weight.grad[100:].any()
    model.zero_grad()


@pytest.mark.parametrize("loss", ["torch", "chunked"])
def test_the_loss_is_the_cross_entropy_of_the_logits(build, loss):
    model = build(CONFIG, loss=loss)
    tokens, targets = tokens_of(), tokens_of(seed=2)
    targets[0, :50] = -1
    targets[1, 7] = -1
    with torch.no_grad():
        logits = model(tokens).double().flatten(0, 1)
        rows = F.cross_entropy(logits, targets.flatten(), ignore_index=-1, reduction="none")
        ours = {r: model(tokens, targets, reduction=r) for r in ("mean", "sum", "none")}
    kept = targets.flatten() != -1
    assert {value.dtype for value in ours.values()} == {torch.float32}
    assert ours["none"].shape == (targets.numel(),)
    assert not ours["none"][~kept].any()
    torch.testing.assert_close(ours["none"].double(), rows, rtol=1e-5, atol=1e-5)
    assert ours["sum"].item() == pytest.approx(rows.sum().item(), rel=1e-6)
    assert ours["mean"].item() == pytest.approx(rows[kept].mean().item(), rel=1e-6)
    with torch.no_grad():
        nothing = torch.full_like(targets, -1)
        assert model(tokens, nothing).isnan()
        assert model(tokens, nothing, reduction="sum") == 0


def test_an_ignored_target_has_no_gradient(model):
    tokens, targets = tokens_of(), tokens_of(seed=2)
    targets[1] = -1
    model.zero_grad()
    model(tokens, targets).backward()
    both = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    model(tokens[:1], targets[:1]).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(both[name], parameter.grad, rtol=1e-4, atol=1e-6)
    model.zero_grad()


@pytest.mark.parametrize(
    "split",
    [[200], [1] * 200, [150, *[1] * 50], [3, 50, 1, 1, 100, 45], [199, 1]],
    ids=["at once", "one by one", "prompt then one by one", "pieces", "all but one"],
)
def test_decoding_equals_the_whole(model, split):
    """Beyond the training length and the windows, with grouped queries."""
    assert sum(split) == 200 > CONFIG.sequence_len > 128
    tokens = tokens_of(rows=3, length=200)
    cache = KVCache(CONFIG, 3, 210, torch.device("cpu"), torch.float32)
    pieces = []
    with torch.no_grad():
        whole = model(tokens)
        for piece in tokens.split(split, dim=1):
            pieces.append(model(piece, cache=cache))
        torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-4, atol=1e-4)
        assert cache.position == 200
        assert cache.lengths.tolist() == [200] * 3
        cache.reset()
        again = model(tokens[:, :40], cache=cache)
    torch.testing.assert_close(again, whole[:, :40], rtol=1e-4, atol=1e-4)


def test_positions_end_somewhere(build):
    config = GPTConfig(sequence_len=4, vocab_size=20, n_layer=1, n_head=1, n_kv_head=1, n_embd=32)
    model = build(config)
    assert model.positions == 40
    with torch.no_grad():
        model(tokens_of(config, length=40))
        with pytest.raises(NanochatError, match="position 41 is beyond the 40"):
            model(tokens_of(config, length=41))
        cache = KVCache(config, 2, 6, torch.device("cpu"), torch.float32)
        model(tokens_of(config, length=5), cache=cache)
        with pytest.raises(NanochatError, match="position 7 is beyond the 6"):
            model(tokens_of(config, length=2), cache=cache)
        assert cache.position == 5, "a refused step leaves the cache as it was"
        assert torch.isfinite(model(tokens_of(config, length=1), cache=cache)).all()
        cache = KVCache(config, 2, 100, torch.device("cpu"), torch.float32)
        with pytest.raises(NanochatError, match="beyond the 40"):
            model(tokens_of(config, length=41), cache=cache)


@pytest.mark.parametrize("kv_heads", [4, 1])
def test_parameters_and_operations_are_counted(build, kv_heads):
    config = GPTConfig(
        sequence_len=1024, vocab_size=1000, n_layer=5, n_head=4, n_kv_head=kv_heads, n_embd=64
    )
    model = build(config)
    width, kv_width, rows = 64, 16 * kv_heads, 1024
    per_block = width * (width + 2 * kv_width) + width * width + 2 * 4 * width * width
    matrices = 5 * per_block + 3 * 12 * kv_heads  # value gates on layers 0, 2 and 4
    scalars = 5 + 5 + 24 + 1 + 1
    assert model.parameter_counts() == {
        "embedding": rows * width,
        "value_embedding": 3 * rows * kv_width,
        "output": rows * width,
        "matrices": matrices,
        "scalars": scalars,
        "total": (2 * width + 3 * kv_width) * rows + matrices + scalars,
    }
    context = 256 + 256 + 256 + 1024 + 1024
    products = matrices + rows * width + 24
    assert model.flops_per_token() == 6 * products + 12 * width * context


def test_value_embeddings_matter_on_their_layers_alone(build):
    config = GPTConfig(sequence_len=16, vocab_size=50, n_layer=4, n_head=2, n_kv_head=1, n_embd=32)
    model = build(config)
    assert sorted(model.value_embeddings) == ["1", "3"]
    assert [b.attention.value_gate is not None for b in model.blocks] == [False, True] * 2
    tokens = tokens_of(config)
    outputs = []
    for block in model.blocks:
        block.register_forward_hook(lambda m, i, output: outputs.append(output))
    with torch.no_grad():
        model(tokens)
        model.value_embeddings["1"].weight.add_(1)
        model(tokens)
    changed = [not torch.equal(a, b) for a, b in zip(outputs[:4], outputs[4:], strict=True)]
    assert changed == [False, True, True, True]


@pytest.mark.parametrize(
    ("dtype", "tables"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
    ],
)
def test_dtypes_of_weights_and_results(build, dtype, tables):
    model = build(CONFIG, dtype=dtype)
    for name, parameter in model.named_parameters():
        is_table = name.startswith(("embedding.", "value_embeddings."))
        assert parameter.dtype == (tables if is_table else torch.float32), name
    assert model.rotary.dtype == torch.float32
    tokens = tokens_of(rows=1)
    wide = build(CONFIG)
    wide.load_state_dict(model.state_dict())
    loss = model(tokens, tokens_of(rows=1, seed=2))
    with torch.no_grad():
        assert model(tokens).dtype == torch.float32
        assert model.hidden(tokens).dtype == dtype
        expected = wide(tokens, tokens_of(rows=1, seed=2))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=0.01)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == parameter.dtype, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("name", ["fp8", "fp8-rowwise"])
def test_a_checkpoint_does_not_know_of_quantization(build, backend, name):
    config = GPTConfig(sequence_len=16, vocab_size=50, n_layer=2, n_head=2, n_kv_head=2, n_embd=128)
    plain, narrow = build(config), build(config, seed=1)
    quantization = backend("quantization", name)
    swapped = quantization.prepare(narrow, lambda name, module: name.startswith("blocks."))
    assert swapped >= 2 * 4
    expected = {n: (t.shape, t.dtype) for n, t in plain.state_dict().items()}
    assert {n: (t.shape, t.dtype) for n, t in narrow.state_dict().items()} == expected
    narrow.load_state_dict(plain.state_dict())
    tokens, targets = tokens_of(config), tokens_of(config, seed=2)
    with torch.no_grad():
        loss = plain(tokens, targets)
        with quantization.full_precision(narrow):
            assert torch.equal(narrow(tokens, targets), loss)
        rough = narrow(tokens, targets)
    assert not torch.equal(rough, loss)
    assert rough.item() == pytest.approx(loss.item(), rel=0.05)


needs_compiler = pytest.mark.skipif(
    not any(shutil.which(c) for c in ("g++", "clang++", "cl")),
    reason="torch.compile needs a C++ compiler on a CPU",
)


@needs_compiler
def test_compiled_in_one_graph_it_computes_the_same(build):
    config = GPTConfig(
        sequence_len=136, vocab_size=50, n_layer=3, n_head=2, n_kv_head=1, n_embd=32,
        window_pattern="SL",
    )  # fmt: skip
    assert config.windows == (128, None, None)
    model = build(config, loss="chunked")
    tokens, targets = tokens_of(config), tokens_of(config, seed=2)
    targets[0, :5] = -1

    def step(forward):
        model.zero_grad()
        loss = forward(tokens, targets)
        loss.backward()
        return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters()}

    loss, gradients = step(model)
    compiled_loss, compiled = step(torch.compile(model, dynamic=False, fullgraph=True))
    assert compiled_loss == pytest.approx(loss, rel=1e-5)
    for name, gradient in gradients.items():
        error = (compiled[name] - gradient).norm() / gradient.norm()
        assert error < 1e-4, f"{name}: {error:.1e}"


@needs_compiler
def test_the_loss_is_the_same_under_every_builtin(build):
    """Forward alone: block-sparse attention has no backward pass on a CPU."""
    state = build(CONFIG).state_dict()
    tokens, targets = tokens_of(), tokens_of(seed=2)
    losses = {}
    for attention in ("sdpa", "flex"):
        for loss in ("torch", "chunked"):
            model = build(CONFIG, attention=attention, loss=loss, seed=9)
            model.load_state_dict(state)
            with torch.no_grad():
                losses[attention, loss] = model(tokens, targets).item()
    assert max(losses.values()) - min(losses.values()) < 1e-5, losses


def test_a_copied_model_computes_the_same_and_is_another(build):
    model = build(CONFIG)
    copy = deepcopy(model)
    tokens = tokens_of()
    assert torch.equal(copy(tokens), model(tokens))
    with torch.no_grad():
        copy.output.weight.add_(1.0)
    assert not torch.equal(copy(tokens), model(tokens))
