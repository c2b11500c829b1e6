"""The runtime of TorchTPU: one process drives one chip, as on other accelerators of torch.

Never run on a TPU: written against the interface of torch-tpu 0.2.0, which is a beta.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
import torch_tpu  # noqa: F401 - registers its device, if torch did not load it on its own
from torch import Tensor

from nanochat.builtin.runtimes import ranks
from nanochat.errors import UsageError
from nanochat.runtime import Runtime

# What its processes must agree on before any of them starts.
LAUNCH_VARIABLES = ("TORCH_TPU_SLICEBUILDER_ADDRESSES", "TORCH_TPU_TOPOLOGY")
LAUNCH = (
    'Start with: set -a; eval "$(python -m torch.tpu.distributed)"; '
    "torchrun --nproc-per-node=CHIPS -m nanochat.cli.train ..."
)


class TorchTpuRuntime(Runtime):
    """One chip. Several ranks talk through TorchTPU's own collectives; the host's use gloo.

    `torch.compile` needs no backend named: TorchTPU makes its own the default for its tensors.
    """

    @classmethod
    def start(cls, dtype: torch.dtype) -> TorchTpuRuntime:
        """Claim this rank's chip. Raises UsageError where TorchTPU finds none."""
        rank, local_rank, world_size = ranks()
        # A tensor on its device would abort the process if there were no chip.
        found = torch.accelerator.device_count()
        if found == 0:
            raise UsageError(
                "there is a TPU on the PCI bus, but TorchTPU finds none",
                "Run `python -c 'import torch; print(torch.accelerator.device_count())'` to see "
                "why; another process may hold it",
            )
        if world_size > 1:
            missing = [name for name in LAUNCH_VARIABLES if not os.environ.get(name)]
            if missing:
                raise UsageError(
                    f"several processes on TPUs need {' and '.join(missing)} before they start",
                    LAUNCH,
                )
            dist.init_process_group("cpu:gloo,tpu:tpu_dist")
        return cls(
            torch.device("tpu"), dtype, rank=rank, local_rank=local_rank, world_size=world_size
        )

    @property
    def queues(self) -> bool:
        return True

    @property
    def static_shapes(self) -> bool:
        return True

    def place(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)

    def synchronize(self) -> None:
        torch.accelerator.synchronize()
