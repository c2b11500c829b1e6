"""Small shards and a small tokenizer."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nanochat.data.tokenizer import Tokenizer

WORDS = (
    "int float double void return const static inline template typename class struct namespace "
    "std::vector std::string size_t nullptr if else for while { } ( ) ; = == != += -> :: 0 1 42 "
    "// TODO: comment \n \n\n \t #include <vector> Größe 数据 🙂"
).split(" ")


def make_texts(count: int, seed: int = 0, longest: int = 120) -> list[str]:
    rng = random.Random(seed)
    return [
        f"// document {seed}.{i}\n" + " ".join(rng.choices(WORDS, k=rng.randint(1, longest)))
        for i in range(count)
    ]


def write_shard(path: Path, texts: Sequence[str | None], group: int = 16) -> Path:
    table = pa.table({"text": pa.array(texts, pa.string())})
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, temporary, row_group_size=group)
    temporary.replace(path)
    return path


@pytest.fixture(scope="session")
def texts_of() -> Callable[..., list[str]]:
    """Pseudo-code documents: (count, seed=0, longest=120 words)."""
    return make_texts


@pytest.fixture(scope="session")
def shard() -> Callable[..., Path]:
    """Write one parquet shard and rename it into place: (path, texts, group=16 rows)."""
    return write_shard


@pytest.fixture(scope="session")
def headers() -> list[str]:
    """Real C++: some headers of the installed torch."""
    include = Path(torch.__file__).parent / "include"
    paths: Iterable[Path] = sorted((include / "c10").rglob("*.h"))
    texts = [path.read_text("utf-8", errors="replace") for path in paths]
    assert len(texts) > 50
    return texts


@pytest.fixture(scope="session")
def tokenizer(headers: list[str]) -> Tokenizer:
    return Tokenizer.train([*headers[::2], *make_texts(50)], 2048)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Three training shards of 40 documents, with nulls among them, and a validation shard."""
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(4):
        texts: list[str | None] = [*make_texts(40, seed=i)]
        texts[7], texts[20] = None, ""
        write_shard(folder / f"shard_{i:05d}.parquet", texts)
    return folder
