"""Reading the documents of an output, and writing a column back."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat_chunker.errors import UsageError
from nanochat_chunker.slicing.preprocess import is_c
from nanochat_chunker.writers import PAGE_BYTES, ROW_GROUP

COLUMN = "compiles"


@dataclass(frozen=True)
class Document:
    """One document; `is_c` where its root lies in a C file."""

    text: str
    project: str = ""
    is_c: bool = False


def read_output(output: Path) -> list[Document]:
    """The documents of a folder of shards or a JSONL file, in order.

    Raises `UsageError` where there is neither.
    """
    if output.is_dir():
        shards = _shards(output)
        if not shards:
            raise UsageError(f"no parquet shards in {output}", "Give an output of nanochat-chunker")
        return [document for shard in shards for document in _read_shard(shard)]
    if output.is_file():
        return [_document(row) for row in _rows(output)]
    raise UsageError(f"there is no {output}", "Give a folder of parquet shards, or a .jsonl file")


def annotate_output(output: Path, compiles: Sequence[bool | None]) -> None:
    """Writes the column `compiles`; each file is written beside its name and renamed."""
    if output.is_file():
        rows = _rows(output)
        lines = []
        for row, value in zip(rows, compiles, strict=True):
            lines.append(json.dumps({**row, COLUMN: value}, ensure_ascii=False) + "\n")
        beside = output.with_name(output.name + ".partial")
        beside.write_text("".join(lines), encoding="utf-8")
        os.replace(beside, output)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    at = 0
    for shard in _shards(output):
        table = pq.ParquetFile(shard).read()
        column = pa.array(list(compiles[at : at + table.num_rows]), pa.bool_())
        at += table.num_rows
        if COLUMN in table.column_names:
            table = table.set_column(table.column_names.index(COLUMN), COLUMN, column)
        else:
            table = table.append_column(COLUMN, column)
        beside = shard.with_name(shard.name + ".partial")
        pq.write_table(
            table, beside, compression="zstd", row_group_size=ROW_GROUP, data_page_size=PAGE_BYTES
        )
        os.replace(beside, shard)


def _shards(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.parquet") if not path.name.startswith("."))


def _read_shard(shard: Path) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(shard)
        names = set(file.schema_arrow.names)
        if "text" not in names:
            raise UsageError(f"{shard} has no column text", "Give an output of nanochat-chunker")
        columns = [name for name in ("text", "project", "paths", "roots") if name in names]
        for batch in file.iter_batches(columns=columns):
            for row in batch.to_pylist():
                yield _document(row)
    except pa.ArrowInvalid:
        raise UsageError(f"{shard} is no parquet file", "Make the output again") from None


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    with path.open(encoding="utf-8", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                raise UsageError(
                    f'line {number} of {path} is not {{"text": ...}}', "Make the output again"
                )
            rows.append(row)
    return rows


def _document(row: dict[str, Any]) -> Document:
    roots = row.get("roots") or []
    path = str(roots[0].get("path") or "") if roots and isinstance(roots[0], dict) else ""
    return Document(row["text"], str(row.get("project") or ""), is_c(path))
