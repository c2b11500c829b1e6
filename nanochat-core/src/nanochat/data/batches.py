"""Turns documents into batches, one after the other, each with the state to go on from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nanochat.data.documents import DocumentReader
from nanochat.data.packing import LongDocuments, Packer
from nanochat.data.position import LoaderState
from nanochat.data.shards import ShardSet
from nanochat.data.tokenizer import Tokenizer


class Batch(NamedTuple):
    """`inputs` and `targets` are (B, T) int64 on the host, `targets` one position ahead."""

    inputs: Tensor
    targets: Tensor
    after: LoaderState
    """Where this rank stands right after the batch."""

    @property
    def state(self) -> dict[str, Any]:
        """`after` as plain values for JSON. Made when asked for: most batches are never saved."""
        return self.after.as_dict()


@dataclass(frozen=True)
class LoaderStats:
    """What this rank's batches so far were made of, those before a resume included."""

    epoch: int = 0
    documents: int = 0
    tokens: int = 0
    """Tokens in rows, a BOS for each document included."""
    dropped: int = 0
    """Tokens cut off documents and not trained on."""
    skipped: int = 0
    """Rows whose text is null or empty."""


class BatchMaker:
    """An iterable of batches from a state on, to be gone through once, on any thread."""

    def __init__(
        self,
        shards: ShardSet,
        tokenizer: Tokenizer,
        state: LoaderState,
        *,
        batch_size: int,
        sequence_len: int,
        epochs: int,
        buffer_size: int,
        long_documents: LongDocuments,
        threads: int,
        pinned: bool,
    ) -> None:
        self._shards = shards
        self._state = state
        self._shape = (batch_size, sequence_len)
        self._pinned = pinned
        self.reader = DocumentReader(shards, tokenizer, state, epochs=epochs, threads=threads)
        self._packer = Packer(
            self.reader,
            row_length=sequence_len + 1,
            bos_id=tokenizer.bos_id,
            buffer_size=buffer_size,
            long_documents=long_documents,
        )

    def __iter__(self) -> Iterator[tuple[Batch, LoaderStats]]:
        self._restore()
        batch_size, sequence_len = self._shape
        rows = np.empty((batch_size, sequence_len + 1), dtype=np.int64)
        while all(self._packer.fill(row) for row in rows):
            inputs = torch.empty(self._shape, dtype=torch.int64, pin_memory=self._pinned)
            targets = torch.empty(self._shape, dtype=torch.int64, pin_memory=self._pinned)
            inputs.numpy()[:] = rows[:, :-1]
            targets.numpy()[:] = rows[:, 1:]
            yield Batch(inputs, targets, self._now()), self._stats()

    def _restore(self) -> None:
        state = self._state
        pending = (state.pending,) if state.pending else ()
        documents = self.reader.fetch([*state.buffered, *pending])
        count = len(state.buffered)
        self._packer.restore(documents[:count], documents[count] if pending else None, state.counts)

    def _now(self) -> LoaderState:
        packer, reader = self._packer, self.reader
        return LoaderState(
            rank=self._state.rank,
            world_size=self._state.world_size,
            position=reader.position,
            tokenizer=self._state.tokenizer,
            validation=self._shards.validation,
            shards=reader.known_rows,
            buffered=packer.buffered(),
            pending=packer.pending,
            counts=packer.counts,
            skipped=reader.skipped,
            taken=reader.taken,
        )

    def _stats(self) -> LoaderStats:
        counts = self._packer.counts
        return LoaderStats(
            self.reader.position.epoch,
            counts.documents,
            counts.tokens,
            counts.dropped,
            self.reader.skipped,
        )
