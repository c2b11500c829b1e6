"""What is shown while a run goes on: nothing, or bars on a terminal."""

import threading
from types import TracebackType
from typing import Any


class Progress:
    """Shows nothing; the base of what does. Keeps the first notes on files that failed."""

    _MOST_NOTES = 5

    def __init__(self) -> None:
        self.notes: list[str] = []

    def reading(self, files: int, size: int) -> None:
        """Reading begins: so many files of so many bytes."""

    def read(self, files: int, size: int) -> None:
        """Some files were read."""

    def parsing(self, units: int) -> None:
        """libclang begins to read so many translation units."""

    def parsed(self, units: int) -> None:
        """Some of them were read, or cannot be."""

    def making(self, files: int) -> None:
        """Documents are made of so many files."""

    def made(self, files: int, documents: int) -> None:
        """Some files have become documents."""

    def wrote(self, documents: int) -> None:
        """Some documents were written. May be called from another thread."""

    def note(self, text: str) -> None:
        """A file failed in a way that its user or we should look at."""
        if len(self.notes) < self._MOST_NOTES:
            self.notes.append(text)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


class Bars(Progress):
    """Bars on standard error: files read (MB/s, time left), documents made, documents written."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        super().__init__()
        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("files, {task.fields[detail]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._lock = threading.Lock()
        self._bytes = self._documents = self._written = 0
        self._read: Any = None
        self._parse: Any = None
        self._make: Any = None

    def __enter__(self) -> "Bars":
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def reading(self, files: int, size: int) -> None:
        self._read = self._bars.add_task("reading", total=files, detail=f"{size / 1e6:,.1f} MB")

    def read(self, files: int, size: int) -> None:
        self._bytes += size
        seconds = self._bars.tasks[self._read].elapsed or 1e-9
        rate = self._bytes / 1e6 / seconds
        self._bars.update(self._read, advance=files, detail=f"{rate:.1f} MB/s")

    def parsing(self, units: int) -> None:
        if self._parse is None:
            self._parse = self._bars.add_task("libclang", total=units, detail="units")
        else:
            total = (self._bars.tasks[self._parse].total or 0) + units
            self._bars.update(self._parse, total=total)

    def parsed(self, units: int) -> None:
        self._bars.update(self._parse, advance=units)

    def making(self, files: int) -> None:
        self._make = self._bars.add_task("documents", total=files, detail="0 documents")

    def made(self, files: int, documents: int) -> None:
        with self._lock:
            self._documents += documents
            self._show(files)

    def wrote(self, documents: int) -> None:
        with self._lock:
            self._written += documents
            if self._written % 256 == 0 or self._written == self._documents:
                self._show(0)

    def _show(self, files: int) -> None:
        detail = f"{self._documents:,} documents, {self._written:,} written"
        self._bars.update(self._make, advance=files, detail=detail)
