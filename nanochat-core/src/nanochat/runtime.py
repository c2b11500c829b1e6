"""What drives a device once it is claimed: placing tensors, compiling, synchronising, ranks.

The loop knows this class and nothing else about hardware. A device that needs more (one compiled
graph a step, sharding over a mesh, gradients of several devices in one process) overrides the
method that does it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Step = TypeVar("Step", bound=Callable[..., Any])


class Runtime:
    """One process's share of a device. This base drives any single torch device, eagerly placed.

    `dtype` is the dtype of activations; `rank`, `local_rank` and `world_size` are the process's
    place among those that train together. `devices` counts what this process drives as one: a
    batch that it places is split over them by rows.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        *,
        rank: int = 0,
        local_rank: int = 0,
        world_size: int = 1,
        devices: int = 1,
    ) -> None:
        self.device = device
        self.dtype = dtype
        self.rank = rank
        self.local_rank = local_rank
        self.world_size = world_size
        self.devices = devices

    @property
    def all_devices(self) -> int:
        """The devices of all ranks: into so many shares a batch is split."""
        return self.world_size * self.devices

    def seed(self, seed: int) -> None:
        """Seed the generators that initialise weights."""
        torch.manual_seed(seed)

    def place(self, tensor: Tensor) -> Tensor:
        """Bring a host tensor of this rank's share of a batch to the device, not waiting for it."""
        return tensor.to(self.device, non_blocking=True)

    def place_whole(self, tensor: Tensor) -> Tensor:
        """Bring a host tensor to every device of this process, whole."""
        return tensor.to(self.device)

    @property
    def pinned(self) -> bool:
        """True if host tensors should be pinned before `place`."""
        return False

    @property
    def queues(self) -> bool:
        """True if work is queued on the device while the host goes on."""
        return self.pinned

    @property
    def records(self) -> bool:
        """True if calls are only recorded, and run later as programs: no profiler sees a kernel
        in the call that asks for it."""
        return False

    @property
    def static_shapes(self) -> bool:
        """True if every new shape costs a compilation, so that callers should pad to a few."""
        return False

    @property
    def load_device(self) -> torch.device:
        """Where files of tensors are read to before they are copied into a model."""
        return self.device

    def materialize(self, model: Any) -> None:
        """Put a GPT that was built on the meta device onto this one, with its initial weights."""
        model.initialize(self.device)

    def call_model(self, model: nn.Module) -> Callable[..., Any]:
        """The model as it is called where it is not compiled."""
        return model

    def compile_model(self, model: nn.Module) -> Callable[..., Any]:
        """The model as it is called in training, in one graph for fixed shapes."""
        return torch.compile(model, dynamic=False, fullgraph=True)

    def compile_update(self, update: Callable[..., None]) -> Callable[..., None]:
        """An update of the optimiser, which changes its arguments in place."""
        return torch.compile(update, dynamic=False, fullgraph=True)

    def compile_step(self, step: Step) -> Step:
        """Whatever the device should run as one program, or a few. Here it stays as it is.

        A whole training step (forward, backward, optimiser), a batch of evaluation, a token of
        decoding. What it returns must not be part of what another step changes in place.
        """
        return step

    def accumulate_gradients(
        self, call: Callable[..., Tensor], micro_batches: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Leave the gradients of the mean loss in `.grad`, and return that loss, 0-d.

        `call` is a model as `call_model` or `compile_model` returned it. With several ranks both
        are of this rank alone.
        """
        total = torch.zeros((), device=self.device)
        for inputs, targets in micro_batches:
            loss = call(inputs, targets)
            # Each backward pass adds to the gradients: the mean is taken here.
            loss = loss / len(micro_batches)
            loss.backward()
            total += loss.detach()
        return total

    def scalars(self, values: Sequence[float]) -> list[Tensor]:
        """Each value as a 0-d float32 tensor that compiled code takes as an argument, so that
        moving it recompiles nothing. On the host, where launching a kernel with it is free."""
        return [torch.tensor(value, dtype=torch.float32) for value in values]

    def no_grad(self) -> AbstractContextManager[Any]:
        """For evaluation and sampling."""
        return torch.no_grad()

    def synchronize(self) -> None:
        """Wait for everything queued on the device."""

    def memory_peak(self) -> int | None:
        """Peak bytes allocated on the device since `reset_memory_peak`, if it can tell."""
        return None

    def reset_memory_peak(self) -> None:
        """Start counting the peak anew."""

    def all_reduce_mean(self, tensor: Tensor) -> Tensor:
        """The mean over ranks, in place."""
        if self.world_size > 1:
            torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.SUM)
            tensor /= self.world_size
        return tensor

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.world_size > 1:
            torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.SUM)
        return tensor

    def all_gather_object(self, value: object) -> list[Any]:
        """One picklable value of every rank, in order of rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            torch.distributed.barrier()

    def close(self) -> None:
        """Give the device back at the end of a run."""
        if self.world_size > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
