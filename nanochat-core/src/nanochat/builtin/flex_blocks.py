"""Which blocks of keys a block of queries sees, as the tables of a flex_attention `BlockMask`.

From arithmetic on blocks alone: `create_block_mask` would evaluate every pair of positions, at 16K
tokens 268 million.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128

TABLES = (
    "kv_num_blocks",
    "kv_indices",
    "full_kv_num_blocks",
    "full_kv_indices",
    "q_num_blocks",
    "q_indices",
    "full_q_num_blocks",
    "full_q_indices",
)
"""Arguments of BlockMask, in the order in which tables are returned here. For each block of queries
how many blocks of keys it sees (B, 1, n) and which, those first (B, 1, n, n), int32; of keys that
all its queries see ("full") and of others; then the same for each block of keys."""


def window_tables(length: int, window: int | None, device: torch.device) -> list[Tensor]:
    """The tables of a causal window, one for all rows."""
    return _tables(length, window, None, device)


@torch.library.custom_op("nanochat::document_tables", mutates_args=())
def document_tables(documents: Tensor, window: int | None) -> list[Tensor]:
    """The tables of a causal window within documents (B, T), whose numbers never decrease.

    An operator, so that no compiler lays the tables out: the attention kernels that torch 2.11
    compiles read those of the first row for every row, or beyond them, where they are made in the
    same graph.
    """
    return _tables(documents.size(1), window, documents, documents.device)


@document_tables.register_fake
def _(documents: Tensor, window: int | None) -> list[Tensor]:
    rows, blocks = documents.size(0), -(-documents.size(1) // BLOCK)
    pair = [(rows, 1, blocks), (rows, 1, blocks, blocks)]
    return [documents.new_empty(shape, dtype=torch.int32) for shape in pair * 4]


def _tables(
    length: int, window: int | None, documents: Tensor | None, device: torch.device
) -> list[Tensor]:
    blocks = torch.arange(-(-length // BLOCK), device=device)
    gap = (blocks[:, None] - blocks)[None, None]  # in blocks, query minus key
    seen = gap >= 0
    whole = (blocks + 1) * BLOCK <= length  # the last block of queries may be cut short
    full = (gap >= 1) & whole[:, None]
    if window is not None:
        nearest = (gap * BLOCK - (BLOCK - 1)).clamp(min=0)  # smallest distance in a pair of blocks
        farthest = gap * BLOCK + (BLOCK - 1)
        seen = seen & (nearest <= window)
        full = full & (farthest <= window)
    if documents is not None:
        # Numbers never decrease: the last document of a block of keys is the first one of a later
        # block of queries, or they share none.
        first = documents[:, ::BLOCK]
        last = documents[:, ((blocks + 1) * BLOCK - 1).clamp(max=length - 1)]
        seen = seen & (last[:, None, None, :] >= first[:, None, :, None])
        full = full & (first[:, None, None, :] == last[:, None, :, None])
    partial = seen & ~full
    return [
        table
        for pairs in (partial, full, partial.mT, full.mT)
        for table in _listed(pairs.contiguous())
    ]


def _listed(pairs: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of the last dimension each has, and which, those first."""
    count = pairs.sum(dim=-1, dtype=torch.int32)
    return count, pairs.int().argsort(dim=-1, descending=True, stable=True).int()
