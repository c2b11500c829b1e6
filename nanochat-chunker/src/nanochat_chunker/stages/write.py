"""Step four: documents in shuffled order into shards, written as they fill, or one JSONL file.

The shuffle is over a window of documents. As soon as it is full, a shard is drawn from it at random
and written while the next documents are made; a corpus that fits into the window is shuffled as a
whole. What is held out is drawn first, so that training can begin with the first shard.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from nanochat_chunker.output import Output
from nanochat_chunker.progress import Progress
from nanochat_chunker.settings import Settings
from nanochat_chunker.spool import References, Spool
from nanochat_chunker.state import State, key_of
from nanochat_chunker.writers import Row, write_jsonl, write_parquet

_STAGE = "written"


class Writer:
    """Takes documents in their fixed order; drops those whose text came before."""

    def __init__(
        self,
        output: Output,
        settings: Settings,
        names: Sequence[str],
        spool: Spool,
        state: State,
        progress: Progress,
    ) -> None:
        self._output = output
        self._settings = settings
        self._names = names
        self._spool = spool
        self._state = state
        self._progress = progress
        self._random = random.Random(settings.seed)
        self._seen: set[bytes] = set()
        self._pending = References()
        self._thread = ThreadPoolExecutor(1, "writer")
        self._writing: Future[None] | None = None
        self._unrecorded: tuple[bytes, str] | None = None
        self._shards = 0
        self._begun = False
        self.lengths: Counter[int] = Counter()  # documents by tokens
        self.validation_lengths: Counter[int] = Counter()
        self.duplicates = 0

    def add(self, references: References) -> int:
        """Appends documents. Returns how many of them were new."""
        before = self.duplicates
        for index in range(len(references)):
            digest = references.digest(index)
            if digest in self._seen:
                self.duplicates += 1
                continue
            self._seen.add(digest)
            self.lengths[references.tokens[index]] += 1
            self._pending.take(references, index)
            if not self._settings.jsonl and len(self._pending) >= self._settings.window:
                self._overflow()
        return len(references) - (self.duplicates - before)

    def __len__(self) -> int:
        return self.lengths.total()

    def finish(self, manifest: Callable[[], None]) -> None:
        """Writes what is left, and by `manifest` the manifest when all that it says is known.

        Raises `UsageError` where nothing would be left to train on.
        """
        order = list(range(len(self._pending)))
        if self._settings.order == "shuffled":
            self._random.shuffle(order)
        if not self._begun:
            order = self._hold_out(order)
        if self._settings.jsonl:  # which is complete when it is there
            manifest()
            self._write_shard(order)
            self._wait()
            return
        size = self._settings.documents_per_shard
        for start in range(0, len(order), size):
            self._write_shard(order[start : start + size])
        self._wait()
        manifest()
        self._output.complete()

    def _overflow(self) -> None:
        """Draws a shard from a full window, and before the first one what is held out."""
        order = list(range(len(self._pending)))
        if self._settings.order == "shuffled":
            self._random.shuffle(order)
        if not self._begun:
            order = self._hold_out(order)
        size = self._settings.documents_per_shard
        self._write_shard(order[:size])
        rest = References()
        for index in sorted(order[size:]):
            rest.take(self._pending, index)
        self._pending = rest

    def _hold_out(self, order: list[int]) -> list[int]:
        """Writes the validation documents and returns the others."""
        count = self._settings.validation_count(len(order))
        chosen = list(order)
        if self._settings.order != "shuffled":
            self._random.shuffle(chosen)
        held_out = chosen[:count]
        self._begin()
        if held_out:
            for index in held_out:
                self.validation_lengths[self._pending.tokens[index]] += 1
            self._write(self._output.validation, held_out)
        gone = set(held_out)
        return [index for index in order if index not in gone]

    def _begin(self) -> None:
        """Clears what an earlier run left, unless it was this one, killed."""
        self._begun = True
        key = key_of(repr(sorted(self._settings.describe().items())))
        if not self._state.has("cleared", key):
            self._output.clear()
            self._state.put("cleared", key, True)
            self._state.commit()

    def _write_shard(self, order: Sequence[int]) -> None:
        name = self._output.jsonl or f"shard_{self._shards:05d}.parquet"
        self._shards += 1
        self._write(name, order)

    def _write(self, name: str, order: Sequence[int]) -> None:
        """Writes a file in another thread, after the one before; not if it is there already."""
        self._wait()
        chosen = References()
        for index in order:
            chosen.take(self._pending, index)
        key = key_of(name, self._settings.zstd_level, self._settings.mode, chosen.records.tobytes(),
                     [self._names[index] for index in chosen.project])  # fmt: skip
        size = self._state.get(_STAGE, key)
        if size is not None and self._output.store.size(name) == size:
            self._progress.wrote(len(chosen))
            return
        self._spool.flush()  # the thread reads what was appended
        self._writing = self._thread.submit(self._fill, name, chosen)
        self._unrecorded = (key, name)

    def _wait(self) -> None:
        if self._writing is None:
            return
        self._writing.result()
        self._writing = None
        if self._unrecorded is not None:
            key, name = self._unrecorded
            self._state.put(_STAGE, key, self._output.store.size(name))
            self._state.commit()
            self._unrecorded = None

    def _fill(self, name: str, chosen: References) -> None:
        def rows() -> Iterator[Row]:
            for index in range(len(chosen)):
                document = self._spool.read(chosen.offset[index], chosen.length[index])
                yield Row(document, self._names[chosen.project[index]], self._settings.mode)
                self._progress.wrote(1)

        def fill(path: Path) -> None:
            if self._output.jsonl:
                write_jsonl(path, rows())
            else:
                write_parquet(path, rows(), self._settings.zstd_level)

        self._output.store.write(name, fill)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown()
