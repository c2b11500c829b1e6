"""Documents on disk between making and shuffled writing, so that memory holds only references."""

import hashlib
import os
import pickle
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from nanochat_chunker.documents import Document, Root

DIGEST_BYTES = 16


def _column(kind: str = "q") -> "array[int]":
    return array(kind)


@dataclass
class References:
    """Where documents lie in the spool, by columns: 56 bytes a document."""

    project: "array[int]" = field(default_factory=_column)
    offset: "array[int]" = field(default_factory=_column)
    length: "array[int]" = field(default_factory=_column)
    tokens: "array[int]" = field(default_factory=_column)
    digests: bytearray = field(default_factory=bytearray)  # of their texts
    records: "array[int]" = field(default_factory=lambda: _column("Q"))  # of all there is of them

    def __len__(self) -> int:
        return len(self.offset)

    def digest(self, index: int) -> bytes:
        return bytes(self.digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES])

    def add(
        self, project: int, offset: int, length: int, tokens: int, digest: bytes, record: int
    ) -> None:
        self.project.append(project)
        self.offset.append(offset)
        self.length.append(length)
        self.tokens.append(tokens)
        self.digests += digest
        self.records.append(record)

    def take(self, other: "References", index: int) -> None:
        """Appends one of another's."""
        self.add(
            other.project[index],
            other.offset[index],
            other.length[index],
            other.tokens[index],
            other.digest(index),
            other.records[index],
        )


class Spool:
    """A file that documents are appended to and read from again."""

    def __init__(self, path: Path) -> None:
        self._append = path.open("ab")
        self._end = self._append.seek(0, os.SEEK_END)
        self._read = path.open("rb")

    def add(self, document: Document, project: int, references: References) -> int:
        """Appends a document and its reference. Returns the bytes of its text."""
        text = document.text.encode()
        rest = (
            document.tokens,
            document.paths,
            tuple(tuple(root) for root in document.roots),
            document.rung,
            document.licence,
            document.commit,
            document.generated,
            document.vendored,
        )
        record = pickle.dumps((text, rest), pickle.HIGHEST_PROTOCOL)
        self._append.write(record)
        digest = hashlib.blake2b(text, digest_size=DIGEST_BYTES).digest()
        # The text, most of it all, is in there by its digest.
        origin = digest + pickle.dumps(rest, pickle.HIGHEST_PROTOCOL)
        whole = int.from_bytes(hashlib.blake2b(origin, digest_size=8).digest(), "little")
        references.add(project, self._end, len(record), document.tokens, digest, whole)
        self._end += len(record)
        return len(text)

    def flush(self) -> None:
        """Makes what was appended readable."""
        self._append.flush()

    def sync(self) -> None:
        """Makes what was appended outlast a kill and a loss of power."""
        self._append.flush()
        os.fsync(self._append.fileno())

    def read(self, offset: int, length: int) -> Document:
        """A document that was flushed. One thread reads at a time, and another may `add`."""
        self._read.seek(offset)
        text, rest = pickle.loads(self._read.read(length))
        tokens, paths, roots, *others = rest
        return Document(text.decode(), tokens, paths, tuple(Root(*root) for root in roots), *others)

    def close(self) -> None:
        self._append.close()
        self._read.close()

    def __enter__(self) -> "Spool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
