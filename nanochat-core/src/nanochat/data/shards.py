"""Which shards of a folder are trained on, which one validates, and waiting for more of them.

Files that end in .parquet or .jsonl are shards; hidden files and .tmp are files still being
written. They are read in order of name. The validation shard is

- `val_shard.parquet` (or .jsonl) where there is one;
- else, without streaming, the last by name, as in karpathy/nanochat;
- else, with streaming, the first by name when the run begins: the last one is not known yet.

With streaming, shards appear while training runs. The next shard of an epoch is the first by name
after the current one, so a shard whose name comes earlier is left to the next epoch. The file
`_COMPLETE` closes the folder: the epoch ends after the last shard. Writers must rename a finished
file into place; a parquet file whose end is missing is waited for while it grows.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Literal

from nanochat.data.shard_files import COLUMN, ShardFile, open_shard
from nanochat.errors import UsageError

Split = Literal["train", "val"]
Notify = Callable[[str], None]

SUFFIXES = (".parquet", ".jsonl")
COMPLETE = "_COMPLETE"
VALIDATION_STEM = "val_shard"
STALLED_SECONDS = 30.0
"""An unreadable file that has not changed for so long will not become readable."""


class Stopped(Exception):
    """The wait for a shard was called off."""


def print_notice(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


class ShardSet:
    """The shards of one split of a folder, in order. One thread uses it at a time.

    `stop`, when set, ends any wait with `Stopped`. Raises UsageError where the folder is missing or
    has no shards for the split.
    """

    def __init__(
        self,
        folder: Path | str,
        split: Split = "train",
        *,
        streaming: bool = False,
        poll_seconds: float = 1.0,
        notify: Notify = print_notice,
        stop: Event | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.split = split
        self.streaming = streaming
        self._poll_seconds = poll_seconds
        self._notify = notify
        self._stop = stop or Event()
        self._validation: str | None = None
        self._opened: tuple[str, ShardFile] | None = None
        self._awaited = ""
        self._listing = [] if streaming else self._list()
        if not self.folder.is_dir():
            raise UsageError(
                f"the data folder {self.folder} {_why_no_folder(self.folder)}",
                "Give a folder of parquet shards, or make one with nanochat-chunker",
            )
        if not streaming:
            self._check_listing()

    @property
    def validation(self) -> str:
        """The name of the validation shard. With streaming, waits for the first shard."""
        while self._validation is None:
            names = self._list() if self.streaming else self._listing
            named = [n for n in names if Path(n).stem == VALIDATION_STEM]
            if names:
                self._validation = (named or names)[0 if named or self.streaming else -1]
            elif self._is_complete():
                self._check_listing()
            else:
                self._wait(f"the first shard in {self.folder}")
        return self._validation

    def is_ready(self, after: str | None) -> bool:
        """Whether `next_after(after)` will answer at once."""
        if not self.streaming or self._is_complete():
            return True
        return bool(self._list()) and (self._pick(after) is not None or self._ends(after))

    def next_after(self, after: str | None) -> ShardFile | None:
        """The first shard of the epoch (`after` None) or the one after a name; None at its end.

        With streaming, waits for it to appear.
        """
        while True:
            # In this order: what is listed after the folder was closed is all there is.
            closed = not self.streaming or self._is_complete()
            name = self._pick(after)
            if name is not None:
                return self.open(name, closed=closed)
            if closed and after is None:
                raise self._no_training_shard()
            if closed or self._ends(after):
                return None
            last = f"after {after} " if after else ""
            self._wait(f"a shard {last}in {self.folder}, or {COMPLETE} to end the epoch")

    def open(self, name: str, *, closed: bool = True) -> ShardFile:
        """A shard by name; `closed`: all files are complete, so an unreadable one is damaged."""
        if self._opened is None or self._opened[0] != name:
            path = self.folder / name
            self._opened = (name, open_shard(path) if closed else self._open_growing(path))
        return self._opened[1]

    def files(self) -> Iterator[ShardFile]:
        """All shards of the split, once; with streaming until the folder is closed."""
        shard = self.next_after(None)
        while shard is not None:
            yield shard
            shard = self.next_after(shard.name)

    def _pick(self, after: str | None) -> str | None:
        validation = self.validation
        if self.split == "val":
            return validation if after is None else None
        for name in self._list() if self.streaming else self._listing:
            held_out = name == validation or Path(name).stem == VALIDATION_STEM
            if not held_out and (after is None or name > after):
                return name
        return None

    def _ends(self, after: str | None) -> bool:
        """Whether no shard can follow, however many appear: there is one to validate on."""
        return self.split == "val" and after is not None

    def _list(self) -> list[str]:
        if not self.folder.is_dir():
            return []
        return sorted(
            entry.name
            for entry in self.folder.iterdir()
            if entry.suffix in SUFFIXES and not entry.name.startswith(".")
        )

    def _is_complete(self) -> bool:
        return (self.folder / COMPLETE).exists()

    def _check_listing(self) -> None:
        names = self._list()
        if not names:
            others = sorted({p.suffix for p in self.folder.iterdir() if p.suffix})
            found = f" (it has {', '.join(others)} files)" if others else ""
            raise UsageError(
                f"{self.folder} has no shards: no {' or '.join(SUFFIXES)} file{found}",
                f"Write the documents as parquet with a string column {COLUMN!r}, "
                f'or as lines of {{"{COLUMN}": ...}} in a .jsonl file',
            )
        if self.split == "train" and self._pick(None) is None:
            raise self._no_training_shard()

    def _no_training_shard(self) -> UsageError:
        return UsageError(
            f"{self.folder} has no shard to train on: {self.validation} is held out for validation",
            f"Add a shard; the validation shard is {VALIDATION_STEM}.parquet or else the last one",
        )

    def _open_growing(self, path: Path) -> ShardFile:
        """Open a file that may still be written, waiting while it grows."""
        before, since = -1, time.monotonic()
        while True:
            size = path.stat().st_size if path.exists() else 0
            try:
                return open_shard(path)
            except UsageError:
                if size != before:
                    before, since = size, time.monotonic()
                elif self._is_complete() or time.monotonic() - since > STALLED_SECONDS:
                    raise
            self._wait(f"{path} to be complete")

    def _wait(self, what: str) -> None:
        """Sleep until the next poll; says what is awaited once, until something else is."""
        if what != self._awaited:
            self._notify(f"waiting for {what}")
            self._awaited = what
        if self._stop.wait(self._poll_seconds):
            raise Stopped(what)


def _why_no_folder(path: Path) -> str:
    return "is a file" if path.exists() else "does not exist"
