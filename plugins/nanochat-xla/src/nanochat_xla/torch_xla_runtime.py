"""The runtime of torch_xla: one process drives all chips of a host as one mesh."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch_xla
import torch_xla.core.xla_model as xm
import torch_xla.distributed.spmd as xs
import torch_xla.runtime as xr
from torch import Tensor, nn

from nanochat.backend import Target
from nanochat.errors import UsageError
from nanochat.runtime import Runtime, Step
from nanochat_xla.per_device import AXIS, PerDevice, end_program, leave, shared_out, whole


class TorchXlaRuntime(Runtime):
    """All chips of this host. Operations are recorded, and run as programs of XLA.

    A step is one program for its micro-batches, run for each of them, and one for the reduction
    and the optimiser: compilation takes as long for many micro-batches as for one.

    A batch is split over the chips by rows; weights and the state of the optimiser are whole on
    each, and each makes the whole update. Sharing the state out (ZeRO, arXiv:1910.02054) is not
    done: it was tried only while a step was one program, where the partitioner aborted.
    """

    @classmethod
    def start(cls, target: Target, dtype: torch.dtype) -> TorchXlaRuntime:
        """Claim the chips. Raises UsageError if torch_xla finds others than were promised."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UsageError(
                "one process drives all TPU chips of a host, and several were started",
                "Start without torchrun",
            )
        if target.count > 1:
            xr.use_spmd()  # before anything else asks for a device
        expected = os.environ.get("PJRT_DEVICE", "TPU")
        found, count = xr.device_type(), xr.global_runtime_device_count()
        if found != expected or (found == "TPU") != (target.kind == "tpu"):
            raise UsageError(
                f"torch_xla drives a {found} here and not the {expected} that was found",
                f"Set PJRT_DEVICE={expected}, and see docs/tpu.md for the versions that fit",
            )
        if count != target.count:
            raise UsageError(
                f"torch_xla finds {count} devices where {target.count} were expected",
                "Only the chips of one host are supported; set CPU_NUM_DEVICES for the processor",
            )
        return cls(torch_xla.device(), dtype, devices=count)

    def __init__(self, device: torch.device, dtype: torch.dtype, *, devices: int) -> None:
        super().__init__(device, dtype, devices=devices)
        self.mesh: xs.Mesh | None = None
        if devices > 1:
            self.mesh = xs.Mesh(np.arange(devices), (devices,), (AXIS,))
        self._models: dict[nn.Module, PerDevice] = {}

    def seed(self, seed: int) -> None:
        torch.manual_seed(seed)
        torch_xla.manual_seed(seed)

    def place(self, tensor: Tensor) -> Tensor:
        """The rows shared out among the chips, or the whole on each where they do not divide."""
        if self.mesh is None or tensor.dim() == 0 or tensor.size(0) % self.devices:
            return self.place_whole(tensor)
        return self._send(tensor, shared_out(tensor))

    def place_whole(self, tensor: Tensor) -> Tensor:
        return self._send(tensor, whole(tensor))

    def _send(self, tensor: Tensor, partition: tuple[str | None, ...]) -> Tensor:
        sharding = None
        if self.mesh is not None and tensor.dim():
            sharding = xs.ShardingSpec(self.mesh, partition)
        (sent,) = xm.send_cpu_data_to_device([tensor.detach()], self.device, sharding)
        return sent

    @property
    def queues(self) -> bool:
        return xr.device_type() == "TPU"

    @property
    def records(self) -> bool:
        return True

    @property
    def static_shapes(self) -> bool:
        return True

    @property
    def load_device(self) -> torch.device:
        return torch.device("cpu")  # safetensors knows no device of a mesh

    def materialize(self, model: Any) -> None:
        """Draw the weights on the host, so that they are those of a CPU, and send them."""
        model.initialize("cpu")
        model.to(self.device)
        if self.mesh is not None:
            for tensor in (*model.parameters(), *model.buffers()):
                xs.mark_sharding(tensor, self.mesh, whole(tensor))
        torch_xla.sync()

    def call_model(self, model: nn.Module) -> Callable[..., Any]:
        return self._models.setdefault(model, PerDevice(model, self.mesh))

    def compile_model(self, model: nn.Module) -> Callable[..., Any]:
        """Not by itself: it becomes part of a program."""
        return self.call_model(model)

    def compile_update(self, update: Callable[..., None]) -> Callable[..., None]:
        """Not by itself: it becomes part of a program."""
        return update

    def compile_step(self, step: Step) -> Step:
        """A value that the host would need in the middle of a program is an error."""
        return torch_xla.compile(step, full_graph=True)

    def accumulate_gradients(
        self, call: Callable[..., Tensor], micro_batches: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """See `Runtime.accumulate_gradients`. A program for each micro-batch, the same for all.

        The mean over the chips is left to the program of the update, so there is one reduction.
        """
        if len(micro_batches) > 1:
            for model in self._models.values():
                model.prepare()
            end_program()
        # On the device by itself: computed from others, it would be part of the first program.
        share = self.place_whole(torch.tensor(1 / len(micro_batches)))
        losses = []
        for batch in micro_batches:
            losses.append(self._learn(call, *batch, share))
            end_program()
        for model in self._models.values():
            model.reduce()
        return torch.stack(losses).sum(0).mean()

    def _learn(
        self, call: Callable[..., Tensor], inputs: Tensor, targets: Tensor, share: Tensor
    ) -> Tensor:
        """A micro-batch, that share of a step: its gradients are kept, its losses (chips,) come."""
        loss = call(inputs, targets) * share
        loss.backward()
        for model in self._models.values():
            model.keep()
        return leave(loss.detach().unsqueeze(0), self.mesh)

    def scalars(self, values: Sequence[float]) -> list[Tensor]:
        """On the device, sent as one tensor."""
        return list(self.place_whole(torch.tensor(values, dtype=torch.float32)).unbind())

    def synchronize(self) -> None:
        torch_xla.sync()
        xm.wait_device_ops()

    def memory_peak(self) -> int | None:
        """Of the fullest chip, as the runtime of the TPU counts it. The CPU's counts nothing."""
        if xr.device_type() != "TPU":
            return None
        infos = [xm.get_memory_info(d) for d in xr.runtime_devices()]
        return max(int(info["peak_bytes_used"]) for info in infos)
