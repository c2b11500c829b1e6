"""The key-value cache of decoding."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nanochat.model.config import GPTConfig


class LayerCache(NamedTuple):
    """One layer's keys and values (B, T_max, H_kv, d) and the filled length of each row (B,)."""

    keys: Tensor
    values: Tensor
    lengths: Tensor


class KVCache:
    """Keys and values of every layer for `batch_size` rows of up to `length` positions.

    All rows are filled to the same `position`. `last_embedding` is the embedding of the last
    token, which the model's smear mixes into the next one.
    """

    def __init__(
        self,
        config: GPTConfig,
        batch_size: int,
        length: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (config.n_layer, batch_size, length, config.n_kv_head, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(batch_size, device=device, dtype=torch.int32)
        self.length = length
        self.position = 0
        self.last_embedding: Tensor | None = None

    def layer(self, index: int) -> LayerCache:
        return LayerCache(self.keys[index], self.values[index], self.lengths)

    def advance(self, positions: int) -> None:
        """Count positions that every layer has appended."""
        self.position += positions
        self.lengths += positions

    def reset(self) -> None:
        """Empty the cache, keeping its memory."""
        self.position = 0
        self.lengths.zero_()
        self.last_embedding = None
