"""How much the attention kernels compute, counted from the blocks that they visit. Imports jax."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nanochat_xla.blocks import choose, padded_length
from nanochat_xla.splash import block_masks

FORWARD_PRODUCTS = 2  # scores, output
DQ_PRODUCTS = 3  # scores again, gradient of the probabilities, gradient of the queries
DKV_PRODUCTS = 4  # the first two of these, gradients of keys and values


@dataclass(frozen=True)
class Operations:
    """Multiplications and additions of the matrix products in one pass each."""

    forward: int
    backward: int

    @property
    def total(self) -> int:
        return self.forward + self.backward


def attention_operations(
    generation: str | None,
    *,
    batch: int,
    length: int,
    heads: int,
    head_dim: int,
    windows: Iterable[int | None],
    dtype: str = "bfloat16",
) -> Operations:
    """What the kernels of all layers compute, `windows` holding one entry a layer.

    A block that the mask touches is computed whole, one that it hides not at all: the count is
    that of the compiled kernels, not of the formula.
    """
    forward = backward = 0
    for window in windows:
        blocks = choose(generation, length, window, head_dim=head_dim, dtype=dtype)
        masks = block_masks(padded_length(length), window, blocks)
        back = blocks.q_back * blocks.kv_back
        forward += FORWARD_PRODUCTS * visited(masks.forward) * blocks.q * blocks.kv
        backward += DQ_PRODUCTS * visited(masks.dq) * back
        backward += DKV_PRODUCTS * visited(masks.dkv) * back
    each = 2 * batch * heads * head_dim
    return Operations(each * forward, each * backward)


def visited(info: Any) -> int:
    """The blocks of one head that a kernel computes, of jax's MaskInfo."""
    return int((info.block_mask != 0).sum())
