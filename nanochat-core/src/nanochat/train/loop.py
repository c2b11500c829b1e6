"""The training loop. It knows a model, an optimiser and a runtime, and nothing about hardware."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nanochat.backend import QuantizationBackend
from nanochat.data.loader import TrainLoader
from nanochat.data.position import LoaderState
from nanochat.errors import NanochatError
from nanochat.optim import MuonAdamW, Schedule
from nanochat.runtime import Runtime
from nanochat.train.fetch import LateFetch
from nanochat.train.horizon import Horizon
from nanochat.train.meter import Meter
from nanochat.train.progress import Pace, Progress
from nanochat.train.record import Sink
from nanochat.train.stopping import CutShort, StopRequest

COLLECT_EVERY = 5000
MicroBatch = tuple[Tensor, Tensor]


@dataclass
class Speed:
    """What turns seconds into figures. `peak_flops` is that of all ranks together, if known."""

    tokens_per_step: int
    flops_per_token: float
    peak_flops: float | None

    def mfu(self, seconds: float) -> float | None:
        if self.peak_flops is None:
            return None
        return self.flops_per_token * self.tokens_per_step / seconds / self.peak_flops


@dataclass
class Boundaries:
    """What happens between steps. Each takes the number of updates made so far.

    `due(step)` says whether `act(step)` has something to do; `save(step)` saves out of turn.
    """

    due: Callable[[int], bool]
    act: Callable[[int], None]
    save: Callable[[int], None]


@dataclass(frozen=True)
class _Launched:
    step: int
    multiplier: float
    position: LoaderState


@dataclass
class Loop:
    """One run from `step` to the end of the horizon."""

    call: Callable[..., Tensor]
    quantization: QuantizationBackend
    optimizer: MuonAdamW
    schedule: Schedule
    runtime: Runtime
    loader: TrainLoader
    horizon: Horizon
    meter: Meter
    speed: Speed
    sink: Sink
    progress: Progress
    stop: StopRequest
    boundaries: Boundaries
    step: int = 0
    position: LoaderState | None = field(init=False, default=None)
    """Of this rank's data, right behind the last batch that an update has used."""
    last_checkpoint: str = ""

    _late: LateFetch[_Launched] = field(init=False)
    _resting: bool = field(init=False, default=True)
    _stop_agreed: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._late = LateFetch(self.runtime)

    def run(self) -> bool:
        """Train to the end, or until asked to stop. True if it came to the end.

        Raises NanochatError if the loss is no longer a number.
        """
        update = self.runtime.compile_step(self._update)
        first = self.step
        try:
            with quiet_collector() as collect:
                while True:
                    if self.boundaries.due(self.step):
                        self._drain()
                        self.boundaries.act(self.step)
                        self._resting = True
                    if self.step >= self.horizon.num_iterations:
                        return True
                    if self._should_stop():
                        raise CutShort
                    self._launch(update)
                    if self.step == first + 1 or self.step % COLLECT_EVERY == 0:
                        collect()
        except CutShort:
            self._drain()
            self.boundaries.save(self.step)
            return False

    def _launch(self, update: Callable[[list[MicroBatch]], Tensor]) -> None:
        """Queue one step on the device, then record the one before it."""
        if self._resting:
            self._late.begin()
            self._resting = False
        micro_batches, position = [], self.position
        with self.stop.wait():
            for _ in range(self.horizon.accumulation_steps):
                batch = next(self.loader)
                placed = (self.runtime.place(batch.inputs), self.runtime.place(batch.targets))
                micro_batches.append(placed)
                position = batch.after
        multiplier = self.schedule.apply(self.optimizer, self.step)
        shared = update(micro_batches).float().view(1)
        if self.runtime.world_size > 1:
            # The wish to stop travels with the loss, so that all ranks stop after the same step.
            # `full` is a kernel; `tensor` would copy from the host and wait for the device.
            wish = torch.full((1,), float(bool(self.stop)), device=shared.device)
            shared = self.runtime.all_reduce_mean(torch.cat((shared, wish)))
        assert position is not None
        self._late.put(_Launched(self.step, multiplier, position), shared)
        self.position = position
        self.step += 1
        while self._late.ready:
            self._record()

    def _update(self, micro_batches: list[MicroBatch]) -> Tensor:
        """Forward and backward of each micro-batch, then the optimiser. Returns the mean loss."""
        total = self.runtime.accumulate_gradients(self._forward, micro_batches)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def _forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        with self.quantization.context():
            return self.call(inputs, targets)

    def _should_stop(self) -> bool:
        if self.runtime.world_size == 1:
            return bool(self.stop)
        return self._stop_agreed

    def _drain(self) -> None:
        while len(self._late):
            self._record()

    def _record(self) -> None:
        """Take in the oldest step whose loss is on its way."""
        launched, (loss, *wishes), seconds = self._late.take()
        self._stop_agreed = self._stop_agreed or any(wish > 0 for wish in wishes)
        if not math.isfinite(loss):
            last = self.last_checkpoint
            raise NanochatError(
                f"the loss is {loss} at step {launched.step}",
                f"The last checkpoint is {last}; lower the learning rates or check the data"
                if last
                else "There is no checkpoint yet; lower the learning rates or check the data",
            )
        self.meter.count(loss, self.horizon.total_batch_size, seconds)
        tokens_per_second = self.speed.tokens_per_step / seconds
        memory = self.runtime.memory_peak()
        mfu = self.speed.mfu(seconds)
        self.sink.write(
            {
                "event": "step",
                "step": launched.step,
                "loss": loss,
                "smooth_loss": self.meter.smooth_loss,
                "lr_multiplier": launched.multiplier,
                "tokens": self.meter.tokens,
                "tokens_per_second": tokens_per_second,
                "mfu": mfu,
                "memory_peak": memory,
                "data": list(launched.position.position),
                "seconds": seconds,
                "time": time.time(),
            }
        )
        left = self.horizon.num_iterations - launched.step - 1
        self.progress.step(
            Pace(
                step=launched.step,
                num_iterations=self.horizon.num_iterations,
                loss=self.meter.smooth_loss,
                tokens_per_second=tokens_per_second,
                mfu=mfu,
                memory_peak=memory,
                seconds_left=self.meter.seconds_for(left),
            )
        )


@contextmanager
def quiet_collector() -> Iterator[Callable[[], None]]:
    """Python's collector off, as it would scan the whole model for nothing; call what is yielded to
    collect by hand. What has survived by the first call is never looked at again."""
    was_enabled = gc.isenabled()
    frozen = False

    def collect() -> None:
        nonlocal frozen
        gc.collect()
        if not frozen:
            gc.freeze()
            gc.disable()
            frozen = True

    try:
        yield collect
    finally:
        if frozen:
            gc.unfreeze()
        if was_enabled:
            gc.enable()
