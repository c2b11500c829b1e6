"""The core's own backends, registered through the same hooks as any plugin's."""

from __future__ import annotations

from collections.abc import Sequence

from nanochat.backend import AttentionBackend, DeviceBackend, LossBackend, QuantizationBackend
from nanochat.hookspecs import hookimpl


@hookimpl
def nanochat_attention() -> Sequence[AttentionBackend]:
    from nanochat.builtin.attention import Flex, Sdpa

    return [Sdpa(), Flex()]


@hookimpl
def nanochat_loss() -> Sequence[LossBackend]:
    from nanochat.builtin.loss import Chunked, Torch

    return [Torch(), Chunked()]


@hookimpl
def nanochat_quantization() -> Sequence[QuantizationBackend]:
    from nanochat.builtin.quantization import Fp8, NoQuantization

    return [NoQuantization(), Fp8(), Fp8(rowwise=True)]


@hookimpl
def nanochat_device() -> Sequence[DeviceBackend]:
    from nanochat.builtin.devices import Cpu, Cuda, Mps

    return [Cpu(), Cuda(), Mps()]
