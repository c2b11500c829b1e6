"""Reading the documents of an output as they are needed, and writing a column back."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from nanochat_chunker.errors import UsageError
from nanochat_chunker.output import split_output
from nanochat_chunker.slicing.preprocess import is_c
from nanochat_chunker.storage import open_address, store_for
from nanochat_chunker.writers import PAGE_BYTES, ROW_GROUP

COLUMN = "compiles"
_COLUMNS = ("text", "project", "paths", "roots")


@dataclass(frozen=True)
class Document:
    """One document; `is_c` where its root lies in a C file."""

    text: str
    project: str = ""
    is_c: bool = False


class Documents:
    """The documents of a folder of shards or a JSONL file, here or at an fsspec address.

    Raises `UsageError` where there is neither.
    """

    def __init__(self, output: str) -> None:
        self.output = output.removeprefix("file://")
        self._system, self._path = open_address(self.output)
        self._shards: list[str] = []
        if self._system.isdir(self._path):
            entries: list[Any] = self._system.ls(self._path, detail=False)
            self._shards = sorted(
                entry
                for entry in entries
                if entry.endswith(".parquet") and not _name(entry).startswith(".")
            )
            if not self._shards:
                raise UsageError(
                    f"no parquet shards in {output}", "Give an output of nanochat-chunker"
                )
        elif not self._system.isfile(self._path):
            raise UsageError(
                f"there is no {output}", "Give a folder of parquet shards, or a .jsonl file"
            )

    def count(self) -> int:
        """How many there are."""
        if not self._shards:
            return sum(1 for _ in self._rows())
        total = 0
        for shard in self._shards:
            with self._parquet(shard) as file:
                total += file.metadata.num_rows
        return total

    def read(self, chosen: Sequence[int] | None) -> Iterator[Document]:
        """Those at the places `chosen`, in ascending order; None: all."""
        wanted = None if chosen is None else set(chosen)
        if not self._shards:
            for at, row in enumerate(self._rows()):
                if wanted is None or at in wanted:
                    yield _document(row)
            return
        at = 0
        for shard in self._shards:
            with self._parquet(shard) as file:
                columns = [name for name in _COLUMNS if name in file.schema_arrow.names]
                for group in range(file.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    here = [n for n in range(rows) if wanted is None or at + n in wanted]
                    at += rows
                    if here:
                        table = file.read_row_group(group, columns=columns)
                        for n in here:
                            yield _document(table.slice(n, 1).to_pylist()[0])

    def annotate(self, compiles: Sequence[bool | None]) -> None:
        """Writes the column `compiles`; each file appears whole under its name."""
        folder, name = split_output(self.output)
        with tempfile.TemporaryDirectory() as scratch:
            store = store_for(folder, Path(scratch))
            if not self._shards:
                store.write(name, lambda path: self._fill_lines(path, compiles))
                return
            at = 0
            for shard in self._shards:
                with self._parquet(shard) as file:
                    count = file.metadata.num_rows
                    column = compiles[at : at + count]
                    at += count
                    store.write(
                        _name(shard),
                        lambda path, file=file, column=column: _fill_shard(file, path, column),
                    )

    def _fill_lines(self, path: Path, compiles: Sequence[bool | None]) -> None:
        with path.open("w", encoding="utf-8", newline="\n") as out:
            for row, value in zip(self._rows(), compiles, strict=True):
                out.write(json.dumps({**row, COLUMN: value}, ensure_ascii=False) + "\n")

    @contextmanager
    def _parquet(self, shard: str) -> Iterator[Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        opened: IO[bytes]
        with self._system.open(shard, "rb") as opened:
            try:
                file = pq.ParquetFile(opened)
            except pa.ArrowInvalid:
                raise UsageError(
                    f"{_name(shard)} of {self.output} is no parquet file", "Make the output again"
                ) from None
            if "text" not in file.schema_arrow.names:
                raise UsageError(
                    f"{_name(shard)} of {self.output} has no column text",
                    "Give an output of nanochat-chunker",
                )
            yield file

    def _rows(self) -> Iterator[dict[str, Any]]:
        with self._system.open(
            self._path, "r", encoding="utf-8", errors="surrogateescape", newline="\n"
        ) as lines:
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                    raise UsageError(
                        f'line {number} of {self.output} is not {{"text": ...}}',
                        "Make the output again",
                    )
                yield row


def _fill_shard(file: Any, path: Path, column: Sequence[bool | None]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    at = 0
    for group in range(file.num_row_groups):
        table = file.read_row_group(group)
        values = pa.array(list(column[at : at + table.num_rows]), pa.bool_())
        at += table.num_rows
        if COLUMN in table.column_names:
            table = table.set_column(table.column_names.index(COLUMN), COLUMN, values)
        else:
            table = table.append_column(COLUMN, values)
        if writer is None:
            writer = pq.ParquetWriter(
                path, table.schema, compression="zstd", data_page_size=PAGE_BYTES
            )
        writer.write_table(table, row_group_size=ROW_GROUP)
    if writer is not None:
        writer.close()


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _document(row: dict[str, Any]) -> Document:
    roots = row.get("roots") or []
    path = str(roots[0].get("path") or "") if roots and isinstance(roots[0], dict) else ""
    return Document(row["text"], str(row.get("project") or ""), is_c(path))
