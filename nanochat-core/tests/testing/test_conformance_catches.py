"""Backends that are broken on purpose: each is caught by the check that is named for its fault."""

from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nanochat.backend import QuantizationBackend, Support
from nanochat.builtin.attention import Sdpa
from nanochat.builtin.loss import Torch
from nanochat.registry import Registry, discover
from nanochat.testing.catalogue import checks
from nanochat.testing.placing import place
from nanochat.testing.runner import run_check


@pytest.fixture(scope="module")
def registry() -> Registry:
    return discover("")


@pytest.fixture
def outcome(registry):
    """The result of one check of a backend on the CPU."""

    def run(backend, name, dtype="float32"):
        subject = place(registry, backend.hook, backend, "cpu", dtype)
        (check,) = (c for c in checks(backend.hook) if c.name == name)
        return run_check(check, subject)

    return run


class WindowOneTooWide(Sdpa):
    def attention(self, q, k, v, *, window, scale):
        return super().attention(q, k, v, window=window and window + 1, scale=scale)


class WindowForgotten(Sdpa):
    def attention(self, q, k, v, *, window, scale):
        return super().attention(q, k, v, window=None, scale=scale)


class WrongGroups(Sdpa):
    """Query head h on key head h modulo their number, instead of in groups."""

    def attention(self, q, k, v, *, window, scale):
        k, v = (x.repeat(1, 1, q.size(2) // x.size(2), 1) for x in (k, v))
        return super().attention(q, k, v, window=window, scale=scale)


class OwnScale(Sdpa):
    def attention(self, q, k, v, *, window, scale):
        return super().attention(q, k, v, window=window, scale=q.size(-1) ** -0.5)


class LastBlockWrong(Sdpa):
    """Nothing is computed behind the last whole block of 64."""

    def attention(self, q, k, v, *, window, scale):
        y = super().attention(q, k, v, window=window, scale=scale)
        whole = q.size(1) // 64 * 64
        return torch.cat((y[:, :whole], y[:, whole:] * 0), dim=1)


class TakesStridesForGranted(Sdpa):
    """Reads q as if it were contiguous."""

    def attention(self, q, k, v, *, window, scale):
        if not q.is_contiguous():
            q = torch.as_strided(q, q.shape, torch.empty(q.shape).stride())
        return super().attention(q, k, v, window=window, scale=scale)


class ScalesQueriesInPlace(Sdpa):
    def attention(self, q, k, v, *, window, scale):
        if not torch.is_grad_enabled():
            q.mul_(scale)
            return super().attention(q, k, v, window=window, scale=1.0)
        return super().attention(q, k, v, window=window, scale=scale)


class DocumentsForgotten(Sdpa):
    def attention(self, q, k, v, *, window, scale, documents=None):
        return super().attention(q, k, v, window=window, scale=scale)


class DocumentsOfTheFirstRow(Sdpa):
    def attention(self, q, k, v, *, window, scale, documents=None):
        documents = documents[:1].expand_as(documents)
        return super().attention(q, k, v, window=window, scale=scale, documents=documents)


class SilentlyWithoutDocuments(DocumentsForgotten):
    capabilities = ("gqa", "window", "kvcache")


class BreaksTheGraph(Sdpa):
    def attention(self, q, k, v, *, window, scale):
        torch._dynamo.graph_break()
        return super().attention(q, k, v, window=window, scale=scale)


class WidensItsOutput(Sdpa):
    def attention(self, q, k, v, *, window, scale):
        return super().attention(q, k, v, window=window, scale=scale).float()


class ClaimsToRepeatItself(Sdpa):
    capabilities = (*Sdpa.capabilities, "deterministic")

    def attention(self, q, k, v, *, window, scale):
        y = super().attention(q, k, v, window=window, scale=scale)
        return y + 1e-7 * torch.rand_like(y)


class CacheNotFilled(Sdpa):
    def attention_with_kvcache(self, q, k_cache, v_cache, k, v, **options):
        caches = k_cache.clone(), v_cache.clone()
        return super().attention_with_kvcache(q, *caches, k, v, **options)


class RowsAllAlike(Sdpa):
    def attention_with_kvcache(self, *tensors, cache_seqlens, **options):
        alike = cache_seqlens.max().expand_as(cache_seqlens)
        return super().attention_with_kvcache(*tensors, cache_seqlens=alike, **options)


class NotCausalWithinThePrompt(Sdpa):
    def attention_with_kvcache(self, q, k_cache, v_cache, k, v, *, cache_seqlens, **options):
        super().attention_with_kvcache(
            q, k_cache, v_cache, k, v, cache_seqlens=cache_seqlens, **options
        )
        outputs = [  # every token as if it were the last
            super(NotCausalWithinThePrompt, self).attention_with_kvcache(
                q[:, i : i + 1],
                k_cache.clone(),
                v_cache.clone(),
                k[:, -1:],
                v[:, -1:],
                cache_seqlens=cache_seqlens + k.size(1) - 1,
                **options,
            )
            for i in range(q.size(1))
        ]
        return torch.cat(outputs, dim=1)


class SilentlyWithoutWindows(WindowForgotten):
    """Declares its lack, but when called it computes something else without a word."""

    capabilities = ("gqa", "kvcache")

    def supports(self, problem):
        return Support.no("it has no windows") if problem.windowed else Support.yes()


class HidesThatItLacksWindows(Sdpa):
    capabilities = ("gqa", "kvcache")


class RefusesWithoutReason(Sdpa):
    def supports(self, problem):
        return Support(problem.head_dim != 80)


class Raises(Sdpa):
    def attention(self, q, k, v, *, window, scale):
        if q.dtype == torch.bfloat16:
            raise RuntimeError("no kernel image is available")
        return super().attention(q, k, v, window=window, scale=scale)


class CountsIgnoredRows(Torch):
    def linear_cross_entropy(self, hidden, weight, targets, *, reduction="mean", **options):
        if reduction == "mean":
            total = super().linear_cross_entropy(
                hidden, weight, targets, reduction="sum", **options
            )
            return total / targets.numel()
        return super().linear_cross_entropy(hidden, weight, targets, reduction=reduction, **options)


class ZeroForNoRows(Torch):
    def linear_cross_entropy(self, *tensors, **options):
        return super().linear_cross_entropy(*tensors, **options).nan_to_num(0.0)


class CapForgotten(Torch):
    def linear_cross_entropy(self, *tensors, softcap=None, **options):
        return super().linear_cross_entropy(*tensors, **options)


class NarrowLoss(Torch):
    def linear_cross_entropy(self, hidden, *tensors, **options):
        return super().linear_cross_entropy(hidden, *tensors, **options).to(hidden.dtype)


class OverflowsWithLargeLogits(Torch):
    def linear_cross_entropy(
        self, hidden, weight, targets, *, ignore_index=-1, softcap=None, reduction="mean"
    ):
        z = hidden @ weight.T
        z = z if softcap is None else softcap * torch.tanh(z / softcap)
        logs = (z.exp() / z.exp().sum(-1, keepdim=True)).log()
        return F.nll_loss(logs, targets, ignore_index=ignore_index, reduction=reduction)


class _Saved(torch.autograd.Function):
    """A mean loss whose gradients are made in the forward pass, and scaled in place after it."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, rescales):
        with torch.enable_grad():
            both = [x.detach().requires_grad_() for x in (hidden, weight)]
            loss = F.cross_entropy((both[0] @ both[1].T).float(), targets, ignore_index=-1)
            ctx.grads = torch.autograd.grad(loss, both)
        ctx.rescales = rescales
        return loss.detach()

    @staticmethod
    def backward(ctx, grad):
        grads = [g.mul_(grad) if ctx.rescales else g.clone() for g in ctx.grads]
        return *grads, None, None


class _Fused(Torch):
    """Fused for the mean alone, as a library would be; the rest is right."""

    capabilities = ("softcap",)
    rescales = True

    def linear_cross_entropy(self, hidden, weight, targets, *, reduction="mean", **options):
        if reduction == "mean" and options.get("softcap") is None:
            return _Saved.apply(hidden, weight, targets, self.rescales)
        return super().linear_cross_entropy(hidden, weight, targets, reduction=reduction, **options)


class RescalesAtEachBackward(_Fused):
    pass


class IgnoresTheScale(_Fused):
    rescales = False


class NoWeightGradientAlone(Torch):
    """As a fused loss that makes gradients only if its input asks for one."""

    def linear_cross_entropy(self, hidden, weight, *rest, **options):
        if not hidden.requires_grad:
            loss = super().linear_cross_entropy(hidden, weight.detach(), *rest, **options)
            return loss + 0 * weight.sum().detach().requires_grad_()
        return super().linear_cross_entropy(hidden, weight, *rest, **options)


class WrongWhenCompiled(Torch):
    def linear_cross_entropy(self, *tensors, ignore_index=-1, **options):
        if torch.compiler.is_compiling():
            hidden, weight, targets = tensors
            tensors = hidden, weight, targets.clamp(min=0)
        return super().linear_cross_entropy(*tensors, ignore_index=ignore_index, **options)


class ClampsTargetsInPlace(Torch):
    def linear_cross_entropy(self, hidden, weight, targets, **options):
        loss = super().linear_cross_entropy(hidden, weight, targets.clone(), **options)
        targets.clamp_(min=0)
        return loss


class ClaimsToBeChunked(Torch):
    capabilities = ("softcap", "chunked")


@torch.library.custom_op("nanochat_tests::double", mutates_args=())
def _double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@_double.register_fake
def _(x):
    return x.new_empty(x.numel() + 1)  # wrong: the compiler believes it


class OperatorWithWrongFake(Torch):
    def operator_samples(self, device):
        return [(_double, (torch.ones(3, device=device),))]


class Rounded(QuantizationBackend):
    """Rounds weights to a 256th at each call; the honest base of the broken ones."""

    name = "rounded"
    summary = "weights in steps of 1/256"

    class Layer(nn.Linear):
        exact = False

        def forward(self, x):
            step = 1 if self.exact else 256
            off = (self.weight * step).round() / step - self.weight
            return F.linear(x, self.weight + (0 if self.exact else off.detach()))

    def prepare(self, model, include):
        chosen = [(n, m) for n, m in model.named_modules() if include(n, m)]
        for name, module in chosen:
            layer = self.Layer(module.in_features, module.out_features, bias=False)
            self.swap(layer, module)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer)
        return len(chosen)

    def swap(self, layer, module):
        layer.weight = module.weight

    @contextmanager
    def full_precision(self, model):
        layers = [m for m in model.modules() if isinstance(m, Rounded.Layer)]
        before = [layer.exact for layer in layers]
        for layer in layers:
            layer.exact = True
        yield
        for layer, exact in zip(layers, before, strict=True):
            layer.exact = exact


class NarrowMasters(Rounded):
    def swap(self, layer, module):
        layer.weight = nn.Parameter(module.weight.detach().bfloat16().to(module.weight.dtype))


class ExtraState(Rounded):
    def swap(self, layer, module):
        super().swap(layer, module)
        layer.register_buffer("scale", torch.ones(()))


class TakesWhatItLikes(Rounded):
    def prepare(self, model, include):
        return super().prepare(model, lambda name, module: isinstance(module, nn.Linear))


class NeverExact(Rounded):
    @contextmanager
    def full_precision(self, model):
        yield


class StaysExact(Rounded):
    @contextmanager
    def full_precision(self, model):
        for layer in model.modules():
            layer.exact = True
        yield


class NoGradient(Rounded):
    class Layer(Rounded.Layer):
        def forward(self, x):
            return _Zero.apply(super().forward(x))


class _Zero(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return torch.zeros_like(grad)


class KeepsFirstWeights(Rounded):
    class Layer(Rounded.Layer):
        kept = None

        def forward(self, x):
            if self.kept is None:
                self.kept = self.weight.detach().clone()
            return F.linear(x, self.weight + (self.kept - self.weight).detach())


@pytest.mark.parametrize(
    ("backend", "check", "told"),
    [
        (WindowOneTooWide, "windows", "9 of 13: window 1 of 300: the output is"),
        (WindowForgotten, "windows", "10 of 13: window 0 of 300: the output is"),
        (WrongGroups, "grouped_queries", "4 heads on 2: "),
        (OwnScale, "scales", "scale 0.05"),
        (LastBlockWrong, "lengths", "1 positions, window None: the output is"),
        (TakesStridesForGranted, "layouts", "heads first"),
        (ScalesQueriesInPlace, "inputs_are_kept", "q after a forward pass"),
        (DocumentsForgotten, "documents", "at the edges of blocks, window None: the output is"),
        (DocumentsOfTheFirstRow, "documents", "at the edges of blocks, window None"),
        (SilentlyWithoutDocuments, "documents", "do not name 'documents'), but a call computes"),
        (BreaksTheGraph, "compiles_whole", "does not compile in one graph"),
        (ClaimsToRepeatItself, "repeats_itself", "the output is not the same as before"),
        (CacheNotFilled, "cache_in_place", "the key cache, 1 tokens behind"),
        (RowsAllAlike, "cache_ragged", "1 new, window None"),
        (NotCausalWithinThePrompt, "cache_many_tokens", "17 behind 0"),
        (SilentlyWithoutWindows, "windows", "refused (it has no windows), but a call computes it"),
        (HidesThatItLacksWindows, "capabilities", "supports() accepts a problem"),
        (RefusesWithoutReason, "head_sizes", "head_dim 80: supports() refuses it without a reason"),
        (Raises, "dtypes", "it raised RuntimeError: no kernel image is available"),
        (CountsIgnoredRows, "ignored_rows", "mean, 30% of rows at -1: the loss is"),
        (ZeroForNoRows, "all_rows_ignored", "is 0.0, not NaN"),
        (CapForgotten, "softcaps", "softcap 15.0"),
        (OverflowsWithLargeLogits, "large_logits", "not finite"),
        (RescalesAtEachBackward, "second_backward", "the second gradient of hidden"),
        (IgnoresTheScale, "gradient_scale", "3.0 times the mean: the gradient of hidden is"),
        (NoWeightGradientAlone, "gradient_of_one_factor", "gradient of weight is None"),
        (WrongWhenCompiled, "compiles_whole", "mean, softcap None: the loss is"),
        (ClampsTargetsInPlace, "inputs_are_kept", "targets after a forward pass"),
        (ClaimsToBeChunked, "logits_are_not_held", "claims `chunked` but holds"),
        (OperatorWithWrongFake, "operators", "opcheck"),
        (NarrowMasters, "parameters_are_kept", "weight is not the same as before"),
        (ExtraState, "parameters_are_kept", "scale"),
        (TakesWhatItLikes, "only_what_is_included", "include() refused"),
        (NeverExact, "full_precision_is_exact", "within full_precision()"),
        (StaysExact, "full_precision_is_exact", "full precision"),
        (NoGradient, "close_to_full_precision", "the gradient of"),
        (KeepsFirstWeights, "trains_its_masters", "the output is"),
    ],
)
def test_a_fault_is_caught_by_the_check_of_its_name(outcome, backend, check, told):
    result = outcome(backend(), check)
    assert result.outcome == "failed"
    assert told in result.detail


@pytest.mark.parametrize(
    ("backend", "check"), [(WidensItsOutput, "dtypes"), (NarrowLoss, "reductions")]
)
def test_a_dtype_of_its_own_is_caught(outcome, backend, check):
    result = outcome(backend(), check, "bfloat16")
    assert result.outcome == "failed"
    assert "torch." in result.detail


@pytest.mark.parametrize(("dtype", "seen"), [("bfloat16", 8), ("float16", 9)])
def test_one_key_too_many_is_seen_in_a_narrow_dtype(outcome, dtype, seen):
    """At a window of 129 it is a hundredth of what a query sees. At 298 it is one key of 300 for
    one query, which bfloat16 cannot tell."""
    result = outcome(WindowOneTooWide(), "windows", dtype)
    assert result.outcome == "failed"
    assert result.detail.startswith(f"{seen} of 13: ")


def test_the_honest_base_of_the_broken_ones_passes(outcome):
    for check in checks("quantization"):
        if check.name not in ("compiles_whole", "operators"):
            result = outcome(Rounded(), check.name)
            assert result.outcome == "passed", result


def test_a_bound_of_its_own_is_what_counts(outcome):
    class Coarse(Rounded):
        class Layer(Rounded.Layer):
            def forward(self, x):
                return super().forward(x) * 1.05

    assert outcome(Coarse(), "close_to_full_precision").outcome == "failed"
    Coarse.error_bounds = {"output": 0.2, "gradient": 0.5}
    result = outcome(Coarse(), "close_to_full_precision")
    assert result.outcome == "passed"
    assert "at most" in result.detail


class RefusesWindows(Sdpa):
    capabilities = ("gqa",)

    def supports(self, problem):
        if problem.windowed:
            return Support.no("it has no windows", "Use --window-pattern L")
        return Support.yes()

    def attention(self, q, k, v, *, window, scale):
        if window is not None and window < q.size(1) - 1:
            raise ValueError("windows are not supported")
        return super().attention(q, k, v, window=window, scale=scale)

    def attention_with_kvcache(self, *tensors, **options):
        raise NotImplementedError


def test_a_lack_that_is_declared_and_kept_to_is_a_refusal(outcome):
    result = outcome(RefusesWindows(), "windows")
    assert result.outcome == "passed"  # the windows that hide nothing
    assert "10 of 13 refused (window 0 of 300: it has no windows)" in result.detail
    assert outcome(RefusesWindows(), "capabilities").outcome == "passed"
    result = outcome(RefusesWindows(), "cache_one_token")
    assert result.outcome == "refused"
    assert "do not name 'kvcache'" in result.detail
    assert outcome(RefusesWindows(), "operators").outcome == "not applicable"


def test_a_refused_problem_that_is_computed_right_is_no_fault(outcome):
    class Modest(Sdpa):
        def supports(self, problem):
            return Support.no("not measured") if problem.head_dim > 64 else Support.yes()

    result = outcome(Modest(), "head_sizes")
    assert result.outcome == "passed"
    assert "4 of 7 refused (head_dim 80: not measured)" in result.detail
