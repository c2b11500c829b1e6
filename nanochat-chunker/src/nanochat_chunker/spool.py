"""Documents on disk between packing and shuffled writing, so that memory holds only references.

Each worker appends to a file of its own; where a document lies there depends on the workers, its
place in the list of references does not.
"""

import json
import os
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from nanochat_chunker.documents import Document


def _column() -> "array[int]":
    return array("q")


@dataclass
class References:
    """Where documents lie, by columns: 40 bytes a document."""

    spools: list[str] = field(default_factory=list)
    spool: "array[int]" = field(default_factory=_column)  # index into spools
    project: "array[int]" = field(default_factory=_column)
    offset: "array[int]" = field(default_factory=_column)
    length: "array[int]" = field(default_factory=_column)
    tokens: "array[int]" = field(default_factory=_column)

    def __len__(self) -> int:
        return len(self.offset)

    def extend(self, project: int, spooled: "Spooled") -> None:
        """Appends the documents of a project."""
        if spooled.spool not in self.spools:
            self.spools.append(spooled.spool)
        count = len(spooled.offset)
        self.spool.extend([self.spools.index(spooled.spool)] * count)
        self.project.extend([project] * count)
        self.offset.extend(spooled.offset)
        self.length.extend(spooled.length)
        self.tokens.extend(spooled.tokens)


@dataclass
class Spooled:
    """The documents of one project in one spool."""

    spool: str
    offset: "array[int]" = field(default_factory=_column)
    length: "array[int]" = field(default_factory=_column)
    tokens: "array[int]" = field(default_factory=_column)
    text_bytes: int = 0


class SpoolWriter:
    """Appends the documents of one project to this process's spool."""

    def __init__(self, folder: Path) -> None:
        name = f"{os.getpid()}.spool"
        self._file = (folder / name).open("ab")
        self.spooled = Spooled(name)

    def append(self, document: Document) -> None:
        record = json.dumps([document.paths, document.text], ensure_ascii=False).encode()
        self.spooled.offset.append(self._file.tell())
        self.spooled.length.append(self._file.write(record))
        self.spooled.tokens.append(document.tokens)
        self.spooled.text_bytes += len(document.text.encode())

    def __enter__(self) -> "SpoolWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


class SpoolReader:
    """Reads documents back by their index in the references."""

    def __init__(self, folder: Path, references: References) -> None:
        self._references = references
        self._files: list[BinaryIO] = []
        for name in references.spools:
            self._files.append((folder / name).open("rb"))

    def read(self, index: int) -> Document:
        file = self._files[self._references.spool[index]]
        file.seek(self._references.offset[index])
        paths, text = json.loads(file.read(self._references.length[index]))
        return Document(text, self._references.tokens[index], paths)

    def __enter__(self) -> "SpoolReader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files:
            file.close()
