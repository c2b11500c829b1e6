"""How long rounds take, and what memory they need."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch

from nanochat.bench.work import Round
from nanochat.runtime import Runtime


@dataclass(frozen=True)
class Timing:
    """Milliseconds of each round, bytes at the peak and beyond the inputs, seconds of the first."""

    ms: tuple[float, ...]
    peak: int | None
    extra: int | None
    first_seconds: float

    @property
    def median(self) -> float:
        return statistics.median(self.ms)

    @property
    def spread(self) -> float:
        """Largest minus smallest, as a fraction of the median."""
        return (max(self.ms) - min(self.ms)) / self.median


def play(round: Round) -> object:
    """One round: forward, backward, update. Returns what came of it."""
    result = round.forward()
    round.backward(result)
    return result, round.update()


def time_rounds(round: Round, runtime: Runtime, *, warmup: int, repeats: int) -> Timing:
    """Time `repeats` rounds after the first, which compiles, and `warmup` more.

    Nothing waits for the device between rounds where it has events of its own.
    """
    run = runtime.compile_step(partial(play, round))
    before = runtime.memory_peak()
    began = time.perf_counter()
    run()
    runtime.synchronize()
    first = time.perf_counter() - began
    for _ in range(warmup):
        run()
    runtime.synchronize()
    highest = runtime.memory_peak()
    runtime.reset_memory_peak()
    lowered = runtime.memory_peak()
    if highest is not None and lowered is not None and lowered < highest:
        # What compiling and tuning took is forgotten. Where a peak cannot be reset, it counts.
        before = lowered
    ms = _by_events(run, repeats) if runtime.device.type == "cuda" else None
    if ms is None:
        ms = []
        for _ in range(repeats):
            began = time.perf_counter()
            run()
            runtime.synchronize()
            ms.append(1e3 * (time.perf_counter() - began))
    peak = runtime.memory_peak()
    extra = None if peak is None or before is None else max(peak - before, 0)
    return Timing(tuple(ms), peak, extra, first)


def _by_events(run: Callable[[], object], repeats: int) -> list[float]:
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) for a, b in pairwise(events)]
