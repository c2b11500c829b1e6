"""What runs during a call, by torch's profiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile, supported_activities

from nanochat.proof import Evidence, Kernel
from nanochat.runtime import Runtime

T = TypeVar("T")
Profiled = list[Kernel]

_ACTIVITIES = {"cuda": ProfilerActivity.CUDA, "xpu": ProfilerActivity.XPU}


def evidence_of(device: torch.device) -> Evidence:
    """Whether the profiler names kernels on this device, or only operators on its host."""
    activity = _ACTIVITIES.get(device.type)
    return "kernels" if activity in supported_activities() else "operators"


@contextmanager
def recorded(runtime: Runtime, phase: str) -> Iterator[Profiled]:
    """Fill the list that is yielded, once the block has ended, with what ran within it."""
    found: Profiled = []
    kernels = evidence_of(runtime.device) == "kernels"
    activity = _ACTIVITIES[runtime.device.type] if kernels else ProfilerActivity.CPU
    runtime.synchronize()
    with profile(activities=[activity]) as record:
        yield found
        runtime.synchronize()
    for event in record.key_averages():
        spent = event.self_device_time_total if kernels else event.self_cpu_time_total
        if spent > 0 or not kernels:
            found.append(Kernel(event.key, phase, spent / 1e3, event.count))
    found.sort(key=lambda kernel: -kernel.ms)


def profiled(runtime: Runtime, phase: str, call: Callable[[], T]) -> tuple[T, Profiled]:
    """The result of a call, and what ran during it."""
    with recorded(runtime, phase) as found:
        result = call()
    return result, found


def warm_profiler(runtime: Runtime) -> None:
    """The first recording of a process starts the profiler's own machinery, and may miss some."""
    profiled(runtime, "", lambda: torch.zeros(1, device=runtime.device) + 1)
