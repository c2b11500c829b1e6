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

    On a device that works asynchronously `put` starts a copy behind the work queued so far, and
    `take` waits for the oldest copy alone, not for what was queued after it. Elsewhere `put` takes
    the values at once.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._queue: deque[tuple[Tag, Tensor, torch.Event | None, float]] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def ready(self) -> bool:
        """True if `take` would not hold up the device: something younger is queued behind it."""
        return len(self._queue) > (1 if self._runtime.pinned else 0)

    def put(self, tag: Tag, tensor: Tensor) -> None:
        """Queue a tensor that nothing will write to again."""
        event = None
        if self._runtime.pinned:
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            host.copy_(tensor, non_blocking=True)
            event = torch.Event(self._runtime.device)
            event.record()
        else:
            host = tensor.to("cpu", copy=True)
        self._queue.append((tag, host, event, time.perf_counter()))

    def take(self) -> tuple[Tag, list[float], float]:
        """The tag, the values and the `perf_counter` time at which the oldest was finished."""
        tag, host, event, finished = self._queue.popleft()
        if event is not None:
            event.synchronize()
            finished = time.perf_counter()
        return tag, host.tolist(), finished
