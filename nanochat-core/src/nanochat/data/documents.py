"""Reads one rank's share of the documents in order, encoding them ahead on threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nanochat.data.packing import Document
from nanochat.data.position import REMEDY, LoaderState, Position, Reference, owner
from nanochat.data.shard_files import ShardFile
from nanochat.data.shards import ShardSet
from nanochat.data.tokenizer import Tokenizer
from nanochat.errors import UsageError

GROUP_DOCUMENTS = 32
GROUP_CHARACTERS = 200_000
"""What one task of a thread encodes: either limit ends a group."""


class _Row(NamedTuple):
    at: Position
    text: str
    skipped: int
    """Rows of this rank without text right before this one."""


class DocumentReader:
    """An iterator of documents from a state on. `position` is right after the last one given.

    `epochs` ends it after so many passes (0: never). Raises UsageError where shards are damaged,
    are not those of the state, or leave this rank without documents for a whole epoch.
    """

    def __init__(
        self,
        shards: ShardSet,
        tokenizer: Tokenizer,
        state: LoaderState,
        *,
        epochs: int,
        threads: int,
    ) -> None:
        self.position = state.position
        self.skipped = state.skipped
        self.taken = state.taken
        self._rank, self._world_size = state.rank, state.world_size
        self._shards = shards
        self._tokenizer = tokenizer
        self._known_rows = dict(state.shards)
        self._epochs = epochs
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="nanochat-encode")
        self._boundary: str | None = None
        self._iterator = self._read()

    def __iter__(self) -> Iterator[Document]:
        return self

    def __next__(self) -> Document:
        return next(self._iterator)

    def close(self) -> None:
        """Let the threads go."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def known_rows(self) -> Mapping[str, int]:
        """Rows of each shard that has been read or that the state knew; it only grows."""
        return self._known_rows

    def fetch(self, references: Sequence[Document | Reference]) -> list[Document]:
        """Read and encode again what references stand for, in their order."""
        rows_of: dict[str, set[int]] = {}
        for reference in references:
            rows_of.setdefault(reference.shard, set()).add(reference.row)
        tokens: dict[tuple[str, int], NDArray[Any]] = {}
        for name, wanted in rows_of.items():
            rows = sorted(wanted)
            texts = self._open_known(name).take(rows)
            for row, encoded in zip(rows, self._pool.map(self._encode_one, texts), strict=True):
                tokens[name, row] = encoded
        documents = []
        for ref in references:
            found = tokens[ref.shard, ref.row]
            if not ref.start < ref.stop <= len(found):
                raise UsageError(
                    f"row {ref.row} of {ref.shard} is not the document that the checkpoint's "
                    "data position refers to",
                    REMEDY,
                )
            part = found[ref.start : ref.stop]
            documents.append(Document(part, ref.shard, ref.row, ref.epoch, ref.start))
        return documents

    def _read(self) -> Iterator[Document]:
        groups = self._groups()
        waiting: deque[tuple[list[_Row], Future[list[NDArray[Any]]]]] = deque()
        more, at_boundary = True, False
        while more or waiting:
            while more and len(waiting) < 2 * self._threads + 2:
                # Never wait for a shard while there are documents to give.
                if at_boundary and waiting and not self._shards.is_ready(self._boundary):
                    break
                group = next(groups, None)
                more = group is not None
                at_boundary = group == []
                if group:
                    texts = [row.text for row in group]
                    waiting.append((group, self._pool.submit(self._encode, texts)))
            if not waiting:
                continue
            rows, encoded = waiting.popleft()
            for row, tokens in zip(rows, encoded.result(), strict=True):
                epoch, shard, number = row.at
                self.position = Position(epoch, shard, number + 1)
                self.skipped += row.skipped
                self.taken = tuple(t for t in self.taken if not t.is_past(self.position))
                yield Document(tokens, shard, number, epoch)

    def _groups(self) -> Iterator[list[_Row]]:
        """This rank's rows with text, in groups; an empty group before each change of shard."""
        epoch, name, first = self.position
        whole, found = not name, False
        shard = self._open_known(name) if name else None
        while not self._epochs or epoch < self._epochs:
            if shard is not None:
                self._known_rows[shard.name] = shard.rows
                for group in self._groups_of(shard, epoch, first):
                    found = True
                    yield group
            after = shard.name if shard else None
            self._boundary, first = after, 0
            yield []
            shard = self._shards.next_after(after)
            if shard is None:
                if whole and not found:
                    raise self._nothing_found()
                epoch, whole, found = epoch + 1, True, False

    def _groups_of(self, shard: ShardFile, epoch: int, first: int) -> Iterator[list[_Row]]:
        group: list[_Row] = []
        characters = skipped = 0
        for start, texts in shard.read(first):
            offset = (self._rank - owner(shard.name, start, self._world_size)) % self._world_size
            for i in range(offset, len(texts), self._world_size):
                text, at = texts[i], Position(epoch, shard.name, start + i)
                if any(taken.has(at) for taken in self.taken):
                    continue
                if not text:
                    skipped += 1
                    continue
                group.append(_Row(at, text, skipped))
                characters += len(text)
                skipped = 0
                if len(group) == GROUP_DOCUMENTS or characters >= GROUP_CHARACTERS:
                    yield group
                    group, characters = [], 0
        if group:
            yield group

    def _nothing_found(self) -> UsageError:
        which = f" for rank {self._rank} of {self._world_size}" if self._world_size > 1 else ""
        return UsageError(
            f"the {self._shards.split} shards of {self._shards.folder} have no documents{which}: "
            "all texts are null or empty, or there are fewer than ranks",
            "Add documents, or train on fewer ranks",
        )

    def _open_known(self, name: str) -> ShardFile:
        """Open a shard that the state refers to, if it is still the same."""
        if not (self._shards.folder / name).exists():
            raise UsageError(
                f"{self._shards.folder / name}, which the checkpoint's data position refers to, "
                "has vanished",
                REMEDY,
            )
        shard = self._shards.open(name)
        if shard.rows != self._known_rows.get(name, shard.rows):
            raise UsageError(
                f"{shard.path} has {shard.rows} rows, it had {self._known_rows[name]} when the "
                "checkpoint was written",
                REMEDY,
            )
        return shard

    def _encode(self, texts: list[str]) -> list[NDArray[Any]]:
        return [self._tokenizer.encode_array(text) for text in texts]

    def _encode_one(self, text: str | None) -> NDArray[Any]:
        return self._tokenizer.encode_array(text) if text else np.empty(0, np.uint32)
