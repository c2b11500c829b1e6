"""The attention backend `pallas`: what it says of itself. Its kernels load late."""

from __future__ import annotations

from nanochat.backend import AttentionBackend, Support, Target
from nanochat_xla import stacks


class Pallas(AttentionBackend):
    """Splash attention, a Pallas kernel of jax, through the stack that is installed."""

    name = "pallas"
    summary = "splash attention on Pallas, which skips the blocks outside of a window"
    aliases = ("xla-flash",)
    capabilities = ("gqa", "window", "kvcache", "documents")

    def priority(self, target: Target) -> int:
        return 30 if target.kind == "tpu" else 0

    def check(self, target: Target) -> Support:
        if target.kind != "tpu":
            return Support.no(f"its kernels need a TPU, this is a {target.kind}")
        stack = stacks.installed()
        return stack if isinstance(stack, Support) else Support.yes(f"through {stack.title}")
