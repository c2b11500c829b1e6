"""The second pass, the tasks that make documents: whole files packed, or slices."""

import dataclasses
import gc
import pickle
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from nanochat_chunker.documents import Document, Packer, Root
from nanochat_chunker.execution import ItemError
from nanochat_chunker.files import Dropped, Project, show_path
from nanochat_chunker.provenance.licences import LicenceFiles, both
from nanochat_chunker.state import Material as StoredMaterial
from nanochat_chunker.state import read_indexes, read_value
from nanochat_chunker.survey import Reading, Survey, read_again
from nanochat_chunker.tokens import Meter, make_meter

MATERIAL = "material"  # the stage under which a project's files for slicing are stored
FACTS = "facts"  # and what libclang says of them

Rows = Sequence[tuple[str, bytes]]  # by path


class Made(NamedTuple):
    """What came of one file."""

    documents: list[Document]
    files: int = 0  # 1 for a file that was used
    text_bytes: int = 0
    notes: Mapping[str, int] = MappingProxyType({})
    # With slices, definitions: `roots`, and by reason those that are the root of no document.
    definitions: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Order:
    """What documents to make of a project."""

    project: Project
    reading: Reading
    licences: LicenceFiles
    commit: str | None
    max_tokens: int
    tokenizer: Path | None


@dataclass(frozen=True)
class SliceOrder(Order):
    """What slices to make of a project, the material of which is stored or comes along.

    `key` stands for all of it: two orders of one key are the same.
    """

    key: bytes = b""
    state: str = ""  # the file of the state, for processes of the machine that writes it
    cross_depth: int = 3
    facts: bytes = b""  # the key of libclang's facts, where there are any
    material: Sequence[Rows] | None = None  # indexes, facts

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SliceOrder) and self.key == other.key


@cache
def meter(tokenizer: Path | None) -> Meter:
    """Loaded once in each process."""
    return make_meter(tokenizer)


def pack(order: Order, items: Sequence[Survey]) -> Iterator[Made]:
    """The task over the files of a project in their order: packed whole into documents."""
    packer = Packer(meter(order.tokenizer), order.max_tokens)
    files = {show_path(file.path): file for file in items}

    def described(documents: Iterator[Document]) -> list[Document]:
        return [describe(document, files, order) for document in documents]

    for file in items:
        notes = Counter({f"decoded_{file.encoding}": 1} if file.encoding != "utf-8" else {})
        text = read_again(order.reading, order.project, file)
        if isinstance(text, Dropped):
            # Nothing of it is in the packer, so the rest need not begin again.
            yield Made([], notes=Counter({DROPPED + text.reason: 1}))
            continue
        documents = described(packer.add(show_path(file.path), text))
        yield Made(documents, 1, file.size, notes)
    yield Made(described(packer.finish()), notes=packer.notes)


ROOTS = "roots"  # among the definitions of `Made`: those around which documents were built
DROPPED = "dropped:"  # before the reason, among the notes of `Made`


def describe(document: Document, files: Mapping[str, Survey], order: Order) -> Document:
    """The document with the origin of the files it is made of."""
    found = [files[path] for path in document.paths if path in files]
    commits = {file.commit or order.commit for file in found}
    return dataclasses.replace(
        document,
        licence=both(file.licence or order.licences.of(file.path) for file in found),
        commit=commits.pop() if len(commits) == 1 else None,
        generated=bool(found) and all(file.generated for file in found),
        vendored=bool(found) and all(file.vendored for file in found),
    )


def make_slices(order: SliceOrder, items: Sequence[str]) -> Iterator[Made]:
    """The task over paths of a project: the slices whose roots lie in each."""
    material = _material(order)
    return _slices(material, items)


def _slices(material: "_Material", items: Sequence[str]) -> Iterator[Made]:
    for path in items:
        file = material.files[path]
        left_out: Counter[str] = Counter()
        documents = [
            material.document(piece) for piece in material.slicer.slices_of(path, left_out)
        ]
        definitions = Counter(
            {ROOTS: sum(len(document.roots) for document in documents)}
            | {_plain(reason): count for reason, count in left_out.items()}
        )
        if reason := material.slicer.skipped(path):
            dropped = Counter({DROPPED + _plain(reason): 1})
            yield Made([], notes=dropped, definitions=tuple(definitions.items()))
            continue
        notes = Counter({f"decoded_{file.encoding}": 1} if file.encoding != "utf-8" else {})
        if not documents:
            notes["files_without_documents"] += 1
        notes.update(material.slicer.take_notes())
        yield Made(documents, 1, file.size, notes, tuple(definitions.items()))


def _plain(reason: str) -> str:
    """A reason as the manifest counts it; the engine names errors by their class."""
    if not reason[:1].isupper():
        return reason
    return {"MemoryError": "out_of_memory", "RecursionError": "too_deep"}.get(
        reason, "internal_error"
    )


@dataclass
class _Material:
    """A project ready to be sliced, in one process."""

    order: SliceOrder
    files: dict[str, Survey]
    shown: dict[str, Survey]
    slicer: Any
    meter: Meter
    _units: dict[str, int] = field(default_factory=dict)

    def document(self, piece: Any) -> Document:
        roots = tuple(
            Root(show_path(root.path), root.line, root.name, root.kind) for root in piece.roots
        )
        return describe(
            Document(
                piece.text,
                self.meter.tokens(self.meter.units(piece.text)),
                tuple(show_path(path) for path in piece.paths),
                roots,
                piece.rung,
            ),
            self.shown,
            self.order,
        )


def _stored(state: str, stage: str, key: bytes) -> Rows:
    stored: StoredMaterial = read_value(state, stage, key)
    return list(read_indexes(state, stored))


@lru_cache(maxsize=1)
def _material(order: SliceOrder) -> _Material:
    """Kept from job to job of one project; the one before is given up first."""
    _material.cache_clear()
    gc.collect()
    from nanochat_chunker.slicer import ProjectSlicer
    from nanochat_chunker.slicing import SliceOptions

    rows, facts = order.material or (
        _stored(order.state, MATERIAL, order.key),
        _stored(order.state, FACTS, order.facts) if order.facts else [],
    )
    files: dict[str, Survey] = {}
    indexes = []
    for path, value in rows:
        files[path], index = pickle.loads(value)
        indexes.append(index)

    def read_text(path: str) -> str:
        text = read_again(order.reading, order.project, files[path])
        if isinstance(text, Dropped):
            raise ItemError(text.reason)
        return text

    counted = meter(order.tokenizer)
    options = SliceOptions(
        budget=counted.limit(order.max_tokens),
        cross_depth=order.cross_depth,
        project=order.project.name,
    )
    if order.facts:
        from nanochat_chunker.semantic import Checker, semantic_slicer
        from nanochat_chunker.semantic.tasks import forget

        forget()
        read = {path: pickle.loads(value) for path, value in facts}
        slicer = semantic_slicer(indexes, read, read_text, options, counted.units, Checker())
    else:
        slicer = ProjectSlicer(indexes, read_text, options, counted.units)
    shown = {show_path(path): file for path, file in files.items()}
    return _Material(order, files, shown, slicer, counted)
