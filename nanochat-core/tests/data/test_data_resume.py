"""A loader that goes on from a state gives what the uninterrupted one would have given."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.data.documents import DocumentReader
from nanochat.data.loader import Batch, TrainLoader, merge_states
from nanochat.data.position import LoaderState, resume_state
from nanochat.data.shards import ShardSet
from nanochat.data.tokenizer import Tokenizer
from nanochat.errors import UsageError


def open_loader(data_dir: Path, tokenizer: Tokenizer, **options: Any) -> TrainLoader:
    options = {"batch_size": 2, "sequence_len": 64, "buffer_size": 30, "prefetch": 2, **options}
    return TrainLoader(data_dir, tokenizer, **options)


def take(count: int, *args: Any, **options: Any) -> list[Batch]:
    with open_loader(*args, **options) as loader:
        return [next(loader) for _ in range(count)]


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(state))


@pytest.mark.parametrize("long_documents", ["crop", "split"])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("shape", [(1, 16), (2, 64), (3, 400)])
def test_exact_at_any_point(
    data_dir: Path,
    tokenizer: Tokenizer,
    shape: tuple[int, int],
    world_size: int,
    long_documents: str,
) -> None:
    """Cuts in all phases of several epochs; documents both shorter and longer than rows."""
    options: dict[str, Any] = {
        "batch_size": shape[0],
        "sequence_len": shape[1],
        "world_size": world_size,
        "long_documents": long_documents,
    }
    count = {1: 260, 2: 90, 3: 40}[shape[0]]
    ranks = [take(count, data_dir, tokenizer, rank=rank, **options) for rank in range(world_size)]
    for cut in (0, 1, count // 3, count // 2, count - 5):
        saved = through_json(merge_states([batches[cut].state for batches in ranks]))
        for rank, batches in enumerate(ranks):
            with open_loader(data_dir, tokenizer, rank=rank, state=saved, **options) as loader:
                assert loader.stats.tokens == batches[cut].after.counts.tokens
                for expected in batches[cut + 1 :][:12]:
                    found = next(loader)
                    assert torch.equal(found.inputs, expected.inputs)
                    assert torch.equal(found.targets, expected.targets)
                    assert found.state == expected.state
    if shape[0] == 3:
        assert ranks[0][-1].after.position.epoch >= 1


def test_one_rank_resumes_from_its_own_state(data_dir: Path, tokenizer: Tokenizer) -> None:
    batches = take(10, data_dir, tokenizer)
    (found,) = take(1, data_dir, tokenizer, state=batches[8].state)
    assert torch.equal(found.inputs, batches[9].inputs)


def test_resuming_twice_is_exact(data_dir: Path, tokenizer: Tokenizer) -> None:
    batches = take(30, data_dir, tokenizer)
    state = None
    for first in range(0, 30, 5):
        part = take(5, data_dir, tokenizer, state=state)
        state = part[-1].state
        for found, expected in zip(part, batches[first : first + 5], strict=True):
            assert torch.equal(found.inputs, expected.inputs)


def test_another_shape_goes_on_with_the_same_documents(
    data_dir: Path, tokenizer: Tokenizer
) -> None:
    state = take(6, data_dir, tokenizer, long_documents="split")[-1].state
    for options in ({"sequence_len": 8}, {"sequence_len": 500}, {"batch_size": 5}):
        batch = take(1, data_dir, tokenizer, state=state, **options)[0]
        assert batch.after.counts.tokens > state["counts"]["tokens"]


def numbered(folder: Path, shard: Callable[..., Path], shards: int, rows: int) -> Path:
    """Shards whose documents are one unmistakable word each."""
    folder.mkdir(exist_ok=True)
    for i in range(shards + 1):
        shard(folder / f"{i:03d}.parquet", [f"<{i}.{j}>" for j in range(rows)], 8)
    return folder


def words(batches: list[Batch], tokenizer: Tokenizer) -> list[str]:
    found = []
    for batch in batches:
        rows = torch.cat((batch.inputs, batch.targets[:, -1:]), dim=1).tolist()
        for row in rows:
            found += [w for w in tokenizer.decode(row).split("<|bos|>") if w]
    return found


def finish(*args: Any, **options: Any) -> tuple[list[Batch], list[str]]:
    """All batches to the end of the first epoch, and what is then left of a row."""
    with open_loader(*args, epochs=1, **options) as loader:
        batches = list(loader)
    return batches, words(batches, args[1])


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (3, 2), (4, 1)])
def test_another_number_of_ranks_loses_and_repeats_nothing(
    tmp_path: Path,
    tokenizer: Tokenizer,
    shard: Callable[..., Path],
    before: int,
    after: int,
) -> None:
    data = numbered(tmp_path / "data", shard, shards=4, rows=60)
    shape: dict[str, Any] = {
        "batch_size": 1,
        "sequence_len": 40,
        "buffer_size": 9,
        "long_documents": "split",
    }
    seen: list[str] = []
    states = []
    for rank in range(before):
        # Ranks that are not equally far, as when their documents are not equally long.
        batches = take(
            1 + 2 * rank, data, tokenizer, rank=rank, world_size=before, epochs=1, **shape
        )
        seen += words(batches, tokenizer)
        states.append(through_json(batches[-1].state))

    notices: list[str] = []
    middle = []
    for rank in range(after):
        (batch,) = take(
            1,
            data,
            tokenizer,
            rank=rank,
            world_size=after,
            epochs=1,
            state=merge_states(states),
            notify=notices.append,
            **shape,
        )
        seen += words([batch], tokenizer)
        middle.append(through_json(batch.state))
    assert len(notices) == 1
    assert f"resuming on {after} ranks what was saved on {before}" in notices[0]
    # And once more, with as many ranks, while documents taken before are still being passed over.
    for rank in range(after):
        _, found = finish(
            data, tokenizer, rank=rank, world_size=after, state=merge_states(middle), **shape
        )
        seen += found

    pieces = "".join(sorted(seen))
    everything = {f"<{i}.{j}>" for i in range(4) for j in range(60)}
    whole = [word for word in seen if word in everything]
    assert len(whole) == len(set(whole))
    assert not any(f"<4.{j}>" in pieces for j in range(60))
    # Not found whole: cut at the end of a row, or left over in the last row of a rank.
    assert len(everything - set(whole)) < 60
    assert sum(state["counts"]["tokens"] for state in middle) == 41 * (
        sum(1 + 2 * rank for rank in range(before)) + after
    )


@pytest.mark.parametrize("worlds", [(1, 2, 1), (2, 1, 3), (4, 3, 2), (3, 5, 4)])
def test_every_document_once_over_changes_of_ranks(
    tmp_path: Path, tokenizer: Tokenizer, shard: Callable[..., Path], worlds: tuple[int, ...]
) -> None:
    """Exactly, without packing: ranks stop unevenly, twice, and others go on."""
    data = numbered(tmp_path / "data", shard, shards=3, rows=50)
    seen: list[str] = []
    merged = None
    for stage, world_size in enumerate(worlds):
        states = []
        for rank in range(world_size):
            state = LoaderState(rank=rank, world_size=world_size)
            if merged is not None:
                state, _ = resume_state(merged, rank, world_size)
            reader = DocumentReader(ShardSet(data), tokenizer, state, epochs=1, threads=1)
            last = stage == len(worlds) - 1
            for document in islice(reader, None if last else 3 + 7 * rank):
                seen.append(tokenizer.decode(document.tokens.tolist()))
            reader.close()
            after = replace(
                state,
                position=reader.position,
                taken=reader.taken,
                shards=dict(reader.known_rows),
            )
            states.append(through_json(after.as_dict()))
        merged = merge_states(states)
    assert sorted(seen) == sorted(f"<{i}.{j}>" for i in range(3) for j in range(50))


def test_the_state_of_a_missing_rank(data_dir: Path, tokenizer: Tokenizer) -> None:
    options: dict[str, Any] = {"world_size": 2}
    first = take(12, data_dir, tokenizer, rank=0, **options)
    notices: list[str] = []
    found = take(
        1, data_dir, tokenizer, rank=0, state=first[10].state, notify=notices.append, **options
    )
    assert torch.equal(found[0].inputs, first[11].inputs)
    with open_loader(data_dir, tokenizer, rank=1, state=first[10].state, **options) as loader:
        assert next(loader).after.rank == 1
    take(1, data_dir, tokenizer, state=first[10].state, notify=notices.append)
    assert "has no data position of rank 1" in notices[0]


def resuming_fails(data_dir: Path, tokenizer: Tokenizer, state: dict[str, Any], says: str) -> None:
    with (
        open_loader(data_dir, tokenizer, state=state) as loader,
        pytest.raises(UsageError, match=says),
    ):
        next(loader)


def test_shards_that_changed_are_told(
    data_dir: Path, tokenizer: Tokenizer, shard: Callable[..., Path], texts_of: Any
) -> None:
    state = take(8, data_dir, tokenizer, sequence_len=128)[-1].state
    current = state["position"][1]
    assert current in state["shards"]
    (data_dir / current).rename(data_dir / "gone")
    resuming_fails(data_dir, tokenizer, state, rf"{current}.* has vanished")
    shard(data_dir / current, texts_of(41, seed=5))
    resuming_fails(data_dir, tokenizer, state, "has 41 rows, it had 40")


def test_a_changed_document_is_told(
    data_dir: Path, tokenizer: Tokenizer, shard: Callable[..., Path]
) -> None:
    state = take(1, data_dir, tokenizer)[-1].state
    shard(data_dir / "shard_00000.parquet", ["x"] * 40)
    resuming_fails(data_dir, tokenizer, state, "is not the document")


def test_another_tokenizer_or_validation_shard_is_told(
    data_dir: Path, tokenizer: Tokenizer, shard: Callable[..., Path]
) -> None:
    state = take(1, data_dir, tokenizer)[-1].state
    with pytest.raises(UsageError, match="another tokenizer"):
        open_loader(data_dir, Tokenizer.train(["other text"], 300), state=state)
    shard(data_dir / "shard_00009.parquet", ["more"])
    with pytest.raises(UsageError, match=r"held out shard_00003\.parquet.*shard_00009\.parquet"):
        open_loader(data_dir, tokenizer, state=state)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 99},
        {"position": None},
        {"buffered": [[1]]},
        {"buffered": [[77, 1, 0, 0, 3]]},
        {"counts": {"nonsense": 1}},
        {"ranks": []},
        {"ranks": [{}]},
    ],
)
def test_a_damaged_state_is_told(
    data_dir: Path, tokenizer: Tokenizer, change: dict[str, Any]
) -> None:
    state = {**take(1, data_dir, tokenizer)[-1].state, **change}
    with pytest.raises(UsageError, match="the checkpoint's data position"):
        open_loader(data_dir, tokenizer, state=state)
