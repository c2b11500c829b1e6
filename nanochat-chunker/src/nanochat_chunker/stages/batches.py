"""The files of a project in batches, each the work of one job."""

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar


class _Sized(Protocol):
    @property
    def size(self) -> int: ...


F = TypeVar("F", bound=_Sized)


def in_batches(files: Iterable[F], most_files: int, most_bytes: int) -> Iterator[list[F]]:
    """Runs of at most so many files and bytes, in order; a larger file is one by itself."""
    batch: list[F] = []
    size = 0
    for file in files:
        if batch and (len(batch) == most_files or size + file.size > most_bytes):
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += file.size
    if batch:
        yield batch
