"""Batches: what is in them, who gets what, how failures arrive, how it ends."""

from __future__ import annotations

import gc
import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.data.documents import DocumentReader
from nanochat.data.loader import Batch, TrainLoader, validation_batches
from nanochat.data.position import LoaderState
from nanochat.data.shards import ShardSet
from nanochat.data.tokenizer import Tokenizer
from nanochat.errors import UsageError


def open_loader(data_dir: Path, tokenizer: Tokenizer, **options: Any) -> TrainLoader:
    options = {"batch_size": 2, "sequence_len": 32, "buffer_size": 20, **options}
    return TrainLoader(data_dir, tokenizer, **options)


def documents_in(batch: Batch, tokenizer: Tokenizer) -> list[str]:
    """The texts of a batch's rows, cut at BOS."""
    rows = torch.cat((batch.inputs, batch.targets[:, -1:]), dim=1).tolist()
    return [piece for row in rows for piece in tokenizer.decode(row).split("<|bos|>") if piece]


def loader_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("nanochat-")]


def test_shapes_and_shift(data_dir: Path, tokenizer: Tokenizer) -> None:
    with open_loader(data_dir, tokenizer, batch_size=3, sequence_len=17) as loader:
        for _ in range(5):
            inputs, targets = (batch := next(loader)).inputs, batch.targets
            for tensor in (inputs, targets):
                assert tensor.shape == (3, 17)
                assert tensor.dtype == torch.int64
                assert tensor.is_contiguous()
            assert (inputs[:, 0] == tokenizer.bos_id).all()
            assert (inputs[:, 1:] == targets[:, :-1]).all()


@pytest.mark.parametrize("world_size", [1, 3, 8])
@pytest.mark.parametrize("group", [1, 16, 1024])
def test_ranks_share_out_the_documents(
    tmp_path: Path,
    tokenizer: Tokenizer,
    shard: Callable[..., Path],
    world_size: int,
    group: int,
) -> None:
    """Also those of shards with one row group, and of row groups with one row."""
    for i in range(3):
        texts = [f"doc {i}.{j}" if j % 7 else None for j in range(50)]
        shard(tmp_path / f"{i}.parquet", texts, group)
    seen: Counter[str] = Counter()
    for rank in range(world_size):
        state = LoaderState(rank=rank, world_size=world_size)
        reader = DocumentReader(ShardSet(tmp_path), tokenizer, state, epochs=1, threads=2)
        texts = [tokenizer.decode(document.tokens.tolist()) for document in reader]
        reader.close()
        assert texts == sorted(texts, key=lambda t: [int(n) for n in t[4:].split(".")])
        assert len(texts) >= 80 // world_size - 6
        seen.update(texts)
    assert seen == Counter(f"doc {i}.{j}" for i in range(2) for j in range(50) if j % 7)


def test_train_goes_on_over_epochs_and_counts(data_dir: Path, tokenizer: Tokenizer) -> None:
    with open_loader(data_dir, tokenizer, sequence_len=256) as loader:
        batches = 0
        while loader.stats.epoch < 2:
            next(loader)
            batches += 1
        assert loader.stats.tokens == batches * 2 * 257
        assert loader.stats.dropped > 0
        assert loader.stats.documents > 114
        assert loader.stats.skipped >= 2 * 3 * 2


def test_split_drops_nothing_in_the_middle(data_dir: Path, tokenizer: Tokenizer) -> None:
    with open_loader(data_dir, tokenizer, long_documents="split") as loader:
        for _ in range(100):
            next(loader)
        assert loader.stats.dropped == 0


def test_the_validation_split_ends(data_dir: Path, tokenizer: Tokenizer) -> None:
    with open_loader(data_dir, tokenizer, split="val") as loader:
        texts = [text for batch in loader for text in documents_in(batch, tokenizer)]
        assert any(text.startswith("// document 3.") for text in texts)
        assert not any(f"document {i}." in text for text in texts for i in range(3))
        with pytest.raises(StopIteration):
            next(loader)
        with pytest.raises(StopIteration):
            next(loader)


def test_the_same_batches_however_they_are_prepared(data_dir: Path, tokenizer: Tokenizer) -> None:
    found = []
    for options in ({"encoder_threads": 1, "prefetch": 1}, {"encoder_threads": 5, "prefetch": 9}):
        with open_loader(data_dir, tokenizer, **options) as loader:
            found.append([next(loader) for _ in range(60)])
    for one, two in zip(*found, strict=True):
        assert torch.equal(one.inputs, two.inputs)
        assert torch.equal(one.targets, two.targets)
        assert one.state == two.state


def test_a_batch_stays_as_it_is(data_dir: Path, tokenizer: Tokenizer) -> None:
    with open_loader(data_dir, tokenizer) as loader:
        first = next(loader)
        kept = first.inputs.clone()
        for _ in range(30):
            next(loader)
        assert torch.equal(first.inputs, kept)


def test_the_state_is_small(tmp_path: Path, tokenizer: Tokenizer, shard: Any) -> None:
    shard(tmp_path / "a.parquet", [f"{i} " * (i % 50 + 1) for i in range(50_000)])
    shard(tmp_path / "b.parquet", ["held out"])
    for long_documents in ("crop", "split"):
        with TrainLoader(
            tmp_path, tokenizer, batch_size=4, sequence_len=64, long_documents=long_documents
        ) as loader:
            for _ in range(50):
                batch = next(loader)
            state = json.dumps(batch.state)
        assert len(state) < 50_000
        assert json.loads(state) == batch.state


