"""Splash attention on tensors of torch_xla: its HLO becomes part of the graph that they record.

jax only traces and lowers here. The device belongs to torch_xla, and one process cannot hold it
twice: jax must be kept to its CPU backend (`JAX_PLATFORMS=cpu`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import torch
import torch_xla.core.xla_builder as xb
import torch_xla.distributed.spmd as xs
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
        return over_batch(
            lambda x: kernel(name, specs(x), window, scale, generation, platform)(list(x)),
            [x for x in tensors if x is not None],
        )

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
    (_, length, *_), dtype = arguments[0]
    function = partial(
        getattr(splash, name),
        window=window,
        scale=scale,
        blocks=choose(generation, length, window, dtype),
        interpret=platform == "cpu",
    )
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in arguments]
    traced = jax.jit(function, keep_unused=True).trace(*shapes)
    hlo = traced.lower(lowering_platforms=(platform,)).compiler_ir("hlo")
    title = f"splash_{name}"
    computation = xb.computation_from_module_proto(title, hlo.as_serialized_hlo_module_proto())
    return xb.xla_computation_as_func(computation, title)


def over_batch(
    function: Callable[[Sequence[Tensor]], Sequence[Tensor]], tensors: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Call a function on each device's share of the batch, the first dimension of every tensor.

    XLA cannot partition a kernel: left alone under SPMD, it would gather the whole batch on each
    device and compute it there. A batch that the mesh does not divide is treated so.
    """
    mesh = xs.get_global_mesh() if xr.is_spmd() else None
    if mesh is None or mesh.size() == 1 or tensors[0].size(0) % mesh.mesh_shape[0]:
        return tuple(function(tensors))
    axis = mesh.axis_names[0]

    def spec(x: Tensor) -> tuple[str | None, ...]:
        return (axis,) + (None,) * (x.dim() - 1)

    def whole(x: Tensor) -> Tensor:
        shape = torch.Size((x.size(0) * mesh.mesh_shape[0], *x.shape[1:]))
        return xs.disable_manual_sharding(x, spec(x), shape, mesh=mesh).global_tensor

    shares = [xs.enable_manual_sharding(x, spec(x), mesh=mesh).global_tensor for x in tensors]
    return tuple(whole(x) for x in function(shares))
