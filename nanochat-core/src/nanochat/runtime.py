"""What drives a device once it is claimed: placing tensors, compiling, synchronising, ranks.

The loop knows this class and nothing else about hardware. A device that needs more (one compiled
graph a step, sharding over a mesh) overrides the method that does it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Step = TypeVar("Step", bound=Callable[..., Any])


class Runtime:
    """One process's share of a device. This base drives any single torch device, eagerly placed.

    `dtype` is the dtype of activations; `rank`, `local_rank` and `world_size` are the process's
    place among those that train together.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        *,
        rank: int = 0,
        local_rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.device = device
        self.dtype = dtype
        self.rank = rank
        self.local_rank = local_rank
        self.world_size = world_size

    def seed(self, seed: int) -> None:
        """Seed the generators that initialise weights."""
        torch.manual_seed(seed)

    def place(self, tensor: Tensor) -> Tensor:
        """Bring a host tensor of this rank's share of a batch to the device, not waiting for it."""
        return tensor.to(self.device, non_blocking=True)

    @property
    def pinned(self) -> bool:
        """True if host tensors should be pinned before `place`."""
        return False

    def compile_model(self, model: nn.Module) -> Callable[..., Any]:
        """The model as it is called in training, in one graph for fixed shapes."""
        return torch.compile(model, dynamic=False, fullgraph=True)

    def compile_step(self, step: Step) -> Step:
        """A whole training step (forward, backward, optimiser). Here it stays as it is."""
        return step

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
