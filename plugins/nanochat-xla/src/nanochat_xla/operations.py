"""How much the attention kernels compute, counted from the blocks that they visit. Imports jax."""

from __future__ import annotations

import math
import re
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


KERNEL = re.compile(
    r"%\S*splash_mha_(?P<kind>fwd|dq|dkv)(?P<sizes>\S*) = .* custom-call\((?P<operands>[^)]*)\), "
    r'custom_call_target="tpu_custom_call", operand_layout_constraints=\{(?P<shapes>.*)'
)
NAMES = {
    "fwd": ("block_q", "block_kv", FORWARD_PRODUCTS),
    "dq": ("block_q_dq", "block_kv_dq", DQ_PRODUCTS),
    "dkv": ("block_q_dkv", "block_kv_dkv", DKV_PRODUCTS),
}


def compiled_operations(program: str) -> Operations:
    """The same, counted in the text of a compiled program with its large constants.

    Block sizes stand in the name of a kernel; its second operand says which blocks it computes.
    """
    sources = dict(re.findall(r"^\s*%(\S+) = .* copy-(?:start|done)\(%(\S+?)\)", program, re.M))
    constants = dict(re.findall(r"^\s*%(\S+) = s8\S* constant\((.*?)\)", program, re.M))
    forward = backward = 0
    for found in KERNEL.finditer(program):
        *sides, products = NAMES[found["kind"]]
        mask = re.findall(r"%([^\s,]+)", found["operands"])[1]
        while mask in sources:
            mask = sources[mask]
        blocks = len(re.findall(r"[1-9]\d*", constants[mask]))
        q, kv = (int(re.findall(rf"_{name}_(\d+)", found["sizes"])[0]) for name in sides)
        queries = re.findall(r"(?:bf16|f32)\[([\d,]+)\]", found["shapes"])[0]
        *heads, _, width = map(int, queries.split(","))
        count = 2 * products * math.prod(heads) * width * blocks * q * kv
        forward += count if found["kind"] == "fwd" else 0
        backward += count if found["kind"] != "fwd" else 0
    return Operations(forward, backward)


def visited(info: Any) -> int:
    """The blocks of one head that a kernel computes, of jax's MaskInfo."""
    return int((info.block_mask != 0).sum())
