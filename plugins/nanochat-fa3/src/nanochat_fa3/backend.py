"""The attention backend `fa3`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nanochat.backend import (
    AttentionBackend,
    AttentionProblem,
    KernelPatterns,
    Problem,
    Support,
    Target,
)
from nanochat.errors import NanochatError
from nanochat_fa3.providers import Selection, can_compute, select

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from nanochat_fa3.ops import Operators


@contextmanager
def own_gpu() -> Iterator[torch.device]:
    """The GPU of this process, which under torchrun is not yet the current one."""
    import torch

    rank = os.environ.get("LOCAL_RANK", "")
    index = int(rank) if rank.isdecimal() else torch.cuda.current_device()
    with torch.cuda.device(index):
        yield torch.device("cuda", index)


class FlashAttention(AttentionBackend):
    """FlashAttention, from the best build that is installed for the GPU at hand.

    `check(target)` of an NVIDIA GPU decides on the provider; `supports` and `load` speak of the one
    it found, and `kernels` has its patterns. Without one they look at this machine's own GPU.
    """

    name = "fa3"
    summary = "FlashAttention 3, 2 or 4, or that of the Hugging Face hub, whichever is installed"
    aliases = ("flash-attention",)
    capabilities = ("gqa", "window", "kvcache", "documents")

    def __init__(self) -> None:
        self._selection: Selection | None = None
        self._operators: Operators | None = None
        self._loaded: dict[str, Operators] = {}

    def priority(self, target: Target) -> int:
        return select(target).standing.priority

    def check(self, target: Target) -> Support:
        selection = select(target)
        if selection.family is not None:  # asked about a CPU, it forgets nothing of the GPU
            self._selection = selection
            self.kernels: KernelPatterns = selection.patterns
        if selection.provider is None:
            return Support.no(selection.reason, selection.remedy)
        return Support.yes(selection.reason)

    def supports(self, problem: Problem) -> Support:
        assert isinstance(problem, AttentionProblem)
        return can_compute(self._selected(), problem)

    def load(self) -> None:
        """Import the provider and, where its results are in doubt, compare them with float64.

        Raises NanochatError if it does not import, is of an unknown version or computes wrongly.
        """
        selection = self._selected()
        if selection.provider is None:
            raise NanochatError(selection.reason, selection.remedy)
        name = selection.provider.name
        if name not in self._loaded:
            import torch

            from nanochat_fa3 import bindings, ops, parity

            operators = ops.register(bindings.bind(selection))
            if selection.standing.checked:
                with own_gpu() as device:
                    parity.require(operators, selection.provider.title, device, torch.bfloat16)
            self._loaded[name] = operators
        self._operators = self._loaded[name]

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
        if window is not None and window >= q.size(1) - 1:
            window = None  # the kernels without a window are faster
        assert self._operators is not None, "load() comes first"
        return self._operators.attention(q, k, v, documents, window, scale)

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
        if window is not None and window >= k_cache.size(1) - 1:
            window = None
        assert self._operators is not None, "load() comes first"
        return self._operators.decode(q, k_cache, v_cache, k, v, cache_seqlens, window, scale)

    def operator_samples(self, device: str) -> list[tuple[Any, tuple[Any, ...]]]:
        """Operators and arguments for `torch.library.opcheck`, as the conformance suite asks."""
        assert self._operators is not None, "load() comes first"
        from nanochat_fa3.ops import samples

        return samples(self._operators, device)

    def _selected(self) -> Selection:
        if self._selection is None:
            from nanochat.builtin.devices import Cuda

            target = Cuda().probe() or Target(kind="cpu", name="no NVIDIA GPU was found")
            self.check(target)
            return self._selection or select(target)
        return self._selection
