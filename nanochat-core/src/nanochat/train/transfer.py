"""What an upload is made of: files read in blocks, jobs side by side, a count of what is sent."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

BLOCK = 16 * 2**20
"""Bytes of one write. Object stores send each as a request of its own."""


class Cancelled(Exception):
    """The transfer was given up for a newer checkpoint or at the end of the run."""


class Transfer:
    """How far an upload is, for those who watch it from another thread."""

    def __init__(self, total: int = 0) -> None:
        self.total = total
        self.sent = 0
        self.started = self.moved = time.monotonic()
        self._lock = threading.Lock()
        self._cancelled = threading.Event()

    def count(self, sent: int) -> None:
        """Some bytes are away. Raises Cancelled if the rest is not wanted."""
        with self._lock:
            self.sent += sent
            self.moved = time.monotonic()
        self.check()

    def begin(self) -> None:
        """Count from the start again, for another try."""
        self.sent = 0
        self.started = self.moved = time.monotonic()

    def check(self) -> None:
        """Raise Cancelled if the rest is not wanted."""
        if self._cancelled.is_set():
            raise Cancelled

    def cancel(self) -> None:
        """End it at its next block."""
        self._cancelled.set()

    @property
    def rate(self) -> float | None:
        """Bytes a second so far; None while that says nothing."""
        seconds = time.monotonic() - self.started
        return self.sent / seconds if self.sent and seconds > 0 else None


class Source:
    """A file that stays readable, from several threads, when its name is deleted meanwhile."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._file = path.open("rb")
        self._lock = threading.Lock()
        self.size = self._file.seek(0, 2)

    def read(self, offset: int, size: int) -> bytes:
        with self._lock:
            self._file.seek(offset)
            return self._file.read(size)

    def digest(self, transfer: Transfer) -> str:
        """Its SHA-256."""
        found = hashlib.sha256()
        for offset in range(0, self.size, BLOCK):
            found.update(self.read(offset, BLOCK))
            transfer.check()
        return found.hexdigest()

    def close(self) -> None:
        self._file.close()


class Opened:
    """The files of a checkpoint, held open: they may be moved or deleted while they are sent."""

    def __init__(self, step: int, folder: Path, without: str) -> None:
        self.step = step
        names = sorted(p for p in folder.iterdir() if p.is_file() and p.name != without)
        self.sources = [Source(path) for path in names]
        self.size = sum(source.size for source in self.sources)

    def close(self) -> None:
        for source in self.sources:
            source.close()


def digest_of(path: Path) -> str:
    """The SHA-256 of a file."""
    source = Source(path)
    try:
        return source.digest(Transfer())
    finally:
        source.close()


def send(
    filesystem: Any, source: Source, target: str, transfer: Transfer, start: int, size: int
) -> None:
    """Write a part of a source to a path of a file system; nothing is left there if it fails."""
    out = filesystem.open(target, "wb", block_size=BLOCK)
    try:
        whole, rest = divmod(size, BLOCK)
        for offset in range(start, start + whole * BLOCK, BLOCK):
            out.write(source.read(offset, BLOCK))
            transfer.count(BLOCK)
        out.write(source.read(start + whole * BLOCK, rest))
        out.close()
    except BaseException:
        _discard(out)
        raise
    transfer.count(rest)  # only now is what was less than a block away


def _discard(out: Any) -> None:
    """Leave a file as if it had not been written to, as far as its file system can."""
    from fsspec.spec import AbstractBufferedFile

    with suppress(Exception):
        out.discard()
    if isinstance(out, AbstractBufferedFile):
        out.closed = True  # closing would commit the part that was written
    else:
        out.close()


def side_by_side(jobs: Sequence[Callable[[], None]], workers: int) -> None:
    """Run jobs on some threads; the first failure ends what has not begun, and is raised.

    The threads are daemons, which a pool's are not: an upload that hangs must not keep a process
    from its end.
    """
    left = list(reversed(jobs))
    failures: list[BaseException] = []
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                if failures or not left:
                    return
                job = left.pop()
            try:
                job()
            except BaseException as error:  # told by whoever called
                failures.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(workers, len(jobs)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
