"""Linear layers in 8-bit floats, on the CPU's emulation of the products."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from nanochat.backend import QuantizationProblem, Target
from nanochat.builtin import fp8
from nanochat.builtin.quantization import Fp8, NoQuantization

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
FORMATS = [E4M3, E5M2]
# Half the distance between neighbours, relative to them, and absolute below the normal numbers.
HALF_STEP = {E4M3: 2**-4, E5M2: 2**-3}
HALF_TINY = {E4M3: 2**-10, E5M2: 2**-17}


def bound_of_round_trip(x, factor, dtype):
    """The largest error that rounding to nearest may make, for each element."""
    return torch.maximum(x.double().abs() * HALF_STEP[dtype], HALF_TINY[dtype] * factor.double())


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("dim", [None, 0, 1])
@pytest.mark.parametrize("magnitude", [1e-6, 1.0, 1e6])
def test_round_trip_is_within_half_a_step(dtype, dim, magnitude):
    torch.manual_seed(0)
    x = torch.randn(48, 32) * magnitude * torch.logspace(-3, 0, 32)
    narrow, factor = fp8.quantize(x, dtype, dim=dim)
    assert narrow.dtype == dtype
    assert factor.dtype == torch.float32
    assert factor.shape == {None: (), 0: (1, 32), 1: (48, 1)}[dim]
    error = (narrow.double() * factor.double() - x.double()).abs()
    assert (error <= bound_of_round_trip(x, factor, dtype) * (1 + 1e-5)).all()
    # The largest magnitude of each slice lands on the largest number of the format.
    peak = narrow.float().abs().amax() if dim is None else narrow.float().abs().amax(dim)
    assert (peak == torch.finfo(dtype).max).all()


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("dim", [None, 0, 1])
def test_zeros_stay_zeros(dtype, dim):
    narrow, factor = fp8.quantize(torch.zeros(16, 16), dtype, dim=dim)
    assert not narrow.float().any()
    assert factor.isfinite().all()


@pytest.mark.parametrize("dtype", FORMATS)
def test_what_exceeds_the_bound_saturates(dtype):
    x = torch.tensor([[-1e30, -4.0, -2.0, 0.0, 1.0, 2.0, 4.0, float("inf")]])
    narrow, factor = fp8.quantize(x, dtype, bound=2.0)
    assert torch.equal(
        narrow.float() * factor, torch.tensor([[-2.0, -2.0, -2.0, 0.0, 1.0, 2.0, 2.0, 2.0]])
    )


def test_a_bound_gives_a_constant_scale():
    torch.manual_seed(0)
    x = torch.randn(16, 16).clamp(-3, 3)
    narrow, factor = fp8.quantize(x, E4M3, bound=4.0)
    assert factor.item() == pytest.approx(4 / 448)
    error = (narrow.double() * factor.double() - x.double()).abs()
    assert (error <= bound_of_round_trip(x, factor, E4M3) * (1 + 1e-5)).all()


@pytest.mark.parametrize("dtype", FORMATS)
def test_scale_for_bfloat16_is_taken_in_float32(dtype):
    x = torch.tensor([[3e38, 1.0]], dtype=torch.bfloat16)
    scale = fp8.scale_for(x, dtype)
    assert scale.dtype == torch.float32
    largest = x.double().max().item()
    assert scale.item() * largest == pytest.approx(torch.finfo(dtype).max, rel=1e-6)


@pytest.fixture
def demanding(monkeypatch):
    """`torch._scaled_mm` with the demands of the hardware, which the CPU does not make."""
    product = torch._scaled_mm

    def scaled_mm(a, b, **options):
        assert a.is_contiguous()
        assert b.t().is_contiguous()
        assert not any(size % 16 for size in (*a.shape, b.size(1)))
        assert options["out_dtype"] in (torch.bfloat16, torch.float32)
        return product(a, b, **options)

    monkeypatch.setattr(torch, "_scaled_mm", scaled_mm)


def layers(rowwise, bound=None, dtype=torch.float32, M=32, K=64, N=48):
    """(input, Fp8Linear) whose columns differ in size, as activations with outliers do."""
    torch.manual_seed(0)
    x = (torch.randn(M, K) * torch.logspace(-1, 0.5, K)).to(dtype)
    layer = nn.Linear(K, N, bias=False)
    layer.input_bound = bound
    model = nn.Sequential(layer)
    assert fp8.swap(model, lambda name, module: True, rowwise=rowwise) == 1
    return x, model[0]


def product_error(a, b, step_a, step_b, tiny_a, tiny_b):
    """The most that a @ b can be off by: each factor by half a step, below by half a tiny one."""
    a, b = a.double().abs(), b.double().abs()
    off_a, off_b = torch.maximum(a * step_a, tiny_a), torch.maximum(b * step_b, tiny_b)
    return off_a @ b + a @ off_b + off_a @ off_b


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rowwise", "bound"), [(False, None), (False, 16.0), (True, None)])
def test_products_are_within_the_error_of_their_formats(demanding, rowwise, bound, dtype):
    x, layer = layers(rowwise, bound, dtype)
    x.requires_grad_()
    w = layer.weight.detach()
    y = layer(x)
    g = torch.randn_like(y)
    y.backward(g)

    x_, w_, g_ = x.detach().double(), w.double(), g.double()
    four, five = HALF_STEP[E4M3], HALF_STEP[E5M2]

    def tiny(t, dtype, dim):
        peak = t.abs().amax() if dim is None else t.abs().amax(dim, keepdim=True)
        return HALF_TINY[dtype] / torch.finfo(dtype).max * peak

    out_rounding = torch.finfo(dtype).eps
    summed = None if not rowwise else 1
    x_tiny = (
        tiny(x_, E4M3, summed) if bound is None else torch.tensor(HALF_TINY[E4M3] * bound / 448)
    )
    limit = product_error(x_, w_.T, four, four, x_tiny, tiny(w_.T, E4M3, 0 if rowwise else None))
    exact = x_ @ w_.T
    assert ((y.double() - exact).abs() <= limit + exact.abs() * out_rounding + 1e-6).all()
    assert (y.double() - exact).norm() < 0.05 * exact.norm()

    exact = g_ @ w_
    limit = product_error(
        g_, w_, five, four, tiny(g_, E5M2, summed), tiny(w_, E4M3, 0 if rowwise else None)
    )
    assert ((x.grad.double() - exact).abs() <= limit + exact.abs() * out_rounding + 1e-6).all()
    assert (x.grad.double() - exact).norm() < 0.1 * exact.norm()

    exact = g_.T @ x_
    x_tiny = tiny(x_, E4M3, 0) if rowwise else x_tiny
    limit = product_error(g_.T, x_, five, four, tiny(g_.T, E5M2, summed), x_tiny)
    grad = layer.weight.grad.double()
    assert ((grad - exact).abs() <= limit + exact.abs() * out_rounding + 1e-6).all()
    assert (grad - exact).norm() < 0.1 * exact.norm()

    assert y.dtype == x.grad.dtype == dtype
    assert layer.weight.grad.dtype == torch.float32
    assert y.shape == (32, 48)
    assert layer.weight.grad.shape == (48, 64)


def test_rows_of_their_own_scale_save_small_rows_from_an_outlier():
    """An outlier of 1e5 leaves a row of ones no digits under one scale, all under its own."""
    errors = {}
    for rowwise in (False, True):
        _, layer = layers(rowwise)
        x = torch.ones(16, 64) / 64
        x[0] = 1e5
        exact = x.double() @ layer.weight.detach().double().T
        errors[rowwise] = (layer(x).double() - exact)[1:].norm() / exact[1:].norm()
    assert errors[False] > 0.9
    assert errors[True] < 0.1


def test_a_tight_bound_gives_what_the_maximum_gives():
    x, dynamic = layers(False)
    _, static = layers(False, bound=float(x.abs().max()))
    for layer in (dynamic, static):
        layer(x).square().sum().backward()
    torch.testing.assert_close(dynamic(x), static(x), rtol=1e-6, atol=0)
    torch.testing.assert_close(dynamic.weight.grad, static.weight.grad, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("rowwise", "bound"), [(False, None), (False, 16.0), (True, None)])
def test_transposed_inputs_and_gradients(demanding, rowwise, bound):
    results = []
    g = torch.randn(48, 32)
    for lay in (lambda x: x.T.contiguous().T, lambda x: x.contiguous()):
        x, layer = layers(rowwise, bound)
        x = lay(x).requires_grad_()
        y = layer(x)
        y.backward(lay(g.T))
        results.append((y, x.grad, layer.weight.grad))
    for strided, contiguous in zip(*results, strict=True):
        assert torch.equal(strided, contiguous)


@pytest.mark.parametrize("rowwise", [False, True])
def test_inputs_of_three_dimensions(rowwise):
    _, layer = layers(rowwise)
    x = torch.randn(2, 16, 64)
    torch.testing.assert_close(layer(x), layer(x.view(32, 64)).view(2, 16, 48))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(32, 64, bias=False)
        self.block = nn.ModuleDict({"down": nn.Linear(64, 32, bias=False)})
        self.biased = nn.Linear(32, 32)
        self.embedding = nn.Embedding(8, 32)

    def forward(self, x):
        return self.block["down"](torch.relu(self.up(x)))


@pytest.fixture
def backend():
    backend = Fp8()
    backend.load()
    return backend


def test_swap_shares_parameters_and_no_checkpoint_can_tell(backend):
    model = Model()
    before = dict(model.named_parameters())
    values = {name: p.clone() for name, p in before.items()}
    assert backend.prepare(model, lambda name, module: True) == 2
    assert isinstance(model.up, fp8.Fp8Linear)
    assert isinstance(model.block["down"], fp8.Fp8Linear)
    assert type(model.biased) is nn.Linear
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    for name, parameter in before.items():
        assert after[name] is parameter
    state = model.state_dict()
    assert {name: v.dtype for name, v in state.items()} == dict.fromkeys(values, torch.float32)
    model.load_state_dict(values)
    assert all(torch.equal(state[name], v) for name, v in values.items())
    assert backend.prepare(model, lambda name, module: True) == 0  # nothing is swapped twice


def test_swap_asks_for_each_layer_by_its_name(backend):
    model = Model()
    asked = {}

    def include(name, module):
        asked[name] = module
        return name.startswith("block")

    layer = model.up
    assert backend.prepare(model, include) == 1
    assert set(asked) == {"up", "block.down"}
    assert asked["up"] is layer is model.up


def test_no_quantization_leaves_the_model_alone():
    model = Model()
    modules = list(model.modules())
    assert NoQuantization().prepare(model, lambda name, module: True) == 0
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))


def test_full_precision_within_the_context_and_quantized_after_it(backend):
    model = Model()
    x = torch.randn(16, 32)
    exact = model(x)
    backend.prepare(model, lambda name, module: True)
    quantized = model(x)
    assert not torch.equal(quantized, exact)
    with backend.full_precision(model):
        assert torch.equal(model(x), exact)
        with backend.full_precision(model):  # leaving the inner one must not end the outer one
            assert torch.equal(model(x), exact)
        assert torch.equal(model(x), exact)
        assert model(x.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(model(x), quantized)
    with pytest.raises(ZeroDivisionError), backend.full_precision(model):
        raise ZeroDivisionError
    assert torch.equal(model(x), quantized)
    assert isinstance(backend.context(), nullcontext)


def test_compiled_in_one_graph_equals_eager(backend):
    """One layer with a known bound, one without: the two ways to cast an input."""
    model = Model()
    model.up.input_bound = 8.0
    backend.prepare(model, lambda name, module: True)
    torch.manual_seed(1)
    x = torch.randn(16, 32)
    results = []
    for function in (model, torch.compile(model, fullgraph=True, dynamic=False)):
        model.zero_grad()
        y = function(x)
        y.square().sum().backward()
        results.append((y.detach(), model.up.weight.grad, model.block["down"].weight.grad))
    for eager, compiled in zip(*results, strict=True):
        # A value on the edge between two 8-bit numbers may round to either: one step apart.
        assert (eager - compiled).norm() < 1e-2 * eager.norm()


def target(kind="cuda", capability=(9, 0)):
    return Target(kind=kind, name="device", capability=capability)


def problem(**changes):
    facts = {"device": "cuda", "tokens": 4096, "layers": ((256, 128),)}
    return QuantizationProblem(**{**facts, **changes})


@pytest.mark.parametrize("rowwise", [False, True])
def test_which_devices_have_8_bit_products(rowwise):
    backend = Fp8(rowwise=rowwise)
    cpu = backend.check(target("cpu", None))
    assert cpu.ok
    assert cpu.discouraged
    for capability in ((8, 9), (9, 0), (10, 0), (12, 1)):
        support = backend.check(target(capability=capability))
        assert support.ok
        assert not support.discouraged
    for capability in ((8, 0), (8, 6), (7, 5)):
        refused = backend.check(target(capability=capability))
        assert not refused.ok
        assert "8.9" in refused.reason
        assert f"sm_{capability[0]}{capability[1]}" in refused.reason
        assert "--quantization none" in refused.remedy
    refused = backend.check(target("mps", None))
    assert not refused.ok
    assert "mps" in refused.reason


def test_which_problems_it_refuses():
    tensorwise, rowwise = Fp8(), Fp8(rowwise=True)
    assert tensorwise.supports(problem()).ok
    assert not tensorwise.supports(problem()).discouraged
    for changes, word in (
        ({"tokens": 4100}, "4100 tokens"),
        ({"layers": ()}, "no linear layer"),
        ({"dtype": "float16"}, "float16"),
    ):
        for backend in (tensorwise, rowwise):
            refused = backend.supports(problem(**changes))
            assert not refused.ok
            assert word in refused.reason
    assert tensorwise.supports(problem(dtype="float32")).ok
    refused = rowwise.supports(problem(dtype="float32"))
    assert not refused.ok
    assert "bfloat16" in refused.remedy
    assert rowwise.supports(problem(dtype="float32", device="cpu")).ok
    assert tensorwise.supports(problem(compiled=False)).discouraged


def test_it_is_never_taken_unasked():
    for t in (target("cpu", None), target()):
        assert NoQuantization().priority(t) > max(Fp8().priority(t), Fp8(True).priority(t))
