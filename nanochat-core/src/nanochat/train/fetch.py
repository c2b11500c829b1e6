"""Brings small tensors to the host a step late, so that the device never waits for the host."""

from __future__ import annotations

import time
from collections import deque
from typing import Generic, TypeVar

import torch
from torch import Tensor

from nanochat.runtime import Runtime

Tag = TypeVar("Tag")


class LateFetch(Generic[Tag]):
    """A queue of tensors on their way to the host, each with a tag.

    On a device that works behind the host `put` starts a copy after the work queued so far, where
    there is pinned memory to copy into, and `take` waits for the oldest tensor alone, not for what
    was queued after it. Elsewhere `put` takes the values at once. Times are taken where the work is
    done: on the device, if it has a clock; else when the host has the values.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._queue: deque[tuple[Tag, Tensor, _Moment]] = deque()
        self._last: _Moment | None = None

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def ready(self) -> bool:
        """True if `take` would not hold up the device: something younger is queued behind it."""
        return len(self._queue) > (1 if self._runtime.queues else 0)

    def begin(self) -> None:
        """Count the next tensor's seconds from here, not from the one before it."""
        self._last = _Moment(self._runtime)

    def put(self, tag: Tag, tensor: Tensor) -> None:
        """Queue a tensor that nothing will write to again."""
        if self._runtime.pinned:
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            host.copy_(tensor, non_blocking=True)
        elif self._runtime.queues:
            host = tensor
        else:
            host = tensor.to("cpu", copy=True)
        self._queue.append((tag, host, _Moment(self._runtime)))

    def take(self) -> tuple[Tag, list[float], float]:
        """The oldest's tag, its values, and the seconds since the one before it was finished."""
        tag, host, finished = self._queue.popleft()
        finished.wait()
        values: list[float] = host.tolist()
        if host.device.type != "cpu":
            finished = _Moment(self._runtime)
        seconds = finished.since(self._last) if self._last is not None else 0.0
        self._last = finished
        return tag, values, max(seconds, 1e-9)


class _Moment:
    """When the work queued so far is finished, by the device's clock where it has one."""

    def __init__(self, runtime: Runtime) -> None:
        self._event: torch.Event | None = None
        if runtime.pinned:
            self._event = torch.Event(runtime.device, enable_timing=True)
            self._event.record()
        self._host = time.perf_counter()

    def wait(self) -> None:
        if self._event is not None:
            self._event.synchronize()

    def since(self, earlier: _Moment) -> float:
        """Seconds between two moments that have both come."""
        if self._event is not None and earlier._event is not None:
            return earlier._event.elapsed_time(self._event) / 1e3
        return self._host - earlier._host
