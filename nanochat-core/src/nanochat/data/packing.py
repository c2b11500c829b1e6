"""Best-fit packing of documents into full rows, each of which begins with a document.

The scheme is that of karpathy/nanochat: of the documents at hand the longest that still fits goes
next; where none fits, the shortest is cut to fill the row, so that every position is trained on and
every token can see the start of its document. Unlike there, equal lengths go first come first
served, a last position that has room for BOS alone costs no document, and `long_documents="split"`
keeps what is cut off as a document of its own.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from numpy.typing import NDArray

LongDocuments = Literal["crop", "split"]


class Document(NamedTuple):
    """The ids of a document without BOS, or of a part of one, and where they are from."""

    tokens: NDArray[Any]
    """(n,), any integer type, n at least 1."""
    shard: str
    row: int
    epoch: int
    start: int = 0
    """How many tokens of the document come before these."""

    @property
    def stop(self) -> int:
        return self.start + len(self.tokens)


@dataclass(frozen=True)
class PackingCounts:
    """What has become of the documents so far."""

    documents: int = 0
    """Documents, or parts of split ones, that were put into rows."""
    tokens: int = 0
    """Tokens in rows, the BOS of each document included."""
    dropped: int = 0
    """Tokens that were cut off and not trained on."""


class Packer:
    """Fills rows from a stream of documents, choosing among the next `buffer_size` of them.

    Deterministic: the same documents give the same rows. A document is admitted to the buffer only
    while no other there is two epochs older, so that a small dataset is not read far ahead.
    """

    def __init__(
        self,
        documents: Iterable[Document],
        *,
        row_length: int,
        bos_id: int,
        buffer_size: int = 1000,
        long_documents: LongDocuments = "crop",
    ) -> None:
        self._documents: Iterator[Document] = iter(documents)
        self._row_length = row_length
        self._bos_id = bos_id
        self._buffer_size = buffer_size
        self._split = long_documents == "split"
        # Sorted by (length with BOS, arrival); arrivals differ, so documents are never compared.
        self._buffer: list[tuple[int, int, Document]] = []
        self._epochs: Counter[int] = Counter()
        self._arrivals = 0
        self._next: Document | None = None
        self.counts = PackingCounts()

    def restore(
        self, buffered: Iterable[Document], pending: Document | None, counts: PackingCounts
    ) -> None:
        """Take up what `buffered`, `pending` and `counts` of another packer said."""
        for document in buffered:
            self._add(document)
        self._next = pending
        self.counts = counts

    def buffered(self) -> list[Document]:
        """The documents to choose from, in an order that `restore` keeps."""
        return [document for _, _, document in self._buffer]

    @property
    def pending(self) -> Document | None:
        """A document taken from the stream and not yet admitted, or what is left of it."""
        return self._next

    def fill(self, row: NDArray[Any]) -> bool:
        """Fill one row, (row_length,), with documents; False if they ran out before its end."""
        at, end = 0, self._row_length
        documents = dropped = 0
        while at < end:
            self._refill()
            if not self._buffer:
                # A row that cannot be filled is given up with what is in it.
                self._count(0, 0, dropped + at - documents)
                return False
            room = end - at
            row[at] = self._bos_id
            if room == 1:
                break
            document, kept = self._choose(room)
            row[at + 1 : at + 1 + kept] = document.tokens[:kept]
            at += 1 + kept
            documents += 1
            cut = len(document.tokens) - kept
            if cut and self._split:
                self._add(
                    document._replace(tokens=document.tokens[kept:], start=document.start + kept)
                )
            else:
                dropped += cut
        self._count(documents, end, dropped)
        return True

    def _choose(self, room: int) -> tuple[Document, int]:
        """Remove the best document for `room` positions; how many of its tokens go in."""
        fitting = bisect_left(self._buffer, (room + 1,))  # type: ignore[arg-type]
        if fitting == 0:
            return self._pop(0), room - 1
        longest = self._buffer[fitting - 1][0]
        oldest = bisect_left(self._buffer, (longest,), hi=fitting)  # type: ignore[arg-type]
        return self._pop(oldest), longest - 1

    def _pop(self, index: int) -> Document:
        document = self._buffer.pop(index)[2]
        self._epochs[document.epoch] -= 1
        if not self._epochs[document.epoch]:
            del self._epochs[document.epoch]
        return document

    def _add(self, document: Document) -> None:
        insort(self._buffer, (1 + len(document.tokens), self._arrivals, document))
        self._arrivals += 1
        self._epochs[document.epoch] += 1

    def _refill(self) -> None:
        while len(self._buffer) < self._buffer_size:
            if self._next is None:
                self._next = next(self._documents, None)
                if self._next is None:
                    return
            document = self._next
            if self._epochs and document.epoch > min(self._epochs) + 1:
                return
            self._next = None
            room = self._row_length - 1
            if self._split and len(document.tokens) > room:
                self._next = document._replace(
                    tokens=document.tokens[room:], start=document.start + room
                )
                document = document._replace(tokens=document.tokens[:room])
            self._add(document)

    def _count(self, documents: int, tokens: int, dropped: int) -> None:
        counts = self.counts
        self.counts = replace(
            counts,
            documents=counts.documents + documents,
            tokens=counts.tokens + tokens,
            dropped=counts.dropped + dropped,
        )
