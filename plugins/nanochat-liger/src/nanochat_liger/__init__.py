"""Liger's fused linear cross-entropy (arXiv:2410.10989) as a loss backend of nanochat.

This module is the plugin's entry point: importing it loads neither torch nor liger_kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

from nanochat import hookimpl
from nanochat.backend import LossBackend
from nanochat_liger.backend import Liger

__version__ = "0.1.0"


@hookimpl
def nanochat_loss() -> Sequence[LossBackend]:
    return [Liger()]
