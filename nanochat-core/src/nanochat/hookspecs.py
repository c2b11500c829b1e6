"""The four hooks of nanochat. A plugin author starts here.

A plugin is an installed distribution with an entry point in the group `nanochat`:

    [project.entry-points.nanochat]
    mine = "nanochat_mine"

The module it names implements one or more of these hooks with `nanochat.hookimpl`. Importing that
module must be light: neither torch nor the wrapped library. `Backend.load()` is the place for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from nanochat.backend import AttentionBackend, DeviceBackend, LossBackend, QuantizationBackend

PROJECT = "nanochat"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def nanochat_attention() -> Sequence[AttentionBackend]:
    """Return backends of causal self-attention."""


@hookspec
def nanochat_loss() -> Sequence[LossBackend]:
    """Return backends of the linear layer fused with cross-entropy."""


@hookspec
def nanochat_quantization() -> Sequence[QuantizationBackend]:
    """Return backends that run linear layers in a narrower number format."""


@hookspec
def nanochat_device() -> Sequence[DeviceBackend]:
    """Return backends that find and drive a kind of hardware."""
