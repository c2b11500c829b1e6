"""Splash attention on tensors of TorchTPU: jax functions that it registers as operators of torch.

Its own `torch.tpu.ops.splash_sdpa` repeats the keys of grouped queries and knows no documents.
"""

from __future__ import annotations

import jax
from torch.tpu.pallas import jax_op

from nanochat_xla import splash
from nanochat_xla.blocks import Blocks, choose
from nanochat_xla.operators import NAMESPACE, Operators, differentiable


def operators(generation: str | None) -> Operators:
    """Register `nanochat_xla::torch_tpu_forward` and `_backward`, and return them.

    `jax_op` reads the annotations: arrays become tensors, everything else is known when a kernel
    is compiled.
    """

    def blocks_of(q: jax.Array, window: int | None) -> Blocks:
        _, length, _, head_dim = q.shape
        return choose(generation, length, window, head_dim=head_dim, dtype=q.dtype.name)

    def forward(
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        documents: jax.Array | None,
        window: int | None,
        scale: float,
    ) -> tuple[jax.Array, jax.Array]:
        blocks = blocks_of(q, window)
        return splash.forward(q, k, v, documents, window=window, scale=scale, blocks=blocks)

    def backward(
        grad: jax.Array,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        out: jax.Array,
        lse: jax.Array,
        documents: jax.Array | None,
        window: int | None,
        scale: float,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        blocks = blocks_of(q, window)
        return splash.backward(
            *(grad, q, k, v, out, lse, documents), window=window, scale=scale, blocks=blocks
        )

    return differentiable(
        jax_op(f"{NAMESPACE}::torch_tpu_forward", forward),
        jax_op(f"{NAMESPACE}::torch_tpu_backward", backward),
    )
