"""The loss backend `cce`: what it says of itself. Its operator loads late."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
from nanochat_cce.options import ACCUMULATE_VARIABLE, Options, options_from_environment
from nanochat_cce.upstream import Features, installed_features

if TYPE_CHECKING:
    from torch import Tensor

DISTRIBUTION = "cut-cross-entropy"
INSTALL = f"pip install '{DISTRIBUTION}>=25.1'"
INSTALL_MAIN = "pip install 'cut-cross-entropy @ git+https://github.com/apple/ml-cross-entropy.git'"

LIMIT_32 = 2**31

# The widest tile of words of any of its configurations (CCE_AUTOTUNE=1 chooses; 128 otherwise).
TILE = 256
TOLERATED = 1e-5


class CutCrossEntropy(LossBackend):
    """Apple's Cut Cross-Entropy: logits are made tile by tile in registers, twice.

    The extra memory is about a megabyte at any size; the price is that the backward pass makes
    the logits again. `options` overrides what the environment says (see `nanochat_cce.options`).
    """

    name = "cce"
    summary = "Cut Cross-Entropy (Triton): logits never reach memory"
    requires = (Requirement(DISTRIBUTION, ">=25.1", INSTALL),)
    capabilities = ("softcap",)
    kernels = KernelPatterns(
        forward=(r"_cce_lse_forward_kernel",),
        backward=(r"_cce_backward_kernel",),
    )
    # For the conformance suite: up to 1.3e-2 was measured against the compiled plain loss (25.1.1,
    # bfloat16, H200, random data), from the filter and from sums in bfloat16.
    error_bounds: Mapping[str, float] = {"gradient": 2e-2}
    _operators: ModuleType
    _chosen: Options

    def __init__(self, options: Options | None = None) -> None:
        self._options = options

    def priority(self, target: Target) -> int:
        """30 on sm_12x, else 8.

        Forward and backward, softcap 15: on a GB10 (sm_121) its users train 1.36 times as fast as
        with the plain loss, for there memory traffic is dear. On an H200 (sm_90) it needs 12.0 ms
        where the compiled plain loss (10) and `chunked` (12) need 7.1 and liger 11.1 (8,192 rows,
        65,536 words), and 58 ms against 30 at 65,536 rows. Where nobody measured it stays behind
        the builtins: `--loss measure` finds out.
        """
        if target.capability is not None and target.capability[0] == 12:
            return 30
        return 8

    def check(self, target: Target) -> Support:
        if target.kind != "cuda":
            return Support.no(f"its Triton kernels need an NVIDIA GPU, this is a {target.kind}")
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
        features = installed_features()
        if features is None or not features.known:
            return Support.no(
                f"the installed {_version()} has no cce_backward_kernel that this plugin knows",
                "pip install 'cut-cross-entropy==25.1.1'",
            )
        try:
            options = self._settings()
        except UsageError as error:
            return Support.no(error.message, error.remedy)
        if options.accumulate_float32 and not features.float32:
            return Support.no(
                f"{ACCUMULATE_VARIABLE}=float32 needs gradients in float32, which the installed "
                f"{_version()} lacks",
                INSTALL_MAIN,
            )
        return Support.yes(_without(features))

    def supports(self, problem: Problem) -> Support:
        assert isinstance(problem, LossProblem)
        features = installed_features() or Features(known=False)
        narrow = ("bfloat16", "float16")
        if problem.dtype not in (*narrow, "float32"):
            return Support.no(f"it computes in bfloat16 or float16, not in {problem.dtype}")
        if problem.dtype == "float32" and not features.float32:
            return Support.no(
                f"the backward pass of {_version()} takes bfloat16 or float16, not float32",
                f"Use --dtype bfloat16, or {INSTALL_MAIN}",
            )
        largest = max(problem.tokens, problem.vocab) * problem.hidden
        if largest >= LIMIT_32 and not features.indices_64:
            return Support.no(
                f"a factor of {largest:,} elements overflows the 32-bit offsets of {_version()}",
                f"Use a smaller --device-batch-size, or {INSTALL_MAIN}",
            )
        padding = _padding_error(problem)
        if padding > TOLERATED:
            return Support.no(
                f"with a softcap of {problem.softcap:g} its kernel counts the padding of the last "
                f"tile of words, by {padding:.0e} of the softmax at {problem.vocab:,} words",
                f"Pad the vocabulary to a multiple of {TILE}",
            )
        return Support.yes(_without(features))

    def load(self) -> None:
        from nanochat_cce import kernels, operators

        self._chosen = self._settings()
        kernels.load()
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
            options=self._chosen,
        )

    def operator_samples(self, device: str) -> list[tuple[Any, tuple[Any, ...]]]:
        """The custom operators with arguments to test them on, for `torch.library.opcheck`."""
        import torch

        hidden = torch.randn(40, 64, dtype=torch.bfloat16, device=device)
        weight = torch.randn(256, 64, dtype=torch.bfloat16, device=device)
        targets = torch.arange(40, device=device)
        # Without the filter: it orders words by sums whose own order may change between runs.
        options = (-1, 15.0, None, False)
        arguments = (hidden, weight, targets, *options, True)
        found: list[tuple[Any, tuple[Any, ...]]] = []
        for operator in (self._operators.row_losses, self._operators.total_loss):
            loss, lse, means = operator(*arguments)
            saved = (loss, hidden, weight, targets, lse, means)
            found += [
                (operator, arguments),
                (self._operators.row_gradients, (*saved, *options, True, True)),
            ]
        return found

    def _settings(self) -> Options:
        return options_from_environment() if self._options is None else self._options


def _padding_error(problem: LossProblem) -> float:
    """How much the sum of exponentials is too large at most, if logits are 0 in the mean.

    The forward kernels of 25.1.1 and 25.6 mask the words beyond the last before they apply the
    cap, which turns minus infinity into -softcap: each counts as exp(-softcap). At a cap of 15
    that is nothing.
    """
    if problem.softcap is None or problem.vocab % TILE == 0:
        return 0.0
    return (TILE - 1) * math.exp(-problem.softcap) / problem.vocab


def _version() -> str:
    return f"{DISTRIBUTION} {installed_version(DISTRIBUTION)}"


def _without(features: Features) -> str:
    if not features.missing:
        return ""
    return f"{_version()} lacks {', '.join(features.missing)} ({INSTALL_MAIN} has them)"
