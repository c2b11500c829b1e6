"""Documents as parquet and as JSON lines."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat_chunker.documents import Document

ROW_GROUP = 1024  # documents; also what is held in memory while a shard is written
# A page is compressed by itself: a large one lets zstd find what documents have in common.
PAGE_BYTES = 8 << 20


@dataclass(frozen=True)
class Row:
    """One document as it is written."""

    document: Document
    project: str
    mode: str


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """One `{"text": ...}` a line, UTF-8."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps({"text": row.document.text}, ensure_ascii=False) + "\n")


def schema() -> Any:
    """The columns of a shard, as a pyarrow schema; README.md says what each holds."""
    import pyarrow as pa

    root = pa.struct(
        [("path", pa.string()), ("line", pa.int32()), ("name", pa.string()), ("kind", pa.string())]
    )
    return pa.schema(
        [
            ("text", pa.string()),
            ("project", pa.string()),
            ("paths", pa.list_(pa.string())),
            ("tokens", pa.int64()),
            ("mode", pa.string()),
            ("roots", pa.list_(root)),
            ("rung", pa.string()),
            ("license", pa.string()),
            ("commit", pa.string()),
            ("generated", pa.bool_()),
            ("vendored", pa.bool_()),
            ("compiles", pa.bool_()),  # filled by nanochat-chunker verify --annotate
        ]
    )


def _cells(row: Row) -> tuple[Any, ...]:
    document = row.document
    return (
        document.text,
        row.project,
        document.paths,
        document.tokens,
        row.mode,
        [root._asdict() for root in document.roots],
        document.rung or None,
        document.licence,
        document.commit,
        document.generated,
        document.vendored,
        None,
    )


def write_parquet(path: Path, rows: Iterable[Row], zstd_level: int) -> None:
    """A shard in row groups of 1024 documents."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = schema()

    def table(group: list[Row]) -> Any:
        cells = zip(*(_cells(row) for row in group), strict=True)
        arrays = [pa.array(list(c), f.type) for c, f in zip(cells, columns, strict=True)]
        return pa.Table.from_arrays(arrays, schema=columns)

    with pq.ParquetWriter(
        path,
        columns,
        compression="zstd",
        compression_level=zstd_level,
        data_page_size=PAGE_BYTES,
        use_dictionary=["project", "mode", "rung", "license", "commit"],
        write_statistics=["project", "tokens"],  # of text they would be whole documents
    ) as writer:
        group: list[Row] = []
        for row in rows:
            group.append(row)
            if len(group) == ROW_GROUP:
                writer.write_table(table(group), row_group_size=ROW_GROUP)
                group.clear()
        if group:
            writer.write_table(table(group), row_group_size=ROW_GROUP)
