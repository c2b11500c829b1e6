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

    All rows are filled to the same `position`. `last_embedding` (B, 1, n_embd) is the embedding of
    the last token, which the model's smear mixes into the next one: zeros before the first.

    What moves from token to token is also on the device, so that a compiled model serves every
    position.
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
        self._expected: tuple[int, Tensor] | None = None
        self.last_embedding = torch.zeros(batch_size, 1, config.n_embd, device=device, dtype=dtype)

    def layer(self, index: int) -> LayerCache:
        return LayerCache(self.keys[index], self.values[index], self.lengths)

    def places(self, tokens: int) -> Tensor:
        """The positions of that many tokens to come: (tokens,) int64."""
        return self.lengths[:1].long() + torch.arange(tokens, device=self.lengths.device)

    def expect(self, tokens: int, on_device: Tensor) -> None:
        """Of the tokens that come next only so many count, the rest is padding.

        `on_device` is the number again, (1,) int64. Keys and values of padding are written behind
        the others, where no query sees them before they are written over.
        """
        self._expected = tokens, on_device

    def remember(self, embeddings: Tensor) -> None:
        """Keep the embedding of the last token that counts, of embeddings (B, T, n_embd)."""
        if self._expected is None:
            self.last_embedding = embeddings[:, -1:]
        else:
            self.last_embedding = embeddings.index_select(1, self._expected[1] - 1)

    def advance(self, positions: int) -> None:
        """Count positions that every layer has appended."""
        if self._expected is None:
            self.lengths += positions
        else:
            positions, on_device = self._expected
            self.lengths += on_device.int()
            self._expected = None
        self.position += positions

    def take(self, prompt: KVCache) -> None:
        """Begin every row with what a shorter cache of one row holds."""
        self.keys[:, :, : prompt.length] = prompt.keys
        self.values[:, :, : prompt.length] = prompt.values
        self.position = prompt.position
        self.lengths += prompt.lengths
        self.last_embedding = prompt.last_embedding.expand_as(self.last_embedding)

    def reset(self) -> None:
        """Empty the cache, keeping its memory."""
        self.position = 0
        self.lengths.zero_()
        self.last_embedding.zero_()
