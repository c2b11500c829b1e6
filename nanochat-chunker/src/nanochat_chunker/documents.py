"""A document, and packing the files of a project into documents of bounded length."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from nanochat_chunker.splitting import split_text
from nanochat_chunker.tokens import Meter


class Root(NamedTuple):
    """A definition that a document was built around. `line` counts from 1."""

    path: str
    line: int
    name: str
    kind: str


@dataclass(frozen=True)
class Document:
    """A text of at most the budget, the files it is made of in order, and what is known of it.

    `rung` is the step of the ladder of detail of a slice, empty for packed files. Origin: an SPDX
    expression over its files, their commit where it is one, and whether all of them are generated
    or vendored.
    """

    text: str
    tokens: int
    paths: tuple[str, ...]
    roots: tuple[Root, ...] = ()
    rung: str = ""
    licence: str = ""
    commit: str | None = None
    generated: bool = False
    vendored: bool = False


@dataclass(frozen=True)
class _Piece:
    path: str
    text: str  # with its path line, ends with a newline
    units: int


class Packer:
    """Takes files in order and gives documents as they fill.

    A file that does not fit into what is left of a document begins the next one; only a file
    longer than a whole document is split. Every file, or part of one, follows a comment line with
    its path, after a blank line.
    """

    def __init__(self, meter: Meter, max_tokens: int) -> None:
        self._meter = meter
        self._limit = meter.limit(max_tokens)
        self._open: list[_Piece] = []
        self._open_units = 0
        self.notes: Counter[str] = Counter()  # files_split, lines_cut

    def add(self, path: str, text: str) -> Iterator[Document]:
        """Adds a file; gives the documents that this closes."""
        if not text.endswith("\n"):
            text += "\n"
        whole = self._path_line(path) + text
        units = self._meter.units(whole)
        pieces = [_Piece(path, whole, units)] if units <= self._limit else self._split(path, text)
        for piece in pieces:
            if self._open and self._open_units + 1 + piece.units > self._limit:
                yield self._close()
            self._append(piece)

    def finish(self) -> Iterator[Document]:
        """Gives what is left."""
        while self._open:
            yield self._close()

    def _append(self, piece: _Piece) -> None:
        self._open_units += piece.units + (1 if self._open else 0)
        self._open.append(piece)

    def _close(self) -> Document:
        """The open document; a piece that turns out to be too much for it stays open."""
        pieces = self._open
        carried: list[_Piece] = []
        text = "\n".join(piece.text for piece in pieces)
        units = self._open_units
        if self._meter.exact:
            units = self._meter.units(text)
            while units > self._limit and len(pieces) > 1:
                carried.insert(0, pieces.pop())
                text = "\n".join(piece.text for piece in pieces)
                units = self._meter.units(text)
        self._open = []
        self._open_units = 0
        for piece in carried:
            self._append(piece)
        paths = tuple(dict.fromkeys(piece.path for piece in pieces))
        return Document(text, self._meter.tokens(units), paths)

    def _split(self, path: str, text: str) -> list[_Piece]:
        self.notes["files_split"] += 1
        room = self._limit - self._meter.units(self._path_line(path, " (part 99999 of 99999)")) - 1
        while True:
            bodies, lines_cut = split_text(text, self._meter, room)
            pieces = []
            for number, body in enumerate(bodies, 1):
                line = self._path_line(path, f" (part {number} of {len(bodies)})")
                piece = line + body if body.endswith("\n") else line + body + "\n"
                pieces.append(_Piece(path, piece, self._meter.units(piece)))
            if all(piece.units <= self._limit for piece in pieces):
                self.notes["lines_cut"] += lines_cut
                return pieces
            # A tokenizer may count a piece higher than the sum of its lines.
            room = max(1, room * 9 // 10)

    def _path_line(self, path: str, part: str = "") -> str:
        """The comment line, with the end of the path only where all of it is too much."""
        line, tail = f"// {path}{part}\n", path
        while tail and self._meter.units(line) > self._limit // 2:
            tail = tail[len(tail) // 4 + 1 :]
            line = f"// ...{tail}{part}\n"
        return line
