"""The optimiser of a whole model on one rank: its groups, its steps, its saved state."""

import copy
import shutil

import pytest
import torch

from nanochat.errors import NanochatError
from nanochat.optim import OptimizerSettings, Schedule, build_optimizer
from nanochat.optim.adamw import adamw_update
from nanochat.optim.muon import muon_update, variance_shape

SETTINGS = OptimizerSettings(weight_decay=0.1)
TOKENS = torch.randint(0, 60, (4, 16), generator=torch.Generator().manual_seed(1))


def train(model, optimizer, steps, start=0):
    """Some steps on the same data; returns the losses."""
    schedule = Schedule(20, warmup_steps=2, weight_decay=0.1)
    losses = []
    for step in range(start, start + steps):
        schedule.apply(optimizer, step)
        loss = model(TOKENS, TOKENS.roll(-1, 1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("shape", [{}, {"n_kv_head": 4}, {"n_layer": 1}, {"n_kv_head": 1}])
def test_every_number_of_every_parameter_is_updated_once(build, runtime, shape):
    model = build(**shape)
    optimizer = build_optimizer(model, SETTINGS, runtime, compile=False)
    updates = {id(p): torch.zeros_like(p) for p in model.parameters()}
    for group in optimizer.param_groups:
        if group["kind"] == "adamw":
            assert len(group["names"]) == len(group["params"])
            for param in group["params"]:
                updates[id(param)] += 1
        else:
            for block in group["blocks"]:
                block.of(updates[id(block.param)]).add_(1)
    for name, param in model.named_parameters():
        assert (updates[id(param)] == 1).all(), name
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(updates), "zero_grad() reaches each exactly once"


def test_matrices_of_blocks_are_muons_the_rest_adamws(build, runtime):
    model = build()
    optimizer = build_optimizer(model, SETTINGS, runtime, compile=False)
    muon = {b.name for g in optimizer.param_groups if g["kind"] == "muon" for b in g["blocks"]}
    adamw = {n for g in optimizer.param_groups if g["kind"] == "adamw" for n in g["names"]}
    names = {name for name, _ in model.named_parameters()}
    assert adamw == {n for n in names if not n.startswith("blocks.")}
    assert {n.rpartition(".")[0] for n in muon} == {n for n in names if n.startswith("blocks.")}


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_queries_keys_and_values_are_three_matrices(build, runtime, kv_heads):
    model = build(n_kv_head=kv_heads)
    optimizer = build_optimizer(model, SETTINGS, runtime, compile=False)
    blocks = {
        b.name: (b, g) for g in optimizer.param_groups if g["kind"] == "muon" for b in g["blocks"]
    }
    name = "blocks.1.attention.qkv.weight"
    found = [(blocks[f"{name}.{i}"][0].start, blocks[f"{name}.{i}"][0].rows) for i in range(3)]
    kv = 8 * kv_heads
    assert found == [(0, 32), (32, kv), (32 + kv, kv)]
    assert f"{name}.3" not in blocks
    for block, group in blocks.values():
        shapes = {(b.rows, b.param.size(1)) for b in group["blocks"]}
        assert shapes == {(block.rows, block.param.size(1))}, "one shape a group"


def test_rates_are_scaled_by_the_width(build, runtime):
    model = build(n_embd=48, n_head=4)
    settings = OptimizerSettings(
        matrix_lr=0.5, embedding_lr=1.0, unembedding_lr=2.0, scalar_lr=4.0, weight_decay=0.25
    )
    optimizer = build_optimizer(model, settings, runtime, compile=False)
    rates = {
        name: group["lr"]
        for group in optimizer.param_groups
        if group["kind"] == "adamw"
        for name in group["names"]
    }
    scale = (48 / 768) ** -0.5
    assert scale == 4
    assert rates["embedding.weight"] == scale
    assert rates["output.weight"] == 2 * scale
    assert rates["value_embeddings.0.weight"] == scale / 2
    assert rates["residual_scale"] == pytest.approx(0.04)
    assert rates["embedding_scale"] == 4
    assert rates["smear_gate.weight"] == rates["smear_scale"] == rates["backout_scale"] == 0.2
    for group in optimizer.param_groups:
        if group["kind"] == "muon":
            assert (group["lr"], group["weight_decay"]) == (0.5, 0.25)


def test_a_step_is_the_updates_of_its_parts(build, runtime):
    """Tall matrices take longer steps, and adamw's bias corrections count from one."""
    model, expected = build(), build()
    optimizer = build_optimizer(model, SETTINGS, runtime, compile=False)
    model(TOKENS, TOKENS.roll(-1, 1)).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    optimizer.step()

    def scalar(value):
        return torch.tensor(float(value))

    with torch.no_grad():
        for name, rate, decay in (
            ("blocks.2.feed_forward.up.weight", 0.02 * 2, 0.1),  # (128, 32): sqrt(4)
            ("blocks.2.feed_forward.down.weight", 0.02, 0.1),
        ):
            param = expected.get_parameter(name)[None].clone()
            rows, columns = param.shape[1:]
            muon_update(
                param, gradients[name][None], torch.zeros_like(param),
                torch.zeros(variance_shape(1, rows, columns)),
                scalar(0.95), scalar(rate), scalar(decay), scalar(0.9), torch.float32,
            )  # fmt: skip
            torch.testing.assert_close(model.get_parameter(name).data, param[0])
        param = expected.output.weight.clone()
        adamw_update(
            param, gradients["output.weight"], torch.zeros_like(param), torch.zeros_like(param),
            *map(scalar, (1, 0.008 * (32 / 768) ** -0.5, 0.8, 0.96, 1e-10, 0.01)),
        )  # fmt: skip
        torch.testing.assert_close(model.output.weight.data, param)


def test_it_learns(build, runtime):
    model = build()
    losses = train(model, build_optimizer(model, SETTINGS, runtime, compile=False), 15)
    assert losses[0] == pytest.approx(4.09, abs=0.05)
    assert losses[-1] < 1.0


def test_a_parameter_without_gradient_stands_still_at_first(build, runtime):
    model = build()
    optimizer = build_optimizer(model, OptimizerSettings(), runtime, compile=False)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    before = copy.deepcopy(model.state_dict())
    optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_state_is_named_by_parameters_and_goes_round(build, runtime):
    model = build()
    optimizer = build_optimizer(model, SETTINGS, runtime, compile=False)
    assert set(optimizer.state_dict()) == {"steps"}
    train(model, optimizer, 3)
    state = optimizer.state_dict()
    assert all(torch.is_tensor(value) for value in state.values())
    assert int(state["steps"]) == 3
    expected = {"steps"}
    for name, parameter in model.named_parameters():
        if name.startswith("blocks."):
            parts = 3 if name.endswith("qkv.weight") else 1
            expected |= {f"{name}.{i}.{k}" for i in range(parts) for k in ("momentum", "variance")}
        else:
            expected |= {f"{name}.mean", f"{name}.square"}
            assert state[f"{name}.mean"].shape == parameter.shape
    assert set(state) == expected
    assert state["blocks.0.attention.qkv.weight.0.momentum"].shape == (32, 32)
    assert state["blocks.0.attention.qkv.weight.1.momentum"].shape == (16, 32)

    other = build_optimizer(build(), SETTINGS, runtime, compile=False)
    other.load_state_dict(state)
    again = other.state_dict()
    assert list(again) == list(state)
    assert all(torch.equal(again[key], state[key]) for key in state)


def test_a_loaded_state_is_a_copy(build, runtime):
    model = build()
    optimizer = build_optimizer(model, SETTINGS, runtime, compile=False)
    train(model, optimizer, 1)
    state = {key: value.clone() for key, value in optimizer.state_dict().items()}
    kept = {key: value.clone() for key, value in state.items()}
    other_model = build()
    other = build_optimizer(other_model, SETTINGS, runtime, compile=False)
    other.load_state_dict(state)
    train(other_model, other, 1, start=1)
    assert all(torch.equal(state[key], kept[key]) for key in state)


def test_a_resumed_run_continues_to_the_bit(build, runtime):
    model = build()
    optimizer = build_optimizer(model, SETTINGS, runtime, compile=False)
    train(model, optimizer, 4)
    weights = copy.deepcopy(model.state_dict())
    state = copy.deepcopy(optimizer.state_dict())
    losses = train(model, optimizer, 4, start=4)

    resumed = build()
    resumed.load_state_dict(weights)
    other = build_optimizer(resumed, SETTINGS, runtime, compile=False)
    other.load_state_dict(state)
    assert train(resumed, other, 4, start=4) == losses
    for name, value in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_going_back_to_before_the_first_step(build, runtime):
    model = build()
    weights = copy.deepcopy(model.state_dict())
    optimizer = build_optimizer(model, SETTINGS, runtime, compile=False)
    fresh = optimizer.state_dict()
    losses = train(model, optimizer, 3)
    model.load_state_dict(weights)
    optimizer.load_state_dict(fresh)
    assert train(model, optimizer, 3) == losses


@pytest.mark.parametrize(
    "key", ["steps", "embedding.weight.mean", "blocks.1.attention.qkv.weight.2.variance"]
)
def test_a_state_that_lacks_something_is_refused(build, runtime, key):
    model = build()
    optimizer = build_optimizer(model, SETTINGS, runtime, compile=False)
    train(model, optimizer, 1)
    state = optimizer.state_dict()
    del state[key]
    with pytest.raises(NanochatError, match=f"lacks '{key}'"):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize(
    "key", ["output.weight.square", "blocks.0.feed_forward.up.weight.0.momentum"]
)
def test_a_state_of_another_model_is_refused(build, runtime, key):
    model = build()
    optimizer = build_optimizer(model, SETTINGS, runtime, compile=False)
    train(model, optimizer, 1)
    state = optimizer.state_dict()
    state[key] = state[key][:1]
    with pytest.raises(NanochatError, match=f"'{key}' of shape"):
        optimizer.load_state_dict(state)


@pytest.mark.skipif(
    not any(shutil.which(c) for c in ("g++", "clang++", "cl")),
    reason="torch.compile needs a C++ compiler on a CPU",
)
def test_compiled_updates_do_the_same_and_recompile_for_no_schedule(build, runtime):
    results = []
    from torch._dynamo.utils import counters

    counters.clear()
    for compile in (False, True):
        model = build(n_kv_head=4, trained=True)
        optimizer = build_optimizer(model, SETTINGS, runtime, compile=compile)
        train(model, optimizer, 2)
        graphs = counters["stats"]["unique_graphs"]
        losses = train(model, optimizer, 3, start=2)
        assert counters["stats"]["unique_graphs"] == graphs
        results.append((losses, model.state_dict()))
    (losses, eager), (compiled_losses, compiled) = results
    assert graphs > 0
    assert compiled_losses == pytest.approx(losses, rel=1e-4)
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-4)
