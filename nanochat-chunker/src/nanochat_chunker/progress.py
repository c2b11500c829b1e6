"""What is shown while a run goes on: nothing, or bars on a terminal."""

from types import TracebackType
from typing import Any


class Progress:
    """Shows nothing; the base of what does."""

    def reading(self, projects: int) -> None:
        """Reading begins."""

    def read(self, files: int, text_bytes: int) -> None:
        """Some files were read."""

    def packed(self, documents: int) -> None:
        """A project is done."""

    def writing(self, documents: int) -> None:
        """Writing begins."""

    def wrote(self) -> None:
        """A document was written."""

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
    """Two bars on standard error: projects read (files, MB/s, documents), documents written."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._files = self._bytes = self._documents = 0
        self._read: Any = None
        self._write: Any = None

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

    def reading(self, projects: int) -> None:
        self._read = self._bars.add_task("projects", total=projects, detail="")

    def read(self, files: int, text_bytes: int) -> None:
        self._files += files
        self._bytes += text_bytes
        self._detail()

    def packed(self, documents: int) -> None:
        self._documents += documents
        self._bars.advance(self._read)
        self._detail()

    def _detail(self) -> None:
        seconds = self._bars.tasks[self._read].elapsed or 1e-9
        self._bars.update(
            self._read,
            detail=f"{self._files:,} files, {self._bytes / 1e6 / seconds:.1f} MB/s, "
            f"{self._documents:,} documents",
        )

    def writing(self, documents: int) -> None:
        self._write = self._bars.add_task("writing", total=documents, detail="documents")

    def wrote(self) -> None:
        self._bars.advance(self._write)
