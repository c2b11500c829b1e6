"""Splash attention on tensors of torch_xla: its HLO becomes part of the graph that they record.

jax only traces and lowers here. The device belongs to torch_xla, and one process cannot hold it
twice: jax must be kept to its CPU backend (`JAX_PLATFORMS=cpu`). XLA cannot split a kernel over
chips: call these where each chip has its own rows (see `nanochat_xla.per_device`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import torch_xla.core.xla_builder as xb
import torch_xla.runtime as xr
from torch import Tensor

from nanochat_xla import splash
from nanochat_xla.blocks import choose
from nanochat_xla.operators import DTYPES, Operators, custom_operators

Spec = tuple[tuple[int, ...], str]


def operators(generation: str | None, platform: str | None = None) -> Operators:
    """Register `nanochat_xla::torch_xla_forward` and `_backward`, and return them.

    `platform` is "tpu", or "cpu" for the kernels in interpret mode; by default that of the device
    that torch_xla drives. With "tpu" on another device a graph can be recorded and handed to
    libtpu, but not run.
    """
    platform = platform or ("tpu" if xr.device_type() == "TPU" else "cpu")

    def forward(
        q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None, *options: Any
    ) -> tuple[Tensor, ...]:
        return call("forward", [q, k, v, documents], *options)

    def backward(
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        documents: Tensor | None,
        *options: Any,
    ) -> tuple[Tensor, ...]:
        return call("backward", [grad, q, k, v, out, lse, documents], *options)

    def call(
        name: str, tensors: Sequence[Tensor | None], window: int | None, scale: float
    ) -> tuple[Tensor, ...]:
        present = [x for x in tensors if x is not None]
        return tuple(kernel(name, specs(present), window, scale, generation, platform)(present))

    return custom_operators("torch_xla", forward, backward)


def specs(tensors: Sequence[Tensor]) -> tuple[Spec, ...]:
    return tuple((tuple(x.shape), DTYPES[x.dtype]) for x in tensors)


@lru_cache(maxsize=256)
def kernel(
    name: str,
    arguments: tuple[Spec, ...],
    window: int | None,
    scale: float,
    generation: str | None,
    platform: str,
) -> Callable[[list[Tensor]], list[Tensor]]:
    """`splash.forward` or `splash.backward`, compiled to HLO for these shapes."""
    (_, length, _, head_dim), dtype = arguments[0]
    function = partial(
        getattr(splash, name),
        window=window,
        scale=scale,
        blocks=choose(generation, length, window, head_dim=head_dim, dtype=dtype),
        interpret=platform == "cpu",
    )
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in arguments]
    traced = jax.jit(function, keep_unused=True).trace(*shapes)
    hlo = traced.lower(lowering_platforms=(platform,)).compiler_ir("hlo")
    title = f"splash_{name}"
    computation = xb.computation_from_module_proto(title, hlo.as_serialized_hlo_module_proto())
    return xb.xla_computation_as_func(computation, title)
