"""Computing on each chip by itself: within it a chip sees its own rows, and no other chip.

The partitioner of XLA may split any operation over the chips, and it sums a gradient over them as
soon as it is made: once for every chunk of a loss and every micro-batch. So the forward and the
backward pass run as if each chip were alone ("manual sharding" in torch_xla, `shard_map` in jax).
A kernel that XLA cannot split, such as attention on Pallas, needs nothing more. Results leave as
the shares of one tensor, and what follows is the partitioner's again: the mean over the chips'
gradients becomes one reduction for a step.

The two kinds never meet in one program. XLA shares equal scalars within a program, and what one
such scalar touches on both sides becomes manual on both: the partitioners of XLA that were tried
abort on it (`hlo_sharding.cc: Check failed: !IsManual()`). `end_program` comes between them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch_xla
import torch_xla.distributed.spmd as xs
from torch import Tensor, nn
from torch.func import functional_call

AXIS = "data"


def shared_out(tensor: Tensor) -> tuple[str | None, ...]:
    """The partition of a tensor whose rows (dimension 0) are shared out among the chips."""
    return (AXIS, *(None,) * (tensor.dim() - 1))


def whole(tensor: Tensor) -> tuple[None, ...]:
    """The partition of a tensor that every chip holds whole."""
    return (None,) * tensor.dim()


def enter(tensor: Tensor, partition: tuple[str | None, ...], mesh: xs.Mesh | None) -> Tensor:
    """What each chip has of a tensor. Without a mesh there is one chip, which has all of it."""
    if mesh is None:
        return tensor
    if not _lies(tensor, partition):
        xs.mark_sharding(tensor, mesh, partition)
    return torch_xla._XLAC._spmd_full_to_shard_shape(tensor)


def _lies(tensor: Tensor, partition: tuple[str | None, ...]) -> bool:
    """True if the tensor lies on the chips as the partition says: marking it again may send it
    through the host once more, which `enable_manual_sharding` would."""
    found = torch_xla._XLAC._get_xla_sharding_spec(tensor)
    return found.startswith("{devices=") if AXIS in partition else found == "{replicated}"


def leave(tensor: Tensor, mesh: xs.Mesh | None) -> Tensor:
    """A tensor of each chip as the rows of one."""
    if mesh is None:
        return tensor
    shape = torch.Size((tensor.size(0) * mesh.size(), *tensor.shape[1:]))
    return xs.disable_manual_sharding(tensor, shared_out(tensor), shape, mesh=mesh).global_tensor


def end_program() -> None:
    """Run what was recorded so far as a program of its own, also within `torch_xla.compile`."""
    allowed = torch_xla._XLAC._get_allow_execution()
    torch_xla._XLAC._set_allow_execution(True)
    try:
        torch_xla.sync()
    finally:
        torch_xla._XLAC._set_allow_execution(allowed)


class PerDevice:
    """The model as each chip calls it: with its own rows and all parameters.

    Tensors that go in are split by rows. With gradients off, what comes out is put together again:
    losses and logits by rows, a mean as the mean over the chips. With gradients on it belongs to
    each chip by itself: call `leave`, and `keep` after the backward pass, before the program ends.
    """

    def __init__(self, model: nn.Module, mesh: xs.Mesh | None) -> None:
        self.model = model
        self.mesh = mesh
        self._leaves: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}

    def __call__(self, *rows: Tensor, **options: Any) -> Tensor:
        if self.mesh is None:
            return self.model(*rows, **options)
        if torch.is_grad_enabled():
            self._leaves = self._tensors()
            return functional_call(self.model, self._leaves, self._mine(rows), options)
        end_program()
        out, is_mean = self.without_gradients(*rows, **options)
        end_program()
        return out.mean(0) if is_mean else out

    def without_gradients(self, *rows: Tensor, **options: Any) -> tuple[Tensor, bool]:
        """What the chips compute, put together by rows, and whether each row is a chip's mean."""
        out = functional_call(self.model, self._tensors(), self._mine(rows), options)
        is_mean = out.dim() == 0
        return leave(out.unsqueeze(0) if is_mean else out, self.mesh), is_mean

    def prepare(self) -> None:
        """Start from gradients of zero, so that all micro-batches are one program."""
        for name, param in self.model.named_parameters():
            if self.mesh is None:
                param.grad = torch.zeros_like(param)
                continue
            shape = (self.mesh.size(), *param.shape)
            zeros = torch.zeros(shape, dtype=param.dtype, device=param.device)
            xs.mark_sharding(zeros, self.mesh, shared_out(zeros))
            self._sums[name] = zeros

    def keep(self) -> None:
        """Add the gradients of a backward pass to those kept, each chip its own."""
        for name, leaf in self._leaves.items():
            if leaf.grad is None:
                continue
            mine = leaf.grad.unsqueeze(0)
            kept = self._sums.get(name)
            if kept is None:
                self._sums[name] = leave(mine, self.mesh)
            else:
                # In place, so that the sum takes the memory of the one before.
                own = enter(kept, shared_out(kept), self.mesh)
                kept.copy_(leave(own + mine, self.mesh))
        self._leaves = {}

    def reduce(self) -> None:
        """Put the mean over the chips of each kept gradient into the `.grad` of its parameter."""
        for name, param in self.model.named_parameters():
            if name in self._sums:
                param.grad = self._sums.pop(name).mean(0)

    def _mine(self, rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(enter(t, shared_out(t), self.mesh) for t in rows)

    def _tensors(self) -> dict[str, Tensor]:
        """The model's parameters and buffers on each chip, as leaves of a new graph."""
        named = (*self.model.named_parameters(), *self.model.named_buffers())
        tensors = {name: enter(t, whole(t), self.mesh).detach() for name, t in named}
        for name, param in self.model.named_parameters():
            tensors[name].requires_grad_(param.requires_grad and torch.is_grad_enabled())
        return tensors
