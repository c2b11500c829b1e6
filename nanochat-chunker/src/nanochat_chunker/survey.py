"""The first pass over the files: what is kept of each, enough to choose, to order and to slice."""

import dataclasses
import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from nanochat_chunker.files import (
    Dropped,
    Entry,
    Project,
    SourceText,
    decode,
    digest_of,
    read_source,
)
from nanochat_chunker.includes import Include, find_includes
from nanochat_chunker.provenance.licences import HEADER_CHARACTERS, licence_in
from nanochat_chunker.provenance.origin import is_generated, is_vendored
from nanochat_chunker.records import read_record
from nanochat_chunker.redaction import Redactor


class Reading(NamedTuple):
    """How files are read, the same in each pass."""

    inputs: tuple[str, ...]  # of JSON lines
    max_file_bytes: int
    redact: tuple[str, ...] = ()


class Brief(NamedTuple):
    """What a survey is asked for."""

    reading: Reading
    project: Project
    slicing: bool  # also index the file for slicing
    near_duplicates: bool


@dataclass(frozen=True)
class Survey:
    """What the first pass keeps of a file, not its text."""

    entry: Entry
    dropped: str | None = None
    digest: bytes = b""  # of the text as read, before redaction
    encoding: str = "utf-8"
    includes: tuple[Include, ...] = ()
    size: int = 0  # bytes of the text as UTF-8
    licence: str | None = None  # by the file itself, or its record
    commit: str | None = None  # by its record
    generated: bool = False
    vendored: bool = False
    redacted: Counter[str] = field(default_factory=Counter)
    minhash: Any = None

    @property
    def path(self) -> str:
        return self.entry.path


def read(reading: Reading, project: Project, entry: Entry) -> SourceText | Dropped:
    """The text of a file or a record, as it lies there."""
    if entry.input < 0:
        return read_source(project.root / entry.path, reading.max_file_bytes)
    try:
        record = read_record(reading.inputs[entry.input], entry)
    except OSError:
        return Dropped("unreadable")
    if record is None:
        return Dropped("changed_while_reading")
    return decode(record.text.encode("utf-8", "surrogatepass"), reading.max_file_bytes)


@cache
def redactor(kinds: tuple[str, ...]) -> Redactor:
    """Made once in each process."""
    return Redactor(kinds)


def survey(brief: Brief, items: Sequence[Entry]) -> Iterator[tuple[Survey, bytes | None]]:
    """The task over entries: for each its survey and, if asked for, its index for slicing, pickled
    with the survey."""
    for entry in items:
        yield _survey(brief, entry)


def _survey(brief: Brief, entry: Entry) -> tuple[Survey, bytes | None]:
    source = read(brief.reading, brief.project, entry)
    if isinstance(source, Dropped):
        return Survey(entry, dropped=source.reason), None
    text, redacted = source.text, Counter[str]()
    if brief.reading.redact:
        text, redacted = redactor(brief.reading.redact).redact(text)
    licence = commit = None
    if entry.input >= 0:
        record = read_record(brief.reading.inputs[entry.input], entry)
        if record is not None:
            licence, commit = record.licence, record.commit
    minhash = None
    if brief.near_duplicates:
        from nanochat_chunker.neardup import signature

        minhash = signature(text)
    found = Survey(
        entry,
        digest=digest_of(source.text),
        encoding=source.encoding,
        includes=find_includes(text),
        size=len(source.text.encode()),
        licence=licence_in(text[:HEADER_CHARACTERS]) or licence,
        commit=commit,
        generated=is_generated(entry.path, text),
        vendored=is_vendored(entry.path),
        redacted=redacted,
        minhash=minhash,
    )
    index = None
    if brief.slicing:
        from nanochat_chunker.slicing import index_file

        known = dataclasses.replace(found, includes=(), minhash=None)
        index = pickle.dumps((known, index_file(entry.path, text)), pickle.HIGHEST_PROTOCOL)
    return found, index


def read_again(reading: Reading, project: Project, file: Survey) -> str | Dropped:
    """The text of a surveyed file, redacted; dropped where it is no longer the same."""
    source = read(reading, project, file.entry)
    if isinstance(source, Dropped):
        return source
    if digest_of(source.text) != file.digest:
        return Dropped("changed_while_reading")
    return redactor(reading.redact).redact(source.text)[0] if file.redacted else source.text