def test_bad_shards_are_told_at_once_or_when_reached(data_dir: Path, tokenizer: Tokenizer) -> None:
    (data_dir / "shard_00001.parquet").write_bytes(b"junk")
    with open_loader(data_dir, tokenizer) as loader:
        with pytest.raises(UsageError, match=r"shard_00001\.parquet cannot be read"):
            list(loader)
        with pytest.raises(UsageError, match=r"shard_00001\.parquet cannot be read"):
            next(loader)
    (data_dir / "shard_00000.parquet").write_bytes(b"junk")
    with pytest.raises(UsageError, match=r"shard_00000\.parquet cannot be read"):
        open_loader(data_dir, tokenizer)
    assert not loader_threads()


def test_a_failure_in_a_thread_arrives_as_it_was(
    data_dir: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def encode(self: Tokenizer, text: str) -> Any:
        nonlocal calls
        calls += 1
        if calls > 50:
            raise MemoryError("no room for this one")
        return original(self, text)

    original = Tokenizer.encode_array
    monkeypatch.setattr(Tokenizer, "encode_array", encode)
    loader = open_loader(data_dir, tokenizer)
    with pytest.raises(MemoryError, match="no room for this one"):
        list(loader)
    loader.close()
    assert not loader_threads()


def test_no_documents_for_a_rank(
    tmp_path: Path, tokenizer: Tokenizer, shard: Callable[..., Path]
) -> None:
    shard(tmp_path / "a.parquet", [None, "", None])
    shard(tmp_path / "b.parquet", ["held out"])
    with (
        open_loader(tmp_path, tokenizer) as loader,
        pytest.raises(UsageError, match="have no documents: all texts are null or empty"),
    ):
        next(loader)
    shard(tmp_path / "a.parquet", ["one", "two"])
    # Two documents for three ranks.
    told = [first_of(tmp_path, tokenizer, rank=rank, world_size=3) for rank in range(3)]
    assert sum("have no documents for rank" in error for error in told) == 1


def first_of(data_dir: Path, tokenizer: Tokenizer, **options: Any) -> str:
    """What is raised instead of the first batch, or nothing."""
    with open_loader(data_dir, tokenizer, **options) as loader:
        try:
            next(loader)
        except UsageError as error:
            return str(error)
    return ""


def test_closing_ends_the_threads(data_dir: Path, tokenizer: Tokenizer) -> None:
    loader = open_loader(data_dir, tokenizer)
    next(loader)
    assert loader_threads()
    loader.close()
    loader.close()
    assert not loader_threads()
    with pytest.raises(ValueError, match="closed"):
        next(loader)


def test_a_forgotten_loader_ends_its_threads(data_dir: Path, tokenizer: Tokenizer) -> None:
    loader = open_loader(data_dir, tokenizer)
    next(loader)
    threads = loader_threads()
    del loader
    gc.collect()
    for thread in threads:
        thread.join(timeout=10)
    assert not loader_threads()


@pytest.mark.parametrize("name", ["batch_size", "sequence_len", "prefetch", "buffer_size"])
def test_sizes_are_checked(data_dir: Path, tokenizer: Tokenizer, name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is 0"):
        open_loader(data_dir, tokenizer, **{name: 0})


def validate(data_dir: Path, tokenizer: Tokenizer, **options: Any) -> list[Batch]:
    options = {"batch_size": 2, "sequence_len": 16, "tokens": 400, **options}
    return list(validation_batches(data_dir, tokenizer, **options))


def test_validation_is_the_same_each_time(data_dir: Path, tokenizer: Tokenizer) -> None:
    one, two = validate(data_dir, tokenizer), validate(data_dir, tokenizer)
    assert len(one) == len(two) == 400 // 32
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(one, two, strict=True))
    assert any("document 3." in text for b in one for text in documents_in(b, tokenizer))
    assert not loader_threads()


def test_ranks_validate_in_step_on_different_documents(
    data_dir: Path, tokenizer: Tokenizer
) -> None:
    ranks = [validate(data_dir, tokenizer, rank=r, world_size=2) for r in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == 400 // 64
    begun = [
        {
            name
            for batch in batches
            for text in documents_in(batch, tokenizer)
            for name in re.findall(r"document 3\.\d+(?=\n)", text)
        }
        for batches in ranks
    ]
    assert min(map(len, begun)) > 2
    assert not begun[0] & begun[1]


def test_a_small_validation_shard_is_not_gone_over_again_and_again(
    data_dir: Path, tokenizer: Tokenizer, shard: Callable[..., Path], texts_of: Any
) -> None:
    texts = texts_of(30, seed=9)
    shard(data_dir / "val_shard.parquet", texts)
    held = sum(1 + len(tokenizer.encode(text)) for text in texts)
    batches = validate(data_dir, tokenizer, tokens=10**9)
    assert 0.8 * held < len(batches) * 32 < 1.3 * held
    # One batch at least, even of a shard that does not fill it.
    shard(data_dir / "val_shard.parquet", ["only few words"])
    assert len(validate(data_dir, tokenizer, batch_size=8, tokens=10**9)) == 1


def test_a_validation_that_is_given_up_ends_its_threads(
    data_dir: Path, tokenizer: Tokenizer
) -> None:
    batches = validation_batches(data_dir, tokenizer, batch_size=1, sequence_len=8, tokens=999)
    next(batches)
    del batches
    gc.collect()
    assert not loader_threads()
