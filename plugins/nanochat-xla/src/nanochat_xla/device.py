"""The device backend `tpu`: found on the PCI bus, driven by the stack that is installed."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from nanochat.backend import DeviceBackend, Support, Target
from nanochat.errors import UsageError
from nanochat_xla import stacks
from nanochat_xla.hardware import GENERATIONS, find_chips

if TYPE_CHECKING:
    import torch

    from nanochat.runtime import Runtime


class Tpu(DeviceBackend):
    """The TPU chips of this host."""

    name = "tpu"
    summary = "Google TPUs, in bfloat16, through torch_xla or TorchTPU"

    def priority(self, target: Target) -> int:
        return 30

    def probe(self) -> Target | None:
        chips = find_chips()
        if not chips:
            return None
        known = GENERATIONS.get(chips[0])
        return Target(
            kind="tpu",
            name=f"TPU {chips[0]}",
            generation=chips[0],
            memory=known.memory if known is not None else None,
            architecture=platform.machine(),
            count=len(chips),
        )

    def absent(self) -> Support:
        return Support.no("no TPU chip is on the PCI bus", "Use a Cloud TPU machine: docs/tpu.md")

    def check(self, target: Target) -> Support:
        stack = stacks.installed()
        return stack if isinstance(stack, Support) else Support.yes(f"through {stack.title}")

    def default_dtype(self, target: Target) -> str:
        return "bfloat16"

    def peak_flops(self, target: Target, precision: str) -> float | None:
        known = GENERATIONS.get(target.generation or "")
        return known.flops if known is not None and precision == "bfloat16" else None

    def setup(self, target: Target, dtype: torch.dtype | None = None) -> Runtime:
        stack = stacks.installed()
        if isinstance(stack, Support):
            raise UsageError(stack.reason, stack.remedy)
        raise UsageError(f"the device tpu through {stack.title} is not written yet")
