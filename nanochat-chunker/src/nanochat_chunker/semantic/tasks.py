"""The task of reading units, which processes of a pool run: libclang may take one down with it."""

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from nanochat_chunker.execution import ItemError
from nanochat_chunker.files import Dropped, Project
from nanochat_chunker.semantic.facts import FileFacts
from nanochat_chunker.semantic.project import ProjectReader, SourceFile
from nanochat_chunker.semantic.units import UnitOrder
from nanochat_chunker.state import Material, read_indexes, read_value
from nanochat_chunker.survey import Reading, Survey, read_again


@dataclass(frozen=True)
class ReadOrder:
    """A project whose units are to be read. `key` stands for all of it."""

    project: Project
    reading: Reading
    key: bytes
    state: str  # the file of the state, for processes of the machine that writes it
    stage: str  # of the state, under which the project's files are stored
    material: Sequence[tuple[str, bytes]] | None = None

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ReadOrder) and self.key == other.key


class FactsRow(NamedTuple):
    """The facts of a file, pickled, and what tells how good they are."""

    path: str
    fallback: str
    errors: int
    value: bytes


def read_units(order: ReadOrder, items: Sequence[UnitOrder]) -> Iterator[list[FactsRow]]:
    """The task over units: for each the facts of the files it was asked for and reached."""
    reader = _reader(order)
    return _read(reader, items)


def forget() -> None:
    """Gives back the memory of the project that was read last."""
    _reader.cache_clear()


def _read(reader: ProjectReader, items: Sequence[UnitOrder]) -> Iterator[list[FactsRow]]:
    for unit in items:
        try:
            found = reader.read(unit)
        except OSError:
            raise ItemError("not_parsed") from None
        yield [_row(facts) for facts in found.values()]


def _row(facts: FileFacts) -> FactsRow:
    value = pickle.dumps(facts, pickle.HIGHEST_PROTOCOL)
    return FactsRow(facts.path, facts.fallback, len(facts.errors), value)


@lru_cache(maxsize=1)
def _reader(order: ReadOrder) -> ProjectReader:
    """Kept from job to job of one project."""
    rows = order.material
    if rows is None:
        stored: Material = read_value(order.state, order.stage, order.key)
        rows = list(read_indexes(order.state, stored))
    surveys: dict[str, Survey] = {}
    files: dict[str, SourceFile] = {}
    for path, value in rows:
        survey, index = pickle.loads(value)
        surveys[path] = survey
        plain = index.size == survey.size == survey.entry.size and not survey.redacted
        files[path] = SourceFile(index, plain)

    def read_text(path: str) -> str:
        text = read_again(order.reading, order.project, surveys[path])
        if isinstance(text, Dropped):
            raise ItemError(text.reason)
        return text

    return ProjectReader(order.project.root, order.project.name, files, read_text)
