"""Reading one translation unit: the facts of its own file and of headers it is asked for."""

from __future__ import annotations

import posixpath
import re
from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from ctypes import byref, c_uint, c_void_p
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat_chunker.semantic import bindings
from nanochat_chunker.semantic.bindings import CONTINUE, RECURSE, Cursor, Library, Visitor
from nanochat_chunker.semantic.facts import ELSEWHERE, Declared, FileFacts, Place
from nanochat_chunker.semantic.translation import translation_unit

# clang-c/Index.h: enum CXCursorKind
_NAMESPACE, _LINKAGE, _UNEXPOSED = 22, 23, 1
_MACRO_DEFINITION, _MACRO_EXPANSION, _INCLUSION = 501, 502, 503
_OVERLOADED, _FRIEND = 49, 603
_NAMED = frozenset((43, 45, 46, 47, 49, 50, 101, 102))  # references that stand at a name
# Calls are of constructors, conversions and operators too; then concepts, packs.
_REFERENCES = _NAMED | {103, 143, 155}
# Declarations that may come again: classes, enums, functions, variables, aliases, templates.
_DECLARED = frozenset((2, 3, 4, 5, 8, 9, 20, 21, 24, 25, 26, 30, 31, 32, 36, 604))
# Declarations within others: their own names refer to nothing.
_NAMES_SOMETHING = frozenset((*range(2, 11), *range(20, 33), 36))
_UNTARGETED = frozenset((_NAMESPACE, 27, 28, 29, 10))  # namespaces, parameters

# Errors in a file above which what was resolved in it is not worth much.
MAX_ERRORS = 20
_MISSING = re.compile(r"file not found")


@dataclass
class _Gathered:
    offsets: array[int] = field(default_factory=lambda: array("I"))
    targets: array[int] = field(default_factory=lambda: array("I"))
    places: dict[Place, int] = field(default_factory=dict)
    compiled: set[int] = field(default_factory=set)  # offsets of declarations and expressions
    declared: list[Declared] = field(default_factory=list)
    includes: list[tuple[int, str]] = field(default_factory=list)
    errors: list[int] = field(default_factory=list)
    fatal: str = ""


class Unit:
    """A translation unit: its file, and how it is compiled."""

    def __init__(self, root: Path, path: str, arguments: Sequence[str]) -> None:
        self.root = root
        self.path = path
        self.arguments = tuple(arguments)


def read_unit(
    unit: Unit, wanted: Collection[str], files: Collection[str], texts: Mapping[str, str]
) -> dict[str, FileFacts]:
    """The facts of those of `wanted` that the unit's file is or includes.

    `files` are all paths of the project, `texts` those that are not on disk as they are to be read.
    Raises `OSError` where libclang makes nothing of the unit.
    """
    return _Reader(unit, wanted, files).read(texts)


