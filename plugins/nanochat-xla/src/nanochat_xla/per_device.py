"""Computing on each chip by itself: within it a chip sees its own rows, and no other chip.

The partitioner of XLA may split any operation over the chips, and it sums a gradient over them as
soon as it is made: once for every chunk of a loss and every micro-batch. So the forward and the
backward pass run as if each chip were alone ("manual sharding" in torch_xla, `shard_map` in jax).
A kernel that XLA cannot split, such as attention on Pallas, needs nothing more. Results leave as
the shares of one tensor, and what follows is the partitioner's again: the mean over the chips'
gradients becomes one reduction for a step.
"""

from __future__ import annotations

from typing import Any

import torch
import torch_xla
import torch_xla.core.xla_model as xm
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


def mean(tensor: Tensor, mesh: xs.Mesh | None) -> Tensor:
    """The mean over the chips of a tensor that each of them has for itself."""
    return tensor if mesh is None else leave(tensor.unsqueeze(0), mesh).mean(0)


class PerDevice:
    """The model as each chip calls it: with its own rows and all parameters.

    Tensors that go in are split by rows. With gradients on, what comes out belongs to each chip
    by itself, and `collect` must follow the backward passes of a step. With gradients off it is put
    together again: losses and logits by rows, a mean as the mean over the chips.
    """

    def __init__(self, model: nn.Module, mesh: xs.Mesh | None) -> None:
        self.model = model
        self.mesh = mesh
        self._leaves: dict[str, Tensor] = {}

    def __call__(self, *rows: Tensor, **options: Any) -> Tensor:
        mine = tuple(enter(t, shared_out(t), self.mesh) for t in rows)
        if not torch.is_grad_enabled():
            out = self._call(self._tensors(), mine, options)
            return leave(out, self.mesh) if out.dim() else mean(out, self.mesh)
        self._leaves = self._leaves or self._tensors()
        gradients = [g for leaf in self._leaves.values() if (g := leaf.grad) is not None]
        if gradients:
            # A micro-batch waits for the gradients of the one before it: nothing else makes it
            # wait, and the activations of both would be in memory at once.
            xm.optimization_barrier_([*mine, *gradients])
        return self._call(self._leaves, mine, options)

    def collect(self) -> None:
        """Put the mean over the chips of each gradient into the `.grad` of its parameter."""
        if self.mesh is not None:
            for name, param in self.model.named_parameters():
                leaf = self._leaves.get(name)
                if leaf is not None and leaf.grad is not None:
                    param.grad = mean(leaf.grad, self.mesh)
        self._leaves = {}

    def _call(
        self, tensors: dict[str, Tensor], mine: tuple[Tensor, ...], options: dict[str, Any]
    ) -> Tensor:
        if self.mesh is None:
            return self.model(*mine, **options)
        return functional_call(self.model, tensors, mine, options)

    def _tensors(self) -> dict[str, Tensor]:
        """The model's parameters and buffers on each chip, as leaves of a new graph."""
        if self.mesh is None:
            return dict(self.model.named_parameters())
        named = (*self.model.named_parameters(), *self.model.named_buffers())
        # Not of a detached tensor: torch_xla would not know the program's input for the parameter,
        # and so give what replaces it memory of its own.
        tensors = {name: enter(t, whole(t), self.mesh).detach() for name, t in named}
        for name, param in self.model.named_parameters():
            tensors[name].requires_grad_(param.requires_grad and torch.is_grad_enabled())
        return tensors
