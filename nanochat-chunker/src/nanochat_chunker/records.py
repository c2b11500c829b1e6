"""Whole files out of JSON lines (`--inputs`), for projects that are not on disk as folders.

A line is an object that holds a file's text and, where it has the columns, its project, path,
licence and commit. What cannot be read as that is counted by reason, a line cut in half too.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from nanochat_chunker.files import Entry

# Under which names the columns go, in the data sets that there are (The Stack, GitHub code, ours).
TEXT = ("text", "content", "code", "source")
PROJECT = (
    "project", "repo", "repo_name", "repository", "repository_name", "repo_full_name",
    "max_stars_repo_name",
)  # fmt: skip
PATH = ("path", "file_path", "filepath", "file", "filename", "file_name", "max_stars_repo_path")
LICENCE = ("license", "licence", "licenses", "max_stars_repo_licenses", "detected_licenses")
COMMIT = ("commit", "commit_id", "revision_id", "revision", "max_stars_repo_head_hexsha")

RANGE_BYTES = 32 << 20  # what one item of a scan covers
# A byte of text takes at most six of JSON ("\\u0000"); the rest is for the other columns.
_WORST_ESCAPE = 6
_OTHER_COLUMNS = 1 << 20


class Record(NamedTuple):
    """One file as a line gives it."""

    text: str
    project: str | None
    path: str | None
    licence: str | None
    commit: str | None


@dataclass
class Scanned:
    """The files of a range of lines."""

    entries: list[tuple[str, Entry]] = field(default_factory=list)  # with their project
    dropped: Counter[str] = field(default_factory=Counter)
    other_files: int = 0


class Scan(NamedTuple):
    """What scanning needs to know."""

    inputs: tuple[str, ...]
    names: tuple[str, ...]  # of the projects of lines that name none
    max_file_bytes: int
    extensions: tuple[str, ...]


def ranges(inputs: Sequence[str]) -> list[tuple[int, int, int]]:
    """(input, start, stop) in bytes, to be scanned side by side."""
    found = []
    for number, path in enumerate(inputs):
        size = os.stat(path).st_size
        found += [(number, start, start + RANGE_BYTES) for start in range(0, size, RANGE_BYTES)]
    return found


def scan(payload: Scan, items: Sequence[tuple[int, int, int]]) -> Iterator[Scanned]:
    """The task over ranges: which files the lines that begin in each hold."""
    for number, start, stop in items:
        yield _scan_range(payload, number, start, stop)


def _scan_range(payload: Scan, number: int, start: int, stop: int) -> Scanned:
    found = Scanned()
    longest = _WORST_ESCAPE * payload.max_file_bytes + _OTHER_COLUMNS
    with open(payload.inputs[number], "rb") as file:
        stamp = os.fstat(file.fileno()).st_mtime_ns
        if start:
            file.seek(start - 1)
            _skip_line(file)
        while (offset := file.tell()) < stop:
            line = file.readline(longest)
            if not line:
                break
            length = len(line)
            if not line.endswith(b"\n") and length == longest:
                _skip_line(file)
                found.dropped["too_large"] += 1
                continue
            if not line.strip():
                continue
            record = parse(line)
            if isinstance(record, str):
                found.dropped[record] += 1
                continue
            path = _clean_path(record.path) or f"{offset:012d}.cc"
            if record.path is not None and PurePosixPath(path).suffix.lower() not in (
                payload.extensions
            ):
                found.other_files += 1
                continue
            size = len(record.text.encode("utf-8", "surrogatepass"))
            entry = Entry(path, size, stamp, number, offset, length)
            found.entries.append((record.project or payload.names[number], entry))
    return found


def _skip_line(file: BinaryIO) -> None:
    while piece := file.readline(1 << 20):
        if piece.endswith(b"\n"):
            return


def parse(line: bytes) -> Record | str:
    """The file in a line, or the reason why there is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return "bad_json"
    if not isinstance(value, dict):
        return "not_an_object"
    text = _first(value, TEXT)
    if text is None:
        return "no_text"
    return Record(
        text, _first(value, PROJECT), _first(value, PATH), _first(value, LICENCE),
        _first(value, COMMIT),
    )  # fmt: skip


def _first(value: dict[str, Any], names: Sequence[str]) -> str | None:
    for name in names:
        found = value.get(name)
        if isinstance(found, list):
            strings = [str(each) for each in found if isinstance(each, str) and each]
            found = " AND ".join(sorted(set(strings)))
        if isinstance(found, str) and found:
            return found
    return None


def _clean_path(path: str | None) -> str:
    """Relative, with /, without . and .. parts: it becomes part of a document."""
    parts = (path or "").replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))


def read_record(path: str, entry: Entry) -> Record | None:
    """A record again; None where the file no longer holds it."""
    file = _opened(path)
    file.seek(entry.offset)
    record = parse(file.read(entry.length))
    return record if isinstance(record, Record) else None


@lru_cache(maxsize=16)
def _opened(path: str) -> BinaryIO:
    return open(path, "rb")


def local_copies(inputs: Sequence[str], folder: Path) -> tuple[str, ...]:
    """The inputs as plain local files: those compressed or elsewhere are copied into `folder`."""
    import fsspec
    from fsspec.utils import infer_compression

    paths = []
    for number, path in enumerate(inputs):
        if "://" not in path and infer_compression(path) is None:
            paths.append(path)
            continue
        copy = folder / f"input-{number}.jsonl"
        if not copy.exists():
            partial = copy.with_suffix(".part")
            source: Any = fsspec.open(path, "rb", compression="infer")
            with source as stream, partial.open("wb") as file:
                shutil.copyfileobj(stream, file, 1 << 22)
            partial.replace(copy)
        paths.append(str(copy))
    return tuple(paths)
