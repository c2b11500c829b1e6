"""Writing shards and JSONL so that a reader never sees half a file."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROW_GROUP = 1024  # documents; also what is held in memory while a shard is written
# A page is compressed by itself: a large one lets zstd find what documents have in common.
PAGE_BYTES = 8 << 20


@dataclass(frozen=True)
class Row:
    """One document as it is written."""

    text: str
    project: str
    paths: list[str]
    tokens: int


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path` that takes its place, durably, when the block ends."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Writes a small file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """One `{"text": ...}` a line, UTF-8."""
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps({"text": row.text}, ensure_ascii=False) + "\n")


def write_parquet(path: Path, rows: Iterable[Row], zstd_level: int) -> None:
    """Columns text, project, paths (list of string), tokens (int64), in row groups of 1024."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("text", pa.string()),
            ("project", pa.string()),
            ("paths", pa.list_(pa.string())),
            ("tokens", pa.int64()),
        ]
    )

    def table(group: list[Row]) -> Any:
        columns = [
            [row.text for row in group],
            [row.project for row in group],
            [row.paths for row in group],
            [row.tokens for row in group],
        ]
        arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
        return pa.Table.from_arrays(arrays, schema=schema)

    with (
        atomic(path) as temporary,
        pq.ParquetWriter(
            temporary,
            schema,
            compression="zstd",
            compression_level=zstd_level,
            data_page_size=PAGE_BYTES,
            use_dictionary=["project"],
            write_statistics=["project", "tokens"],  # of text they would be whole documents
        ) as writer,
    ):
        group: list[Row] = []
        for row in rows:
            group.append(row)
            if len(group) == ROW_GROUP:
                writer.write_table(table(group), row_group_size=ROW_GROUP)
                group.clear()
        if group:
            writer.write_table(table(group), row_group_size=ROW_GROUP)
