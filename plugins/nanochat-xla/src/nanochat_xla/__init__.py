"""Google TPUs for nanochat: the device `tpu` and the attention `pallas`.

This module is the plugin's entry point: importing it loads neither torch nor jax.
"""

from __future__ import annotations

from collections.abc import Sequence

from nanochat import hookimpl
from nanochat.backend import AttentionBackend, DeviceBackend
from nanochat_xla.attention import Pallas
from nanochat_xla.device import Tpu


@hookimpl
def nanochat_attention() -> Sequence[AttentionBackend]:
    return [Pallas()]


@hookimpl
def nanochat_device() -> Sequence[DeviceBackend]:
    return [Tpu()]
