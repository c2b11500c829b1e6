"""One shard of documents in a file: parquet with a column `text`, or JSON lines.

A row is a document; its number in the file is how positions and buffered documents are remembered.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

COLUMN = "text"
CHUNK_ROWS = 1024
"""Rows read at a time, and the row groups of karpathy/nanochat's shards."""

Text = str | None


class ShardFile(ABC):
    """A readable shard. `rows` counts all rows, empty ones included."""

    def __init__(self, path: Path, rows: int) -> None:
        self.path = path
        self.name = path.name
        self.rows = rows

    @abstractmethod
    def read(self, first: int = 0) -> Iterator[tuple[int, list[Text]]]:
        """Chunks of at most CHUNK_ROWS texts from row `first` on, each with its first row.

        A null is None. Raises UsageError where the file turns out to be damaged.
        """

    @abstractmethod
    def take(self, rows: Sequence[int]) -> list[Text]:
        """The texts of some rows, in their order. Raises UsageError as `read` does."""

    @abstractmethod
    def text_bytes(self) -> int:
        """About how many bytes of text the shard has."""


def open_shard(path: Path) -> ShardFile:
    """Open by suffix. Raises UsageError, naming the file, where it is not a shard with texts."""
    shard = JsonlShard(path) if path.suffix == ".jsonl" else ParquetShard(path)
    if shard.rows == 0:
        raise UsageError(f"{path} has no rows", "Remove the file, or write it again")
    return shard


class ParquetShard(ShardFile):
    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._failures = (pa.ArrowException, OSError, UnicodeDecodeError)
        try:
            self._file = pq.ParquetFile(path)
            schema = self._file.schema_arrow
        except FileNotFoundError:
            raise UsageError(f"{path} has vanished", "Put the file back") from None
        except self._failures as error:
            raise self._damaged(path, error) from error
        if COLUMN not in schema.names:
            raise UsageError(
                f"{path} has no column {COLUMN!r} (it has {', '.join(schema.names) or 'none'})",
                f"Rename the column with the documents to {COLUMN!r}",
            )
        kind = schema.field(COLUMN).type
        if not _is_string(kind):
            raise UsageError(
                f"the column {COLUMN!r} of {path} is {kind}, it must be string",
                "Write the documents as strings",
            )
        metadata = self._file.metadata
        super().__init__(path, metadata.num_rows)
        self._starts = [0]
        for group in range(metadata.num_row_groups):
            self._starts.append(self._starts[-1] + metadata.row_group(group).num_rows)

    def read(self, first: int = 0) -> Iterator[tuple[int, list[Text]]]:
        for group, start in enumerate(self._starts[:-1]):
            end = self._starts[group + 1]
            if end <= first:
                continue
            for texts in self._group(group):
                skip = max(0, first - start)
                if skip < len(texts):
                    yield start + skip, texts[skip:]
                start += len(texts)

    def take(self, rows: Sequence[int]) -> list[Text]:
        found: dict[int, Text] = {}
        for group, start in enumerate(self._starts[:-1]):
            end = self._starts[group + 1]
            wanted = {row for row in rows if start <= row < end}
            if not wanted:
                continue
            for texts in self._group(group):
                for row in wanted.intersection(range(start, start + len(texts))):
                    found[row] = texts[row - start]
                start += len(texts)
        return [found[row] for row in rows]

    def text_bytes(self) -> int:
        metadata = self._file.metadata
        total = 0
        for group in range(metadata.num_row_groups):
            columns = metadata.row_group(group)
            for i in range(columns.num_columns):
                column = columns.column(i)
                if column.path_in_schema == COLUMN:
                    total += int(column.total_uncompressed_size)
        return total

    def _group(self, group: int) -> Iterator[list[Text]]:
        # In batches, because some writers put a whole file into one row group.
        try:
            for batch in self._file.iter_batches(CHUNK_ROWS, row_groups=[group], columns=[COLUMN]):
                yield batch.column(0).to_pylist()
        except self._failures as error:
            raise self._damaged(self.path, error) from error

    @staticmethod
    def _damaged(path: Path, error: Exception) -> UsageError:
        return UsageError(
            f"{path} cannot be read as parquet: {_one_line(error)}",
            "The file is damaged or incomplete: write or download it again, or remove it",
        )


def _is_string(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_view = getattr(pa.types, "is_string_view", lambda _: False)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or is_view(kind))


class JsonlShard(ShardFile):
    """Lines of `{"text": ...}`. Opening reads the file once, for where its lines begin."""

    def __init__(self, path: Path) -> None:
        rows = 0
        self._offsets: list[int] = []  # of every CHUNK_ROWS-th line
        position = 0
        try:
            with path.open("rb") as file:
                for line in file:
                    if rows % CHUNK_ROWS == 0:
                        self._offsets.append(position)
                    position += len(line)
                    rows += 1
        except FileNotFoundError:
            raise UsageError(f"{path} has vanished", "Put the file back") from None
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {_one_line(error)}") from error
        self._bytes = position
        super().__init__(path, rows)
        if rows:
            self._chunk(0)  # a wrong file is told at once

    def read(self, first: int = 0) -> Iterator[tuple[int, list[Text]]]:
        for chunk in range(first // CHUNK_ROWS, len(self._offsets)):
            start = chunk * CHUNK_ROWS
            skip = max(0, first - start)
            texts = self._chunk(chunk)[skip:]
            if texts:
                yield start + skip, texts

    def take(self, rows: Sequence[int]) -> list[Text]:
        chunks = {chunk: self._chunk(chunk) for chunk in sorted({r // CHUNK_ROWS for r in rows})}
        return [chunks[row // CHUNK_ROWS][row % CHUNK_ROWS] for row in rows]

    def text_bytes(self) -> int:
        return self._bytes

    def _chunk(self, chunk: int) -> list[Text]:
        first = chunk * CHUNK_ROWS
        count = min(CHUNK_ROWS, self.rows - first)
        try:
            with self.path.open("rb") as file:
                file.seek(self._offsets[chunk])
                lines = [file.readline() for _ in range(count)]
        except OSError as error:
            raise UsageError(f"{self.path} cannot be read: {_one_line(error)}") from error
        return [self._text(line, first + i) for i, line in enumerate(lines)]

    def _text(self, line: bytes, row: int) -> Text:
        if not line.strip():
            return None
        remedy = f'Write one object a line, {{"{COLUMN}": "..."}}'
        where = f"line {row + 1} of {self.path}"
        try:
            record: Any = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{where} is not JSON: {_one_line(error)}", remedy) from error
        if not isinstance(record, dict) or COLUMN not in record:
            raise UsageError(f"{where} has no {COLUMN!r}", remedy)
        text = record[COLUMN]
        if text is not None and not isinstance(text, str):
            raise UsageError(f"the {COLUMN!r} in {where} is not a string", remedy)
        return text


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:200] or type(error).__name__
