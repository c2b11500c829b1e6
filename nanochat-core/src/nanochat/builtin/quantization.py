"""The quantization backends of the core: what they say of themselves. Their kernels load late."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import ModuleType
from typing import TYPE_CHECKING

from nanochat.backend import (
    KernelPatterns,
    Problem,
    QuantizationBackend,
    QuantizationProblem,
    Requirement,
    Support,
    Target,
)

if TYPE_CHECKING:
    from torch import nn

FP8_CAPABILITY = (8, 9)


class NoQuantization(QuantizationBackend):
    """Linear layers stay as they are."""

    name = "none"
    summary = "linear layers in the dtype of the activations"

    def priority(self, target: Target) -> int:
        # Narrower formats change the numerics of a run, so they are only taken when asked for.
        return 100

    def prepare(self, model: nn.Module, include: Callable[[str, nn.Module], bool]) -> int:
        return 0


class Fp8(QuantizationBackend):
    """8-bit floats through `torch._scaled_mm`: e4m3 forward, e5m2 gradients, dynamic scales.

    Tensor-wise scales are the fast recipe; row-wise ones (`fp8-rowwise`) are more precise with
    outliers and cost more casts.
    """

    requires = (Requirement("torch", ">=2.9", "pip install 'torch>=2.9'"),)
    kernels = KernelPatterns(
        forward=(r"e4m3|f8|fp8|scaled_mm",), backward=(r"e5m2|f8|fp8|scaled_mm",)
    )
    _kernel: ModuleType

    def __init__(self, rowwise: bool = False) -> None:
        self.rowwise = rowwise
        scaling = "row-wise" if rowwise else "tensor-wise"
        self.name = "fp8-rowwise" if rowwise else "fp8"
        self.summary = f"linear layers in 8-bit floats with {scaling} scales (torch._scaled_mm)"
        self.capabilities = (scaling,)

    def priority(self, target: Target) -> int:
        return 5 if self.rowwise else 10

    def check(self, target: Target) -> Support:
        if target.kind == "cpu":
            return Support.slow("a CPU emulates 8-bit products: for tests, not for speed")
        if target.kind != "cuda":
            return Support.no(
                f"there are no 8-bit products on {target.kind}", "Use --quantization none"
            )
        if target.capability is None or target.capability < FP8_CAPABILITY:
            return Support.no(
                f"8-bit products need compute capability 8.9 or later, this is {target}",
                "Use --quantization none",
            )
        return Support.yes()

    def supports(self, problem: Problem) -> Support:
        assert isinstance(problem, QuantizationProblem)
        if not problem.layers:
            return Support.no(
                "no linear layer of this model is large enough (128) and divisible by 16",
                "Use --quantization none or a wider model",
            )
        if problem.tokens % 16:
            return Support.no(
                f"a forward pass has {problem.tokens} tokens, not a multiple of 16",
                "Change --device-batch-size or --max-seq-len",
            )
        if problem.dtype not in ("bfloat16", "float32"):
            return Support.no(f"it computes from bfloat16 or float32, not {problem.dtype}")
        if self.rowwise and problem.device == "cuda" and problem.dtype != "bfloat16":
            return Support.no("row-wise products on CUDA return bfloat16", "Use --dtype bfloat16")
        if problem.device == "cuda" and not problem.compiled:
            return Support.slow("uncompiled, its casts cost more than its products save")
        return Support.yes()

    def load(self) -> None:
        from nanochat.builtin import fp8

        self._kernel = fp8

    def prepare(self, model: nn.Module, include: Callable[[str, nn.Module], bool]) -> int:
        return self._kernel.swap(model, include, rowwise=self.rowwise)

    def full_precision(self, model: nn.Module) -> AbstractContextManager[None]:
        return self._kernel.full_precision(model)
