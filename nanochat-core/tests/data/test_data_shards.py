"""Which files are shards, which is held out, and what is said about those that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.data.shard_files import open_shard
from nanochat.data.shards import ShardSet
from nanochat.errors import UsageError


def names(folder: Path, split: Any = "train") -> list[str]:
    return [shard.name for shard in ShardSet(folder, split).files()]


def test_the_last_by_name_validates(data_dir: Path) -> None:
    assert names(data_dir) == [f"shard_0000{i}.parquet" for i in range(3)]
    assert names(data_dir, "val") == ["shard_00003.parquet"]


def test_a_named_validation_shard_is_taken(data_dir: Path, shard: Callable[..., Path]) -> None:
    shard(data_dir / "val_shard.parquet", ["held out"])
    shard(data_dir / "zebra.parquet", ["trained on"])
    assert names(data_dir) == [*(f"shard_0000{i}.parquet" for i in range(4)), "zebra.parquet"]
    assert names(data_dir, "val") == ["val_shard.parquet"]


def test_unfinished_and_foreign_files_are_passed_over(data_dir: Path) -> None:
    for name in (".hidden.parquet", "shard_9.parquet.tmp", "notes.txt", "_COMPLETE"):
        (data_dir / name).write_bytes(b"junk")
    (data_dir / "folder").mkdir()
    assert len(names(data_dir)) == 3


@pytest.mark.parametrize("group", [1, 7, 16, 5000])
def test_reading_from_any_row(tmp_path: Path, shard: Callable[..., Path], group: int) -> None:
    texts = [f"text {i}" if i % 9 else None for i in range(2500)]
    parquet = open_shard(shard(tmp_path / "a.parquet", texts, group))
    lines = [json.dumps({"text": text, "id": 1}) for text in texts]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    for opened in (parquet, open_shard(tmp_path / "a.jsonl")):
        assert opened.rows == 2500
        for first in (0, 1, 1023, 1024, 1030, 2499, 2500):
            found = list(opened.read(first))
            assert [text for _, chunk in found for text in chunk] == texts[first:]
            at = first
            for start, chunk in found:
                assert start == at
                at += len(chunk)
        rows = [2499, 3, 1024, 1023, 3]
        assert opened.take(rows) == [texts[row] for row in rows]
        assert 20_000 < opened.text_bytes() < (120_000 if group > 1 else 300_000)


def test_other_string_types_and_columns(tmp_path: Path) -> None:
    texts = ["a", "b", "a"]
    for kind in (pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        table = pa.table({"id": [1, 2, 3], "text": pa.array(texts, pa.string()).cast(kind)})
        pq.write_table(table, tmp_path / "a.parquet")
        assert [c for _, c in open_shard(tmp_path / "a.parquet").read()] == [texts]


def write(table: dict[str, Any]) -> Callable[[Path], object]:
    return lambda path: pq.write_table(pa.table(table), path)


def truncate(path: Path) -> None:
    write({"text": ["x" * 50] * 500})(path)
    path.write_bytes(path.read_bytes()[:-100])


BAD = {
    "column": (write({"content": ["a"]}), r"no column 'text' \(it has content\)"),
    "type": (write({"text": [1, 2]}), "is int64, it must be string"),
    "bytes": (write({"text": [b"a"]}), "is binary"),
    "list": (write({"text": [["a"]]}), "is list<"),
    "rows": (write({"text": pa.array([], pa.string())}), "has no rows"),
    "truncated": (truncate, "cannot be read as parquet"),
    "junk": (lambda path: path.write_bytes(b"this is no parquet file at all"), "as parquet"),
    "empty": (lambda path: path.write_bytes(b""), "as parquet"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_parquet_is_named(data_dir: Path, kind: str) -> None:
    make, says = BAD[kind]
    make(data_dir / "shard_00001.parquet")
    with pytest.raises(UsageError, match=says) as caught:
        names(data_dir)
    assert str(data_dir / "shard_00001.parquet") in caught.value.message
    assert caught.value.remedy


def test_damage_inside_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"{i} {i * i}" * 20 for i in range(500)]})
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[200:2000] = b"\x00" * 1800
    path.write_bytes(content)
    shard = open_shard(path)  # the end of the file, with its metadata, is sound
    with pytest.raises(UsageError, match=r"a\.parquet cannot be read"):
        list(shard.read())
    with pytest.raises(UsageError, match=r"a\.parquet cannot be read"):
        shard.take([3])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{not json}", "line 3 of .* is not JSON"),
        ('{"content": "a"}', "line 3 of .* has no 'text'"),
        ('["a"]', "line 3 of .* has no 'text'"),
        ('{"text": 5}', "line 3 of .* is not a string"),
        ("\xff", "line 3 of .* is not JSON"),
    ],
)
def test_bad_json_lines_are_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(UsageError, match=says):
        open_shard(path)


def test_empty_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(UsageError, match=r"a\.jsonl has no rows"):
        open_shard(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text('\n{"text": null}\n{"text": "\\ud800"}\n')
    assert [c for _, c in open_shard(tmp_path / "a.jsonl").read()] == [[None, None, "\ud800"]]


def test_folders_that_cannot_be_used(tmp_path: Path, shard: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        ShardSet(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        ShardSet(tmp_path / "file")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("")
    with pytest.raises(UsageError, match=r"has no shards.*it has \.csv files"):
        ShardSet(tmp_path / "data")
    shard(tmp_path / "data" / "only.parquet", ["one"])
    with pytest.raises(UsageError, match=r"no shard to train on: only\.parquet is held out"):
        ShardSet(tmp_path / "data")
    assert names(tmp_path / "data", "val") == ["only.parquet"]
