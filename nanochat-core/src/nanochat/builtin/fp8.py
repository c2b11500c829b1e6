"""Linear layers whose three matrix products run in 8-bit floats (arXiv:2209.05433).

    forward    output      = input       @ weight.T   e4m3 x e4m3
    backward   grad_input  = grad_output @ weight     e5m2 x e4m3
               grad_weight = grad_output.T @ input    e5m2 x e4m3

Scales are dynamic: the largest magnitude of a tensor (or of each row) is mapped to the largest
8-bit number. An input whose bound is known beforehand, such as the output of RMSNorm, needs no
search for its maximum: its scale is a constant, and the compiler can write the 8-bit tensor
straight from the normalisation. Master weights and checkpoints stay as they are.

Everything is plain traceable torch, so that casts fuse with what surrounds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nanochat.fused.cast import cast_both_ways

FORWARD = torch.float8_e4m3fn
GRADIENT = torch.float8_e5m2
SMALLEST = 1e-12
"""Floor of a tensor's maximum, so that zeros do not divide by zero."""


def scale_for(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The factor that brings the largest magnitude of x to the largest number of `dtype`."""
    maximum = x.detach().abs().amax().float().clamp(min=SMALLEST)
    return torch.finfo(dtype).max / maximum


def quantize(
    x: Tensor, dtype: torch.dtype, *, dim: int | None = None, bound: float | None = None
) -> tuple[Tensor, Tensor]:
    """x as 8-bit floats and the float32 factor that turns them back.

    One factor for the tensor (`dim=None`, shape ()), or one for each slice whose maximum is taken
    along `dim` (that dimension is kept with size 1). `bound` is a known largest magnitude.
    """
    largest = torch.finfo(dtype).max
    if bound is not None:
        scale = torch.full((), largest / bound, dtype=torch.float32, device=x.device)
    elif dim is None:
        scale = scale_for(x, dtype)
    else:
        maximum = x.detach().abs().amax(dim=dim, keepdim=True)
        scale = largest / maximum.float().clamp(min=SMALLEST)
    scaled = (x.float() * scale).clamp(-largest, largest)  # the cast wraps round, it must saturate
    return scaled.to(dtype), scale.reciprocal()


def multiply(a: Tensor, b: Tensor, a_factor: Tensor, b_factor: Tensor, out: torch.dtype) -> Tensor:
    """a (M, K) @ b (K, N) of 8-bit floats, where b is column-major, as the hardware wants."""
    return torch._scaled_mm(
        a.contiguous(),  # it is, unless the input or the gradient came in transposed
        b,
        scale_a=a_factor,
        scale_b=b_factor,
        out_dtype=out,
        use_fast_accum=a.dtype == FORWARD,
    )


def column_major(x: Tensor) -> Tensor:
    return x.t().contiguous().t()


class TensorwiseProduct(torch.autograd.Function):
    """input (M, K) @ weight (N, K).T with one scale a tensor. Saves the 8-bit tensors only."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bound: float | None) -> Tensor:
        if bound is None:
            # The backward pass needs the input the other way round: make both in one pass.
            scale = scale_for(input, FORWARD)
            x, saved = cast_both_ways(input, scale, FORWARD)
            x_factor = scale.reciprocal()
        else:
            # The compiler casts within the kernel that made the input. Do not stand in its way.
            x, x_factor = quantize(input, FORWARD, bound=bound)
            saved = x
        w, w_factor = quantize(weight, FORWARD)
        ctx.save_for_backward(saved, x_factor, w, w_factor)
        ctx.saved_transposed = bound is None
        ctx.weight_dtype = weight.dtype
        return multiply(x, w.t(), x_factor, w_factor, input.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        saved, x_factor, w, w_factor = ctx.saved_tensors
        x = saved.t() if ctx.saved_transposed else column_major(saved)
        scale = scale_for(grad_output, GRADIENT)
        g, g_transposed = cast_both_ways(grad_output, scale, GRADIENT)
        g_factor = scale.reciprocal()
        dtype = grad_output.dtype
        grad_input = multiply(g, column_major(w), g_factor, w_factor, dtype)
        grad_weight = multiply(g_transposed, x, g_factor, x_factor, dtype)
        return grad_input, grad_weight.to(ctx.weight_dtype), None


class RowwiseProduct(torch.autograd.Function):
    """The same with one scale for each row along the summed dimension of every product.

    The backward products sum over other dimensions than the forward one, so their operands are
    quantized anew from what was saved in full.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bound: float | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        x, x_factor = quantize(input, FORWARD, dim=1)
        w, w_factor = quantize(weight, FORWARD, dim=1)
        return multiply(x, w.t(), x_factor, w_factor.reshape(1, -1), input.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        input, weight = ctx.saved_tensors
        g, g_factor = quantize(grad_output, GRADIENT, dim=1)
        w, w_factor = quantize(weight, FORWARD, dim=0)
        grad_input = multiply(g, column_major(w), g_factor, w_factor, grad_output.dtype)
        g, g_factor = quantize(grad_output, GRADIENT, dim=0)
        x, x_factor = quantize(input, FORWARD, dim=0)
        grad_weight = multiply(
            g.t().contiguous(),
            column_major(x),
            g_factor.reshape(-1, 1),
            x_factor,
            grad_output.dtype,
        )
        return grad_input, grad_weight.to(weight.dtype), None


class Fp8Linear(nn.Linear):
    """Stands in for a linear layer, sharing its parameters."""

    rowwise: bool = False
    enabled: bool = True
    input_bound: float | None = None

    def forward(self, input: Tensor) -> Tensor:
        if not self.enabled:
            return nn.functional.linear(input, self.weight.to(input.dtype))
        product = RowwiseProduct if self.rowwise else TensorwiseProduct
        flat = input.reshape(-1, self.in_features)
        output = product.apply(flat, self.weight, self.input_bound)
        return output.view(*input.shape[:-1], self.out_features)


def swap(model: nn.Module, include: Callable[[str, nn.Module], bool], *, rowwise: bool) -> int:
    """Replace the linear layers that `include` accepts, in place. Returns how many."""
    chosen = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and not isinstance(module, Fp8Linear)
        and module.bias is None
        and include(name, module)
    ]
    for name, module in chosen:
        with torch.device("meta"):
            layer = Fp8Linear(module.in_features, module.out_features, bias=False)
        layer.weight = module.weight
        layer.rowwise = rowwise
        layer.input_bound = getattr(module, "input_bound", None)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
    return len(chosen)


@contextmanager
def full_precision(model: nn.Module) -> Iterator[None]:
    """Within it the swapped layers compute in the dtype of their input."""
    layers = [module for module in model.modules() if isinstance(module, Fp8Linear)]
    before = [layer.enabled for layer in layers]
    try:
        for layer in layers:
            layer.enabled = False
        yield
    finally:
        for layer, enabled in zip(layers, before, strict=True):
            layer.enabled = enabled
