"""The runtimes of the core's devices: claiming one, and the ranks that train together."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nanochat.errors import UsageError
from nanochat.runtime import Runtime


def ranks() -> tuple[int, int, int]:
    """(rank, local rank, world size) as torchrun says in the environment; alone: (0, 0, 1)."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    if not all(name in os.environ for name in names):
        return 0, 0, 1
    rank, local_rank, world_size = (int(os.environ[name]) for name in names)
    return rank, local_rank, world_size


class CpuRuntime(Runtime):
    """A processor; several ranks talk over gloo."""

    @classmethod
    def start(cls, dtype: torch.dtype | None) -> CpuRuntime:
        rank, local_rank, world_size = ranks()
        if world_size > 1:
            dist.init_process_group("gloo")
        return cls(
            torch.device("cpu"),
            dtype or torch.float32,
            rank=rank,
            local_rank=local_rank,
            world_size=world_size,
        )

    def compile_model(self, model: nn.Module) -> Callable[..., Any]:
        if not any(shutil.which(c) for c in (os.environ.get("CXX"), "g++", "clang++", "cl") if c):
            raise UsageError(
                "torch.compile needs a C++ compiler on a CPU, and none was found",
                "Install g++, or pass --no-compile",
            )
        return super().compile_model(model)

    def memory_peak(self) -> int | None:
        try:
            import resource
        except ImportError:  # Windows
            return None
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if os.uname().sysname == "Darwin" else peak * 1024


class CudaRuntime(Runtime):
    """One NVIDIA GPU a rank; several ranks talk over NCCL."""

    @classmethod
    def start(cls, dtype: torch.dtype | None, default_dtype: str) -> CudaRuntime:
        rank, local_rank, world_size = ranks()
        if not torch.cuda.is_available():
            raise UsageError(
                "the driver shows a GPU, but torch cannot use it",
                "Run `python -c 'import torch; torch.cuda.init()'` to see why",
            )
        if local_rank >= torch.cuda.device_count():
            raise UsageError(
                f"local rank {local_rank} has no GPU, {torch.cuda.device_count()} are visible",
                "Lower --nproc-per-node",
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        # Products that stay in float32 use TF32: the optimiser's and the loss's tolerate it.
        torch.set_float32_matmul_precision("high")
        if world_size > 1:
            dist.init_process_group("nccl", device_id=device)
        return cls(
            device,
            dtype or getattr(torch, default_dtype),
            rank=rank,
            local_rank=local_rank,
            world_size=world_size,
        )

    @property
    def pinned(self) -> bool:
        return True

    def seed(self, seed: int) -> None:
        torch.manual_seed(seed)
        torch.cuda.manual_seed(seed)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def memory_peak(self) -> int | None:
        return torch.cuda.max_memory_allocated(self.device)

    def reset_memory_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)


class MpsRuntime(Runtime):
    """The GPU of an Apple chip, one process."""

    @classmethod
    def start(cls, dtype: torch.dtype | None) -> MpsRuntime:
        if ranks()[2] > 1:
            raise UsageError("an Apple GPU trains in one process", "Start without torchrun")
        if not torch.backends.mps.is_available():
            raise UsageError("torch cannot use the Apple GPU", "Use --device cpu")
        return cls(torch.device("mps"), dtype or torch.float32)

    def place(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)

    def synchronize(self) -> None:
        torch.mps.synchronize()

    def memory_peak(self) -> int | None:
        return torch.mps.driver_allocated_memory()
