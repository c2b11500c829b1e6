"""The loss backend `liger`: what it says of itself. Its operators load late."""

from __future__ import annotations

import os
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from nanochat.backend import (
    KernelPatterns,
    LossBackend,
    LossProblem,
    Problem,
    Reduction,
    Requirement,
    Support,
    Target,
    installed_version,
)
from nanochat.errors import UsageError
from nanochat_liger.upstream import missing_arguments

if TYPE_CHECKING:
    from torch import Tensor

DISTRIBUTION = "liger-kernel"
INSTALL = f"pip install '{DISTRIBUTION}>=0.8.5'"
ACCUMULATE_VARIABLE = "NANOCHAT_LIGER_ACCUMULATE"


class Liger(LossBackend):
    """Linear cross-entropy in chunks of rows, the gradient taken in the forward pass.

    The gradient of the weight is summed over the chunks in the weight's own dtype, which is
    upstream's default, or with `accumulate_float32=True` in float32: more exact, for 4 bytes an
    element while the forward pass runs. None leaves that to NANOCHAT_LIGER_ACCUMULATE ("weight",
    the default, or "float32").
    """

    name = "liger"
    summary = "Liger's fused linear cross-entropy (Triton), chunks of rows"
    requires = (
        Requirement(DISTRIBUTION, ">=0.8.5", INSTALL),
        # It imports this without declaring it.
        Requirement("packaging", "", "pip install packaging"),
    )
    capabilities = ("softcap", "chunked")
    # Gradients are made in the forward pass; the backward pass only scales them.
    kernels = KernelPatterns(forward=(r"liger_cross_entropy_kernel",))
    _operators: ModuleType
    _float32: bool

    def __init__(self, accumulate_float32: bool | None = None) -> None:
        self._asked = accumulate_float32

    def priority(self, target: Target) -> int:
        """9 on Hopper, 5 on sm_12x, else 7: nowhere ahead of the builtins (10 and 12).

        Forward and backward on an H200 (sm_90), softcap 15: 11.1 ms where the compiled plain loss
        and `chunked` need 7.1 (8,192 rows, 65,536 words), and as fast as they (30.1 ms) at 65,536
        rows. On a GB10 (sm_121) its users train at 15,645 tokens/s with it and at 16,040 with the
        plain loss, in twice the memory. Nobody measured elsewhere: `--loss measure` finds out.
        """
        if target.capability is None:
            return 7
        return {9: 9, 12: 5}.get(target.capability[0], 7)

    def check(self, target: Target) -> Support:
        if target.kind != "cuda":
            return Support.no(f"its Triton kernel needs an NVIDIA GPU, this is a {target.kind}")
        if target.capability is None or target.capability < (8, 0):
            found = "unknown" if target.capability is None else "{}.{}".format(*target.capability)
            return Support.no(
                f"it needs compute capability 8.0 for bfloat16 products, {found} was found",
                "Use --loss chunked",
            )
        if find_spec("triton") is None:
            return Support.no(
                "triton is not installed", "Install a CUDA build of torch, which brings it"
            )
        missing = missing_arguments()
        if missing:
            return Support.no(
                f"fused_linear_cross_entropy_forward of {DISTRIBUTION} "
                f"{installed_version(DISTRIBUTION)} does not take {', '.join(sorted(missing))}",
                "pip install 'liger-kernel==0.8.5'",
            )
        try:
            self._accumulates_float32()
        except UsageError as error:
            return Support.no(error.message, error.remedy)
        return Support.yes()

    def supports(self, problem: Problem) -> Support:
        assert isinstance(problem, LossProblem)
        if problem.dtype not in ("bfloat16", "float16", "float32"):
            return Support.no(
                f"it computes in bfloat16, float16 or float32, not in {problem.dtype}"
            )
        # Rows are addressed in 64 bits and words in a loop: no size is too large for the kernel.
        return Support.yes()

    def load(self) -> None:
        from nanochat_liger import operators

        self._float32 = self._accumulates_float32()
        operators.upstream()
        self._operators = operators

    def linear_cross_entropy(
        self,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        *,
        ignore_index: int = -1,
        softcap: float | None = None,
        reduction: Reduction = "mean",
    ) -> Tensor:
        return self._operators.linear_cross_entropy(
            hidden,
            weight,
            targets,
            ignore_index=ignore_index,
            softcap=softcap,
            reduction=reduction,
            accumulate_float32=self._float32,
        )

    def operator_samples(self, device: str) -> list[tuple[Any, tuple[Any, ...]]]:
        """The custom operators with arguments to test them on, for `torch.library.opcheck`."""
        import torch

        hidden = torch.randn(40, 64, dtype=torch.bfloat16, device=device)
        weight = torch.randn(256, 64, dtype=torch.bfloat16, device=device)
        targets = torch.arange(40, device=device)
        inputs, options = (hidden, weight, targets), (-1, 15.0, False)
        outer = torch.rand(40, device=device)
        return [
            (self._operators.sum_and_gradients, (*inputs, *options, True, True)),
            (self._operators.row_losses, (*inputs, *options)),
            (self._operators.row_gradients, (outer, *inputs, *options, True, True)),
        ]

    def _accumulates_float32(self) -> bool:
        """Raises UsageError if the environment says something else than it may."""
        if self._asked is not None:
            return self._asked
        asked = os.environ.get(ACCUMULATE_VARIABLE, "").strip().lower()
        if asked not in ("", "weight", "float32"):
            raise UsageError(
                f"{ACCUMULATE_VARIABLE} is {asked!r}", "Set it to weight or float32, or unset it"
            )
        return asked == "float32"
