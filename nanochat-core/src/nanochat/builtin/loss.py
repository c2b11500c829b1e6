"""The loss backends of the core: what they say of themselves. Their kernels load late."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

from nanochat.backend import (
    KernelPatterns,
    LossBackend,
    LossProblem,
    Problem,
    Reduction,
    Requirement,
    Support,
    Target,
)

if TYPE_CHECKING:
    from torch import Tensor


class Torch(LossBackend):
    """A linear layer, the cap and `cross_entropy`, left to the compiler: the reference."""

    name = "torch"
    summary = "PyTorch's linear layer and cross-entropy, fused by torch.compile"
    aliases = ("current",)
    requires = (Requirement("torch", ">=2.9", "pip install 'torch>=2.9'"),)
    capabilities = ("softcap",)
    kernels = KernelPatterns(
        forward=(r"log_softmax|logsumexp|nll_loss|softmax|CrossEntropy",),
        backward=(r"log_softmax.*backward|nll_loss|softmax|CrossEntropy",),
    )
    _kernel: ModuleType

    def priority(self, target: Target) -> int:
        return 15 if target.kind == "mps" else 10

    def load(self) -> None:
        from nanochat.builtin import linear_cross_entropy

        self._kernel = linear_cross_entropy

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
        return self._kernel.linear_cross_entropy(
            hidden,
            weight,
            targets,
            ignore_index=ignore_index,
            softcap=softcap,
            reduction=reduction,
        )


class Chunked(Torch):
    """The same in chunks of rows, whose gradients are taken in the forward pass.

    Never holds the (N, V) logits nor computes any of them twice.
    """

    name = "chunked"
    summary = "cross-entropy over chunks of rows with the gradient in the forward pass"
    aliases = ()
    capabilities = ("softcap", "chunked")
    kernels = KernelPatterns(
        # On a CPU the operators of this loss, ours or torch's.
        forward=(r"softmax_gradient_kernel|chunked_cross_entropy|linear_cross_entropy",),
        backward=(),
    )

    def priority(self, target: Target) -> int:
        return 12

    def supports(self, problem: Problem) -> Support:
        assert isinstance(problem, LossProblem)
        from nanochat.builtin.chunks import rows_per_chunk

        rows = rows_per_chunk(problem.tokens, problem.vocab, problem.hidden)
        return Support.yes(f"{rows} rows of logits at a time")

    def load(self) -> None:
        from nanochat.builtin import chunked_cross_entropy

        self._kernel = chunked_cross_entropy