class _Reader:
    def __init__(self, unit: Unit, wanted: Collection[str], files: Collection[str]) -> None:
        self._unit = unit
        self._wanted = frozenset(wanted)
        self._files = files
        self._library: Library = bindings.load()
        self._root = str(unit.root.resolve()) + "/"
        self._paths: dict[int | None, str] = {}  # of clang's files; '' outside of the project
        self._symbols: dict[int, Place | None] = {}  # by the declaration's address
        self._gathered: dict[str, _Gathered] = defaultdict(_Gathered)
        self._file, self._offset, self._skip = c_void_p(), c_uint(), c_uint()
        self._out = (byref(self._file), byref(self._skip), byref(self._skip), byref(self._offset))

    def read(self, texts: Mapping[str, str]) -> dict[str, FileFacts]:
        unsaved = {self._root + path: text for path, text in texts.items()}
        flags = bindings.DETAILED_PREPROCESSING_RECORD | bindings.KEEP_GOING
        with translation_unit(
            self._root + self._unit.path, self._unit.arguments, unsaved, flags, only_local=True
        ) as handle:
            self._walk(handle)
            self._diagnose(handle)
            return {path: self._facts(handle, path) for path in sorted(self._seen())}

    def _seen(self) -> set[str]:
        return {path for path in self._paths.values() if path in self._wanted}

    def _path(self, file: int | None) -> str:
        found = self._paths.get(file)
        if found is None:
            name = self._library.text(self._library.clang_getFileName(file)) if file else ""
            found = _inside(self._root, name)
            if found not in self._files:
                found = ""
            self._paths[file] = found
        return found

    def _locate(self, cursor: Cursor) -> str:
        """The project's file that a cursor is in, or ''; its offset is then in `_offset`."""
        library = self._library
        library.clang_getFileLocation(library.clang_getCursorLocation(cursor), *self._out)
        return self._path(self._file.value)

    def _walk(self, handle: c_void_p) -> None:
        library = self._library
        visit, referenced = library.clang_visitChildren, library.clang_getCursorReferenced
        canonical = library.clang_getCanonicalCursor
        gathered, wanted = self._gathered, self._wanted
        locate, place, offset = self._locate, self._place, self._offset

        def note(path: str, at: int, target: Place | None) -> None:
            found = gathered[path]
            found.offsets.append(at)
            if target is None:
                found.targets.append(ELSEWHERE)
            else:
                found.targets.append(found.places.setdefault(target, len(found.places) + 1))

        def inner(cursor: Cursor, parent: Cursor, _data: Any) -> int:
            kind = cursor.kind
            if kind in _REFERENCES:
                path = locate(cursor)
                if path in wanted:
                    at = offset.value
                    gathered[path].compiled.add(at)
                    if kind == _OVERLOADED:
                        for other in self._overloads(cursor):
                            note(path, at, place(other))
                    else:
                        other = referenced(cursor)
                        if other.data[0] is not None:
                            note(path, at, place(other))
            elif kind in _NAMES_SOMETHING:
                path = locate(cursor)
                if path in wanted:
                    at = offset.value
                    first = place(canonical(cursor)) if kind in _DECLARED else None
                    # A friend, or a function declared in another, is that of the namespace. Of
                    # some friends in templates clang does not say so: names must.
                    if parent.kind != _FRIEND or first is None or first[:2] != (path, at):
                        note(path, at, first)
            return RECURSE

        def outer(cursor: Cursor, _parent: Cursor, _data: Any) -> int:
            kind = cursor.kind
            path = locate(cursor)
            if path not in wanted:
                return CONTINUE
            at = offset.value
            if kind == _MACRO_EXPANSION:
                note(path, at, place(referenced(cursor)))
            elif kind == _INCLUSION:
                target = library.clang_getIncludedFile(cursor)
                gathered[path].includes.append((at, self._path(target)))
            elif kind in (_NAMESPACE, _LINKAGE):
                return RECURSE
            elif kind != _MACRO_DEFINITION:
                gathered[path].compiled.add(at)
                if kind in _DECLARED:
                    usr = library.text(library.clang_getCursorUSR(cursor))
                    definition = bool(library.clang_isCursorDefinition(cursor))
                    gathered[path].declared.append(Declared(at, usr, definition))
                    first = place(canonical(cursor))
                    if first is not None and first[:2] != (path, at):
                        note(path, at, first)
                visit(cursor, in_declaration, None)
            return CONTINUE

        in_declaration = Visitor(inner)
        visit(library.clang_getTranslationUnitCursor(handle), Visitor(outer), None)

    def _overloads(self, cursor: Cursor) -> Iterator[Cursor]:
        """What a name in a template may mean. Of an operator that would be all there are."""
        library = self._library
        if library.text(library.clang_getCursorSpelling(cursor)).startswith("operator"):
            return
        for number in range(library.clang_getNumOverloadedDecls(cursor)):
            yield library.clang_getOverloadedDecl(cursor, number)

    def _place(self, cursor: Cursor) -> Place | None:
        """Where a declaration of the project names itself."""
        address = cursor.data[0]
        if cursor.kind in _UNTARGETED or address is None:
            return None
        if address not in self._symbols:
            path, at = self._locate(cursor), self._offset.value
            usr = ""
            if path and cursor.kind in _DECLARED:
                usr = self._library.text(self._library.clang_getCursorUSR(cursor))
            self._symbols[address] = Place(path, at, usr) if path else None
        return self._symbols[address]

    def _diagnose(self, handle: c_void_p) -> None:
        library = self._library
        for number in range(library.clang_getNumDiagnostics(handle)):
            diagnostic = library.clang_getDiagnostic(handle, number)
            severity = library.clang_getDiagnosticSeverity(diagnostic)
            if severity >= bindings.ERROR:
                library.clang_getFileLocation(
                    library.clang_getDiagnosticLocation(diagnostic), *self._out
                )
                path = self._path(self._file.value)
                if path in self._wanted:
                    found = self._gathered[path]
                    found.errors.append(self._offset.value)
                    said = library.text(library.clang_getDiagnosticSpelling(diagnostic))
                    if severity == bindings.FATAL or _MISSING.search(said):
                        missing = _MISSING.search(said) is not None
                        found.fatal = "missing_header" if missing else "fatal_error"
            library.clang_disposeDiagnostic(diagnostic)

    def _facts(self, handle: c_void_p, path: str) -> FileFacts:
        found = self._gathered[path]
        order = sorted(range(len(found.offsets)), key=found.offsets.__getitem__)
        fallback = found.fatal
        if not fallback and len(set(found.errors)) > MAX_ERRORS:
            fallback = "too_many_errors"
        return FileFacts(
            path,
            array("I", (found.offsets[n] for n in order)),
            array("I", (found.targets[n] for n in order)),
            tuple(found.places),
            tuple(found.declared),
            self._skipped(handle, path, sorted(found.compiled)),
            tuple(found.includes),
            tuple(sorted(set(found.errors))),
            fallback,
        )

    def _skipped(
        self, handle: c_void_p, path: str, compiled: Sequence[int]
    ) -> tuple[tuple[int, int], ...]:
        """What no inclusion of a file compiles: a second one skips all of it by its guard."""
        library = self._library
        name = (self._root + path).encode("utf-8", "surrogateescape")
        ranges = library.clang_getSkippedRanges(handle, library.clang_getFile(handle, name))
        skipped = set()
        for number in range(ranges.contents.count):
            ends = []
            for end in (library.clang_getRangeStart, library.clang_getRangeEnd):
                library.clang_getFileLocation(end(ranges.contents.ranges[number]), *self._out)
                ends.append(self._offset.value)
            skipped.add((ends[0], ends[1]))
        library.clang_disposeSourceRangeList(ranges)
        return tuple(sorted(span for span in skipped if not _any_within(compiled, span)))


def _any_within(places: Sequence[int], span: tuple[int, int]) -> bool:
    at = bisect_right(places, span[0])
    return at < len(places) and places[at] < span[1]


def _inside(root: str, name: str) -> str:
    """The path of a file relative to the root, or '' outside of it."""
    path = posixpath.normpath(name)
    return path[len(root) :] if path.startswith(root) else ""
