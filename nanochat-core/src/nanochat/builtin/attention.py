"""The attention backends of the core: what they say of themselves. Their kernels load late."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

from nanochat.backend import (
    AttentionBackend,
    AttentionProblem,
    KernelPatterns,
    Problem,
    Requirement,
    Support,
    Target,
)

if TYPE_CHECKING:
    from torch import Tensor


class Sdpa(AttentionBackend):
    """`torch.nn.functional.scaled_dot_product_attention`, on every device: the reference."""

    name = "sdpa"
    summary = "PyTorch's scaled dot product attention; windows through a mask"
    requires = (Requirement("torch", ">=2.9", "pip install 'torch>=2.9'"),)
    capabilities = ("gqa", "window", "kvcache", "documents")
    kernels = KernelPatterns(
        forward=(r"flash_fwd|fmha|sdpa|attention_forward|_scaled_dot_product",),
        backward=(r"flash_bwd|fmha|sdpa|attention_backward|_scaled_dot_product.*backward",),
    )
    _kernel: ModuleType

    def priority(self, target: Target) -> int:
        return 20

    def supports(self, problem: Problem) -> Support:
        assert isinstance(problem, AttentionProblem)
        masked = "a document mask" if problem.documents else "a sliding window"
        if (
            problem.device == "cuda"
            and problem.training
            and (problem.documents or problem.windowed)
        ):
            return Support.slow(
                f"{masked} is a mask of every pair here, which costs more than full attention",
                "Take --attention flex",
            )
        return Support.yes()

    def load(self) -> None:
        from nanochat.builtin import sdpa

        self._kernel = sdpa

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        window: int | None,
        scale: float,
        documents: Tensor | None = None,
    ) -> Tensor:
        return self._kernel.attention(q, k, v, window=window, scale=scale, documents=documents)

    def attention_with_kvcache(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        cache_seqlens: Tensor,
        window: int | None,
        scale: float,
    ) -> Tensor:
        return self._kernel.attention_with_kvcache(
            q, k_cache, v_cache, k, v, cache_seqlens=cache_seqlens, window=window, scale=scale
        )


class Flex(Sdpa):
    """`torch.nn.attention.flex_attention` for windows and documents: it skips unseen blocks.

    Layers that see everything, and decoding, go to SDPA, whose kernels are faster at them.
    """

    name = "flex"
    summary = "windows and documents as block-sparse kernels (flex_attention), the rest as sdpa"
    kernels = KernelPatterns(
        forward=(r"triton_.*flex_attention",), backward=(r"triton_.*flex_attention_backward",)
    )

    def priority(self, target: Target) -> int:
        return 15 if target.kind == "cuda" else 5

    def check(self, target: Target) -> Support:
        if target.kind == "cuda":
            return Support.yes()
        return Support.no(
            f"flex_attention has no backward pass on {target.kind}", "Use --attention sdpa"
        )

    def kernels_of(self, problem: Problem | None) -> KernelPatterns:
        if not isinstance(problem, AttentionProblem) or problem.documents:
            return self.kernels
        layers = [problem.sees_part(window) for window in problem.windows]
        kinds = [Sdpa.kernels] * (not all(layers)) + [self.kernels] * any(layers)
        return KernelPatterns(
            forward=tuple(p for kind in kinds for p in kind.forward),
            backward=tuple(p for kind in kinds for p in kind.backward),
        )

    def operator_samples(self, device: str) -> list[tuple[object, ...]]:
        import torch

        from nanochat.builtin.flex_blocks import document_tables

        documents = torch.arange(300, device=device, dtype=torch.int32)[None] // 70
        return [(document_tables, (documents, window)) for window in (None, 100)]

    def supports(self, problem: Problem) -> Support:
        assert isinstance(problem, AttentionProblem)
        if problem.head_dim < 16:
            return Support.no(
                f"its kernels need heads of 16 or more, not {problem.head_dim}",
                "Use --head-dim 16 or more, or --attention sdpa",
            )
        return Support.yes()

    def load(self) -> None:
        from nanochat.builtin import flex

        self._kernel = flex
