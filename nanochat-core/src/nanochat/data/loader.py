"""Batches of packed documents, prepared ahead on a thread, with a position that resumes exactly."""

from __future__ import annotations

import os
import queue
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from nanochat.data.batches import Batch, BatchMaker, LoaderStats
from nanochat.data.packing import LongDocuments
from nanochat.data.position import LoaderState, merge_states, resume_state
from nanochat.data.shards import Notify, ShardSet, Split, Stopped, print_notice
from nanochat.data.tokenizer import Tokenizer
from nanochat.errors import UsageError

__all__ = ["Batch", "LoaderStats", "TrainLoader", "merge_states", "validation_batches"]


class TrainLoader:
    """An iterator of `Batch`, prefetching `prefetch` of them on a background thread.

    `split` "train" goes on over the epochs, "val" is one pass; `epochs` says otherwise, 0 being
    without end. At the end of the data an incomplete batch is dropped. `rank` takes its turns of
    the documents among `world_size`. `streaming` takes shards as they appear (see
    `nanochat.data.shards`). `pinned` puts batches in page-locked memory. `long_documents` is "crop"
    as in karpathy/nanochat, or "split", which drops no token. Documents are packed among the next
    `buffer_size`.

    `state` goes on after a `Batch.state`, or after the `merge_states` of all ranks': with as many
    ranks as then, batches are the same as without the interruption; with another number see
    `nanochat.data.position.resume_state`.

    Raises UsageError for shards or a state that cannot be used: from the constructor, or from
    `__next__` where it shows later. A failure of the thread is raised by `__next__`. Close it, or
    use it as a context manager.
    """

    def __init__(
        self,
        data_dir: Path | str,
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        sequence_len: int,
        split: Split = "train",
        rank: int = 0,
        world_size: int = 1,
        streaming: bool = False,
        pinned: bool = False,
        state: dict[str, Any] | None = None,
        prefetch: int = 4,
        epochs: int | None = None,
        buffer_size: int = 1000,
        long_documents: LongDocuments = "crop",
        encoder_threads: int | None = None,
        poll_seconds: float = 1.0,
        notify: Notify = print_notice,
    ) -> None:
        _check_sizes(
            batch_size=batch_size,
            sequence_len=sequence_len,
            prefetch=prefetch,
            buffer_size=buffer_size,
        )
        self._stop = threading.Event()
        shards = ShardSet(
            data_dir,
            split,
            streaming=streaming,
            poll_seconds=poll_seconds,
            notify=notify if rank == 0 else _say_nothing,
            stop=self._stop,
        )
        if not streaming:
            shards.next_after(None)  # a folder that cannot be used is told now, not in the thread
        start = LoaderState(rank=rank, world_size=world_size, tokenizer=tokenizer.fingerprint)
        if state is not None:
            start, notice = resume_state(state, rank, world_size)
            if notice and rank == 0:
                notify(notice)
            _check_same(start, tokenizer, shards)
        self._stats = LoaderStats(
            start.position.epoch,
            start.counts.documents,
            start.counts.tokens,
            start.counts.dropped,
            start.skipped,
        )
        batches = BatchMaker(
            shards,
            tokenizer,
            start,
            batch_size=batch_size,
            sequence_len=sequence_len,
            epochs=epochs if epochs is not None else int(split == "val"),
            buffer_size=buffer_size,
            long_documents=long_documents,
            threads=encoder_threads or min(4, os.cpu_count() or 1),
            pinned=pinned,
        )
        self._queue: queue.Queue[_Item] = queue.Queue(prefetch)
        self._ended: BaseException | None = None
        self._thread = threading.Thread(
            target=_work,
            args=(batches, self._queue, self._stop),
            name="nanochat-loader",
            daemon=True,
        )
        # The thread does not refer to the loader, so one that is forgotten can still be collected.
        weakref.finalize(self, self._stop.set)
        self._thread.start()

    @property
    def stats(self) -> LoaderStats:
        """As of the last batch given out."""
        return self._stats

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._ended is not None:
            raise self._ended
        item = self._take()
        if isinstance(item, BaseException):
            self._ended = item
            self._thread.join()
            raise item
        batch, self._stats = item
        return batch

    def _take(self) -> _Item:
        while not self._stop.is_set():
            try:
                return self._queue.get(timeout=1.0)
            except queue.Empty:
                continue
        raise ValueError("this loader has been closed")

    def close(self) -> None:
        """Stop the thread and wait for it. Batches prepared ahead are discarded."""
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def validation_batches(
    data_dir: Path | str,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    sequence_len: int,
    tokens: int,
    rank: int = 0,
    world_size: int = 1,
    streaming: bool = False,
    pinned: bool = False,
    long_documents: LongDocuments = "crop",
    notify: Notify = print_notice,
) -> Iterator[Batch]:
    """The same batches from the start of the validation shard at each call.

    All ranks give the same number of batches, together about `tokens` tokens and at least one batch
    each, but no more than a shard of this size holds: a small one is not repeated over and over.
    Give `streaming` as to the training loader, on which the choice of the shard depends. Raises
    UsageError as `TrainLoader` does.
    """
    _check_sizes(batch_size=batch_size, sequence_len=sequence_len, tokens=tokens)
    shards = ShardSet(data_dir, "val", streaming=streaming, notify=notify)
    tokens = min(tokens, _tokens_in(shards, tokenizer))
    count = max(1, tokens // (batch_size * sequence_len * world_size))
    # A rank whose share runs out before the others' begins again, to keep in step with them.
    with TrainLoader(
        data_dir,
        tokenizer,
        batch_size=batch_size,
        sequence_len=sequence_len,
        split="val",
        rank=rank,
        world_size=world_size,
        streaming=streaming,
        pinned=pinned,
        epochs=0,
        long_documents=long_documents,
        notify=notify,
    ) as loader:
        for _ in range(count):
            yield next(loader)


_SAMPLE = 64


def _tokens_in(shards: ShardSet, tokenizer: Tokenizer) -> int:
    """About how many tokens the first shard has, judged by its size and its first documents."""
    shard = shards.next_after(None)
    assert shard is not None
    size = tokens = found = 0
    for _, texts in shard.read():
        sample = [text for text in texts if text][: _SAMPLE - found]
        found += len(sample)
        size += sum(len(text.encode("utf-8", "replace")) for text in sample)
        tokens += sum(1 + len(tokenizer.encode_array(text)) for text in sample)
        if found == _SAMPLE:
            break
    return round(shard.text_bytes() * tokens / max(size, 1))


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise UsageError(f"{name} is {value}, it must be at least 1")


def _check_same(state: LoaderState, tokenizer: Tokenizer, shards: ShardSet) -> None:
    """Raise UsageError where the state was written with another tokenizer or validation shard."""
    if state.tokenizer != tokenizer.fingerprint:
        raise UsageError(
            "the checkpoint was trained with another tokenizer than the one given",
            "Resume with the tokenizer.json of its run folder",
        )
    if state.validation and state.validation != shards.validation:
        raise UsageError(
            f"the checkpoint held out {state.validation} for validation, in {shards.folder} it "
            f"would now be {shards.validation}",
            "Put the old one back as the last shard, and give --streaming-data as before",
        )


def _say_nothing(message: str) -> None:
    """The notices of other ranks, which are the same."""


_Item = tuple[Batch, LoaderStats] | BaseException


def _work(batches: BatchMaker, out: queue.Queue[_Item], stop: threading.Event) -> None:
    """The thread: puts batches in the queue, and last of all how it ended."""
    end: BaseException = StopIteration()
    try:
        for item in batches:
            if not _put(out, item, stop):
                return
    except Stopped:
        return
    except BaseException as error:  # noqa: BLE001 (it is raised by __next__)
        end = error
    finally:
        batches.reader.close()
    _put(out, end, stop)


def _put(out: queue.Queue[_Item], item: _Item, stop: threading.Event) -> bool:
    """Wait for room in the queue; False if the loader was closed meanwhile."""
    while not stop.is_set():
        try:
            out.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False
