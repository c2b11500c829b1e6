"""FlashAttention for nanochat: one attention backend, `fa3`, over whichever build is installed."""

from __future__ import annotations

from nanochat.hookspecs import hookimpl
from nanochat_fa3.backend import FlashAttention

__all__ = ["FlashAttention", "nanochat_attention"]


@hookimpl
def nanochat_attention() -> list[FlashAttention]:
    """The backend `fa3`."""
    return [FlashAttention()]
