"""The attention backend `pallas`: what it says of itself. Its kernels load late."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanochat.backend import (
    AttentionBackend,
    AttentionProblem,
    KernelPatterns,
    Problem,
    Support,
    Target,
)
from nanochat.errors import NanochatError
from nanochat_xla import stacks
from nanochat_xla.blocks import choose, padded_length
from nanochat_xla.hardware import HOST_KIND, KIND

if TYPE_CHECKING:
    from torch import Tensor

    from nanochat_xla.operators import Operators

# The widest heads whose kernels libtpu was seen to compile, for every generation.
WIDEST_HEAD = 256


class Pallas(AttentionBackend):
    """Splash attention, jax's Pallas kernel for TPUs, through the stack that is installed.

    `check(target)` keeps the TPU's generation, after which the blocks of the kernels are chosen.
    """

    name = "pallas"
    summary = "splash attention on Pallas, which skips the blocks outside of a window"
    # The users' flag --xla_flash_attn asks for the second name.
    aliases = ("xla-flash",)
    capabilities = ("gqa", "window", "kvcache", "documents")
    kernels = KernelPatterns(
        forward=(r"splash_mha_fwd",),
        backward=(r"splash_mha_dq", r"splash_mha_dkv"),
    )

    def __init__(self) -> None:
        self._generation: str | None = None
        self._operators: Operators | None = None

    def priority(self, target: Target) -> int:
        return 30

    def check(self, target: Target) -> Support:
        if target.kind not in (KIND, HOST_KIND):
            return Support.no(
                f"its kernels need a TPU, this is a {target.kind}", "Use --attention sdpa"
            )
        stack = stacks.installed()
        if isinstance(stack, Support):
            return stack
        self._generation = target.generation
        if target.kind == HOST_KIND:
            return Support.slow(
                "a processor interprets its kernels: for tests, not for speed",
                "Take --attention sdpa",
            )
        return Support.yes(f"through {stack.title}")

    def supports(self, problem: Problem) -> Support:
        assert isinstance(problem, AttentionProblem)
        if problem.dtype not in ("bfloat16", "float32"):
            return Support.no(
                f"it computes in bfloat16 or float32, not in {problem.dtype}",
                "Use --dtype bfloat16",
            )
        if problem.heads % problem.kv_heads:
            return Support.no(
                f"{problem.heads} heads do not share {problem.kv_heads} heads of keys evenly",
                "Use --attention sdpa",
            )
        if problem.head_dim > WIDEST_HEAD:
            return Support.no(
                f"its blocks of heads of {problem.head_dim} may not fit into on-chip memory",
                f"Use --head-dim {WIDEST_HEAD} or less, or --attention sdpa",
            )
        return Support.yes(self._blocks_of(problem))

    def load(self) -> None:
        """Import the stack and jax, and register the operators."""
        if self._operators is not None:
            return
        stack = stacks.installed()
        if isinstance(stack, Support):
            raise NanochatError(stack.reason, stack.remedy)
        _keep_jax_off_the_device()
        if stack is stacks.TORCH_XLA:
            from nanochat_xla import bridge_torch_xla as bridge
        else:
            from nanochat_xla import bridge_torch_tpu as bridge
        self._operators = bridge.operators(self._generation)

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
        """See `AttentionBackend.attention`.

        `documents` is (B, T) int32: positions see each other only where its numbers are equal.
        """
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
        """A few queries against a cache of fixed size: plain operations under a mask.

        Shapes do not depend on the positions filled, so a prompt and a token are two compilations.
        """
        from nanochat.builtin import sdpa

        return sdpa.attention_with_kvcache(
            q, k_cache, v_cache, k, v, cache_seqlens=cache_seqlens, window=window, scale=scale
        )

    def _blocks_of(self, problem: AttentionProblem) -> str:
        """What the kernels will do with rows of this length, for the plan."""
        length = problem.sequence_len
        told = []
        for window in problem.windows:
            blocks = choose(
                self._generation,
                length,
                window,
                head_dim=problem.head_dim,
                dtype=problem.dtype,
            )
            name = "full context" if window is None else f"window {window}"
            told.append(f"{name} in blocks of {blocks.q} x {blocks.kv}")
        if padded_length(length) != length:
            told.append(f"rows padded from {length} to {padded_length(length)}")
        return ", ".join(told)


def _keep_jax_off_the_device() -> None:
    """jax only traces and lowers here. The TPU belongs to torch: a process can hold it once."""
    import jax

    if not jax.config.jax_platforms:
        jax.config.update("jax_platforms", "cpu")
