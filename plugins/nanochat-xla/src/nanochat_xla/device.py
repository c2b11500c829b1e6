"""The device backend `tpu`: found on the PCI bus, driven by the stack that is installed."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.backend import DeviceBackend, Support, Target, Variable
from nanochat.errors import UsageError
from nanochat_xla import stacks
from nanochat_xla.hardware import GENERATIONS, HOST_KIND, KIND, find_chips

if TYPE_CHECKING:
    import torch

    from nanochat.runtime import Runtime


class Tpu(DeviceBackend):
    """The TPU chips of this host; with PJRT_DEVICE=CPU, and only then, XLA on the processor."""

    name = "tpu"
    summary = "Google TPUs, in bfloat16, through torch_xla or TorchTPU"

    def priority(self, target: Target) -> int:
        return 30

    def probe(self) -> Target | None:
        asked = os.environ.get("PJRT_DEVICE", "TPU")
        if asked == "CPU":
            return Target(
                kind=HOST_KIND,
                name="the processor through XLA, no TPU (PJRT_DEVICE=CPU)",
                architecture=platform.machine(),
                count=_count_of("CPU_NUM_DEVICES"),
            )
        chips = find_chips()
        if asked != "TPU" or not chips:
            return None
        known = GENERATIONS.get(chips[0])
        visible = [c for c in os.environ.get("TPU_VISIBLE_CHIPS", "").split(",") if c.strip()]
        return Target(
            kind=KIND,
            name=f"TPU {chips[0]}",
            generation=chips[0],
            memory=known.memory if known is not None else None,
            architecture=platform.machine(),
            count=len(visible) or len(chips),
        )

    def absent(self) -> Support:
        asked = os.environ.get("PJRT_DEVICE", "TPU")
        if asked != "TPU":
            return Support.no(f"PJRT_DEVICE is {asked}", "Unset PJRT_DEVICE")
        return Support.no("no TPU chip is on the PCI bus", "Use a Cloud TPU machine: docs/tpu.md")

    def check(self, target: Target) -> Support:
        stack = stacks.installed()
        if isinstance(stack, Support):
            return stack
        if target.kind == HOST_KIND and stack is not stacks.TORCH_XLA:
            return Support.no(f"{stack.title} knows no PJRT_DEVICE=CPU", "Unset PJRT_DEVICE")
        return Support.yes(f"through {stack.title}")

    def environment(self, target: Target) -> Sequence[Variable]:
        if stacks.installed() is not stacks.TORCH_XLA:
            return ()
        return (
            Variable(
                "PJRT_DEVICE",
                "CPU" if target.kind == HOST_KIND else "TPU",
                "torch_xla takes the processor in silence where it is not told",
            ),
            Variable(
                "XLA_NO_SPECIAL_SCALARS",
                "1",
                "scalars of 0 and 1 stay arguments, so that a setting may reach them "
                "without a compilation",
            ),
            Variable(
                "XLA_PERSISTENT_CACHE_PATH",
                str(_cache_folder() / "xla"),
                "programs are compiled once, not in every process: the first takes long",
            ),
        )

    def default_dtype(self, target: Target) -> str:
        return "float32" if target.kind == HOST_KIND else "bfloat16"

    def peak_flops(self, target: Target, precision: str) -> float | None:
        known = GENERATIONS.get(target.generation or "")
        return known.flops if known is not None and precision == "bfloat16" else None

    def setup(self, target: Target, dtype: torch.dtype | None = None) -> Runtime:
        stack = stacks.installed()
        if isinstance(stack, Support):
            raise UsageError(stack.reason, stack.remedy)
        import torch

        if stack is stacks.TORCH_XLA:
            from nanochat_xla.torch_xla_runtime import TorchXlaRuntime

            return TorchXlaRuntime.start(
                target, dtype or getattr(torch, self.default_dtype(target))
            )
        from nanochat_xla.torch_tpu_runtime import TorchTpuRuntime

        return TorchTpuRuntime.start(dtype or getattr(torch, self.default_dtype(target)))


def _count_of(variable: str) -> int:
    value = os.environ.get(variable, "1")
    if not value.isdigit() or value == "0":
        raise UsageError(f"{variable} is {value!r}", "Set it to the number of devices")
    return int(value)


def _cache_folder() -> Path:
    """Where compiled programs are kept from run to run."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if given else Path.home() / ".cache") / "nanochat"
