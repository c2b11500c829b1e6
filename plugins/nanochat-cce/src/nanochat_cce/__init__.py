"""Cut Cross-Entropy (arXiv:2411.09009) as a loss backend of nanochat.

This module is the plugin's entry point: importing it loads neither torch nor cut_cross_entropy.
"""

from __future__ import annotations

from collections.abc import Sequence

from nanochat import hookimpl
from nanochat.backend import LossBackend
from nanochat_cce.backend import CutCrossEntropy

__version__ = "0.1.0"


@hookimpl
def nanochat_loss() -> Sequence[LossBackend]:
    return [CutCrossEntropy()]
