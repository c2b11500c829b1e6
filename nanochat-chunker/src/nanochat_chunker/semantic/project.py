"""A project as libclang reads it, unit by unit: any process may read any of its units."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from nanochat_chunker.includes import Include, Resolver
from nanochat_chunker.semantic import bindings
from nanochat_chunker.semantic.arguments import (
    CompileCommands,
    arguments_of,
    defaults_of,
    find_commands,
    flags_of_headers,
)
from nanochat_chunker.semantic.facts import FileFacts
from nanochat_chunker.semantic.headers import builtin_headers
from nanochat_chunker.semantic.reading import Unit, read_unit
from nanochat_chunker.semantic.translation import Precompiled
from nanochat_chunker.semantic.units import SOURCES, UnitOrder
from nanochat_chunker.slicing.configuration import STANDARD_HEADERS
from nanochat_chunker.slicing.macros import Macro
from nanochat_chunker.slicing.model import FileIndex

_NAME = re.compile(r"[A-Za-z_]\w*")
_CPP = tuple(suffix for suffix in SOURCES if suffix != ".c")
_MANY = 12  # units from which reading their common headers first saves time
_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]")


class SourceFile(NamedTuple):
    """A file of the project. `plain`: what is on disk is its text, and that is ASCII."""

    index: FileIndex
    plain: bool


class ProjectReader:
    """Reads units of one project with libclang."""

    def __init__(
        self,
        root: Path,
        name: str,
        files: Mapping[str, SourceFile],
        read_text: Callable[[str], str],
    ) -> None:
        self._root = root.resolve()
        self._files = files
        self._read_text = read_text
        self._paths = frozenset(files)
        self._includes = {path: _includes(file.index) for path, file in files.items()}
        self._resolver = Resolver(sorted(files), name)
        self._headers = builtin_headers()
        self.commands: CompileCommands = find_commands(self._root, self._paths)
        indexes = [file.index for file in files.values()]
        self.defaults = defaults_of(self._includes, _asked(indexes), _defined(indexes), name)
        self._sources = {
            PurePosixPath(path).stem: path
            for path in sorted(files, reverse=True)
            if path.lower().endswith(SOURCES)
        }
        self._masked: dict[str, str] = {}
        self._reached_by: dict[str, tuple[str, ...]] = {}
        self._precompiled: dict[tuple[str, ...], Precompiled] = {}

    @cached_property
    def _common(self) -> frozenset[str]:
        """The standard headers that are worth reading once for all units that include them."""
        own = {path.rpartition("/")[2] for path in self._paths}
        units = [self._standard(path) for path in self._paths if path.lower().endswith(_CPP)]
        counts = Counter(header for headers in units for header in headers if header not in own)
        best: frozenset[str] = frozenset()
        most = 0
        for share in (0.3, 0.5, 0.7, 0.9):
            headers = frozenset(name for name, n in counts.items() if n >= share * len(units))
            users = sum(headers <= unit for unit in units)
            if users >= _MANY and users * len(headers) > most:
                best, most = headers, users * len(headers)
        return best

    def read(self, order: UnitOrder) -> dict[str, FileFacts]:
        """The facts of the files that a unit is asked for and reaches."""
        arguments = arguments_of(
            order.path, self._root, self.commands, self.defaults, self._headers,
            lambda path: self._sources.get(PurePosixPath(path).stem),
        )  # fmt: skip
        texts = {
            path: self._text(path)
            for path in self._reached(order.path)
            if not self._files[path].plain  # clang reads the others from the disk
        }
        arguments += self._precompiled_for(order.path, arguments)
        return read_unit(Unit(self._root, order.path, arguments), order.wanted, self._paths, texts)

    def _precompiled_for(self, path: str, arguments: Sequence[str]) -> tuple[str, ...]:
        """The arguments for the common headers, of a unit that includes all of them itself."""
        if (
            arguments[arguments.index("-x") + 1] != "c++"
            or not self._common
            or not self._common <= self._standard(path)
        ):
            return ()
        kept = flags_of_headers(arguments)
        if kept is None:
            return ()
        if kept not in self._precompiled:
            flags = bindings.DETAILED_PREPROCESSING_RECORD | bindings.SKIP_FUNCTION_BODIES
            self._precompiled[kept] = Precompiled(sorted(self._common), kept, flags)
        return self._precompiled[kept].arguments

    def _standard(self, path: str) -> frozenset[str]:
        """The standard headers that a unit includes."""
        return frozenset(
            include.target
            for at in self._reached(path)
            for include in self._includes[at]
            if include.target in STANDARD_HEADERS and self._resolver.resolve(at, include) is None
        )

    def _reached(self, path: str) -> tuple[str, ...]:
        """The files that a unit may read."""
        found = self._reached_by.get(path)
        if found is None:
            reached = [path]
            seen = {path}
            for at in reached:  # grows
                for include in self._includes[at]:
                    target = self._resolver.resolve(at, include)
                    if target is not None and target not in seen:
                        seen.add(target)
                        reached.append(target)
            found = self._reached_by[path] = tuple(reached)
        return found

    def _text(self, path: str) -> str:
        """A text in which every character is one byte, so that clang's offsets are ours.

        What is not ASCII stands in comments and literals, where it makes no difference.
        """
        if path not in self._masked:
            self._masked[path] = _BEYOND_ASCII.sub("_", self._read_text(path))
        return self._masked[path]


def _includes(index: FileIndex) -> tuple[Include, ...]:
    """Of the configuration, and the quoted ones that it leaves out: clang may decide otherwise."""
    taken = [
        Include(str(event.value), event.extra) for event in index.events if event.kind == "include"
    ]
    return (*taken, *(Include(target, False) for target in index.off))


def _asked(indexes: Iterable[FileIndex]) -> Iterator[str]:
    """The names in conditions."""
    for index in indexes:
        for event in index.events:
            if event.kind == "if":
                yield from _NAME.findall(str(event.value))


def _defined(indexes: Iterable[FileIndex]) -> frozenset[str]:
    return frozenset(
        event.value.name
        for index in indexes
        for event in index.events
        if isinstance(event.value, Macro)
    )
