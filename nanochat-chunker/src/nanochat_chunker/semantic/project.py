"""A project as libclang reads it, unit by unit: any process may read any of its units."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from nanochat_chunker.includes import Include, Resolver
from nanochat_chunker.semantic.arguments import (
    CompileCommands,
    arguments_of,
    defaults_of,
    find_commands,
)
from nanochat_chunker.semantic.facts import FileFacts
from nanochat_chunker.semantic.headers import builtin_headers
from nanochat_chunker.semantic.reading import Unit, read_unit
from nanochat_chunker.semantic.units import SOURCES, UnitOrder
from nanochat_chunker.slicing.macros import Macro
from nanochat_chunker.slicing.model import FileIndex

_NAME = re.compile(r"[A-Za-z_]\w*")
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

    def read(self, order: UnitOrder) -> dict[str, FileFacts]:
        """The facts of the files that a unit is asked for and reaches."""
        arguments = arguments_of(
            order.path, self._root, self.commands, self.defaults, self._headers,
            lambda path: self._sources.get(PurePosixPath(path).stem),
        )  # fmt: skip
        texts = {path: self._text(path) for path in self._reached(order.path)}
        return read_unit(Unit(self._root, order.path, arguments), order.wanted, self._paths, texts)

    def _reached(self, path: str) -> Iterator[str]:
        """Of what a file may include, that which clang cannot read from the disk as it is."""
        reached = [path]
        seen = {path}
        for at in reached:  # grows
            if not self._files[at].plain:
                yield at
            for include in self._includes[at]:
                target = self._resolver.resolve(at, include)
                if target is not None and target not in seen:
                    seen.add(target)
                    reached.append(target)

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
