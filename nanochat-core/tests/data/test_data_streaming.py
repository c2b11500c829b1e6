"""Training on shards while they are being made."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.data import shards as shards_module
from nanochat.data.loader import Batch, TrainLoader, validation_batches
from nanochat.data.shards import ShardSet
from nanochat.data.tokenizer import Tokenizer
from nanochat.errors import UsageError


def open_loader(data_dir: Path, tokenizer: Tokenizer, **options: Any) -> TrainLoader:
    options = {
        "batch_size": 1,
        "sequence_len": 32,
        "buffer_size": 4,
        "streaming": True,
        "poll_seconds": 0.01,
        "long_documents": "split",
        **options,
    }
    return TrainLoader(data_dir, tokenizer, **options)


def text_of(batches: list[Batch], tokenizer: Tokenizer) -> str:
    rows = [torch.cat((b.inputs, b.targets[:, -1:]), dim=1).view(-1).tolist() for b in batches]
    return "".join(tokenizer.decode(row) for row in rows)


def documents(i: int, count: int = 20) -> list[str]:
    return [f"shard {i} document {j} " * 3 for j in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "stream"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("named", [True, False])
def test_shards_that_appear_while_training(
    folder: Path, tokenizer: Tokenizer, shard: Callable[..., Path], named: bool
) -> None:
    """Written by another thread, read in order, closed by _COMPLETE; then epochs as usual."""
    first = threading.Event()
    notices: list[str] = []
    if named:
        shard(folder / "val_shard.parquet", ["held out " * 50])

    def write() -> None:
        for i in range(4):
            assert first.wait(30) or i == 0
            shard(folder / f"shard_{i:05d}.parquet", documents(i))
            if i == 1:
                first.clear()  # the rest waits until training has begun

        (folder / "_COMPLETE").touch()

    with open_loader(folder, tokenizer, epochs=2, notify=notices.append) as loader:
        first.set()
        writer = threading.Thread(target=write)
        writer.start()
        batches = [next(loader)]
        first.set()
        batches += list(loader)
        writer.join()
    text = text_of(batches, tokenizer)
    trained = [i for i in range(4) if f"shard {i} document 5" in text]
    assert trained == ([0, 1, 2, 3] if named else [1, 2, 3])
    assert "held out" not in text
    assert batches[-1].after.position.epoch >= 1
    # The same batches as from the finished folder.
    with open_loader(folder, tokenizer, epochs=2) as loader:
        again = list(loader)
    assert len(again) == len(batches)
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(again, batches, strict=True))


def test_waiting_is_said_once(
    folder: Path, tokenizer: Tokenizer, shard: Callable[..., Path]
) -> None:
    shard(folder / "val_shard.parquet", ["held out"])
    shard(folder / "a.parquet", documents(0))
    notices: list[str] = []
    with open_loader(folder, tokenizer, notify=notices.append) as loader:
        for _ in range(3):
            next(loader)
        deadline = time.monotonic() + 20
        while not notices and time.monotonic() < deadline:
            # Take what there is; the loader then waits for more.
            loader._queue.get(timeout=20) if loader._queue.qsize() else time.sleep(0.01)
        time.sleep(0.1)
        assert notices == [
            f"waiting for a shard after a.parquet in {folder}, or _COMPLETE to end the epoch"
        ]


def test_all_batches_of_what_is_there_come_before_waiting(
    folder: Path, tokenizer: Tokenizer, shard: Callable[..., Path]
) -> None:
    """Encoded documents are not held back by the wait for the next shard."""
    shard(folder / "val_shard.parquet", ["held out"])
    shard(folder / "a.parquet", documents(0, 100))
    size = sum(1 + len(tokenizer.encode(text)) for text in documents(0, 100))
    with open_loader(folder, tokenizer, notify=lambda _: None) as loader:
        for _ in range((size - 6 * 60) // 33):
            next(loader)


def test_closing_while_waiting(folder: Path, tokenizer: Tokenizer) -> None:
    said = threading.Event()
    loader = open_loader(folder, tokenizer, poll_seconds=60, notify=lambda _: said.set())
    assert said.wait(20)
    loader.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("nanochat-")]


def test_a_folder_closed_without_shards(folder: Path, tokenizer: Tokenizer, shard: Any) -> None:
    (folder / "_COMPLETE").touch()
    with open_loader(folder, tokenizer) as loader, pytest.raises(UsageError, match="no shards"):
        next(loader)
    shard(folder / "a.parquet", documents(0))
    with (
        open_loader(folder, tokenizer) as loader,
        pytest.raises(UsageError, match="no shard to train on"),
    ):
        next(loader)


def test_a_missing_folder_is_not_waited_for(folder: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        open_loader(folder / "typo", tokenizer)


def test_a_file_written_in_place_is_waited_for(folder: Path, shard: Any, tmp_path: Path) -> None:
    whole = shard(tmp_path / "whole.parquet", documents(0)).read_bytes()
    shard(folder / "val_shard.parquet", ["held out"])
    (folder / "a.parquet").write_bytes(whole[:100])
    notices: list[str] = []
    waits = threading.Event()

    def notify(message: str) -> None:
        notices.append(message)
        waits.set()

    def complete() -> None:
        assert waits.wait(20)
        (folder / "a.parquet").write_bytes(whole)

    writer = threading.Thread(target=complete)
    writer.start()
    found = ShardSet(folder, streaming=True, poll_seconds=0.01, notify=notify).next_after(None)
    writer.join()
    assert found is not None
    assert found.rows == 20
    assert notices == [f"waiting for {folder / 'a.parquet'} to be complete"]


@pytest.mark.parametrize("closed", [True, False])
def test_a_file_that_stays_broken_is_an_error(
    folder: Path, shard: Any, closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "STALLED_SECONDS", 0.05)
    shard(folder / "val_shard.parquet", ["held out"])
    (folder / "a.parquet").write_bytes(b"PAR1 and no more")
    if closed:
        (folder / "_COMPLETE").touch()
    stream = ShardSet(folder, streaming=True, poll_seconds=0.01, notify=lambda _: None)
    with pytest.raises(UsageError, match=r"a\.parquet cannot be read"):
        stream.next_after(None)


def test_a_late_shard_waits_for_the_next_epoch(folder: Path, shard: Callable[..., Path]) -> None:
    shard(folder / "val_shard.parquet", ["held out"])
    for name in "bd":
        shard(folder / f"{name}.parquet", documents(0))
    stream = ShardSet(folder, streaming=True)
    assert stream.next_after(None).name == "b.parquet"  # type: ignore[union-attr]
    for name in "ac":
        shard(folder / f"{name}.parquet", documents(0))
    (folder / "_COMPLETE").touch()
    assert [s.name for s in stream.files()] == [f"{name}.parquet" for name in "abcd"]
    assert stream.next_after("b.parquet").name == "c.parquet"  # type: ignore[union-attr]
    assert stream.next_after("d.parquet") is None


def test_resuming_a_stream(folder: Path, tokenizer: Tokenizer, shard: Callable[..., Path]) -> None:
    for i in range(3):
        shard(folder / f"{i}.parquet", documents(i))
    with open_loader(folder, tokenizer, notify=lambda _: None) as loader:
        state = [next(loader) for _ in range(8)][-1].state
    for i in range(3, 5):
        shard(folder / f"{i}.parquet", documents(i))
    (folder / "_COMPLETE").touch()
    with open_loader(folder, tokenizer, epochs=2) as loader:
        whole = list(loader)
    with open_loader(folder, tokenizer, epochs=2, state=state) as loader:
        rest = list(loader)
    assert len(rest) == len(whole) - 8
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(rest, whole[8:], strict=True))
    # Without streaming another shard would be held out: that is not passed over.
    with pytest.raises(UsageError, match=r"held out 0\.parquet.*--streaming-data"):
        open_loader(folder, tokenizer, state=state, streaming=False)


def test_validation_of_a_stream(folder: Path, tokenizer: Tokenizer, shard: Any) -> None:
    for i in range(3):
        shard(folder / f"{i}.parquet", documents(i))
    for streaming, expected in ((True, "shard 0"), (False, "shard 2")):
        batches = list(
            validation_batches(
                folder, tokenizer, batch_size=1, sequence_len=32, tokens=99, streaming=streaming
            )
        )
        assert expected in text_of(batches, tokenizer)
