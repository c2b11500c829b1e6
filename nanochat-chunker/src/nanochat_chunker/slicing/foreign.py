"""Whether items of sources that do not see each other can stand in one document."""

from collections.abc import Iterable

from nanochat_chunker.slicing.graph import Graph
from nanochat_chunker.slicing.items import Item, flatten
from nanochat_chunker.slicing.symbols import NAMED

_DECLARE = frozenset(("prototype", "forward", "extern"))


class _File:
    """What one file gives to a document: the names it introduces, and the words in it."""

    __slots__ = ("introduces", "macros", "members", "words")

    def __init__(self) -> None:
        self.introduces: dict[str, list[int]] = {}
        self.macros: set[str] = set()
        self.words: set[str] = set()
        self.members: set[str] = set()  # words that only name members of objects


class Meeting:
    """The files of a document, and what each would make of the others' names."""

    def __init__(self, graph: Graph, path: str, level: Iterable[int]) -> None:
        """`level` are the items of a document around the file at `path`."""
        self._graph = graph
        self._seen = graph.project.context(path)
        self._ids: dict[str, list[int]] = {}  # by file
        for i in level:
            self._ids.setdefault(graph.paths[i], []).append(i)
        self._files: dict[str, _File] = {}  # those that had to be looked into

    def admits(self, came: Iterable[int], source: str) -> bool:
        """Whether items that a source needs may join the document; where they may, they do."""
        graph = self._graph
        ids: dict[str, list[int]] = {}
        for i in came:
            ids.setdefault(graph.paths[i], []).append(i)
        new = {path: _extend(_File(), graph, ids[path]) for path in ids}
        bits, every = graph.project.bit, {**self._ids, **new}
        for path, mine in new.items():
            together = self._together(path, source)
            for other in every:
                if other == path or together >> bits[other] & 1:
                    continue
                if other in self._ids:
                    theirs = self._file_at(other)
                    if self._collides(path, mine, other, theirs) or self._collides(
                        other, theirs, path, mine
                    ):
                        return False
                if other in new and self._collides(path, mine, other, new[other]):
                    return False
        for path in ids:
            self._ids.setdefault(path, []).extend(ids[path])
            if path in self._files:
                _extend(self._files[path], graph, ids[path])
        return True

    def _file_at(self, path: str) -> _File:
        """What the document has of a file."""
        found = self._files.get(path)
        if found is None:
            found = self._files[path] = _extend(_File(), self._graph, self._ids[path])
        return found

    def _together(self, path: str, source: str) -> int:
        """The files that a file meets in a translation unit anyway."""
        project, found = self._graph.project, 0
        for seen in (self._seen, project.context(source)):
            if seen >> project.bit[path] & 1:
                found |= seen
        return found

    def _collides(self, path: str, file: _File, other: str, theirs: _File) -> bool:
        """Whether words in a file would mean what another has, which it does not see."""
        project = self._graph.project
        context = project.context(path)
        if context >> project.bit[other] & 1:
            return False
        if not (theirs.macros.isdisjoint(file.words) and theirs.macros.isdisjoint(file.members)):
            return True
        both = context & project.context(other)
        return any(
            not self._same(name, i, file, context, both)
            for name in theirs.introduces.keys() & file.words
            for i in theirs.introduces[name]
        )

    def _same(self, name: str, i: int, file: _File, context: int, both: int) -> bool:
        """Whether a name of `i` means the same to a file that does not see `i`."""
        graph, item = self._graph, self._graph.items[i]
        mine = [graph.items[k] for k in file.introduces.get(name, ())]
        if item.kind == "using":
            target = item.uses[0].removeprefix("::") if item.uses else ""
            if any(other.kind == "using" and other.uses == item.uses for other in mine):
                return True
            if mine:
                return False
            seen = graph.symbols.table.get(target, ())
            return target.startswith("std::") or any(context >> graph.bits[k] & 1 for k in seen)
        if "local" in item.flags:
            return False
        if item.kind not in _DECLARE and any(
            other.kind not in _DECLARE and other.kind in NAMED for other in mine
        ):
            return False
        scope = _owner(graph, i) or graph.qualifiers[i]
        return any(
            both >> graph.bits[k] & 1 and "local" not in graph.items[k].flags
            for k in graph.symbols.table.get(f"{scope}::{name}" if scope else name, ())
        )


def _extend(file: _File, graph: Graph, ids: Iterable[int]) -> _File:
    """Adds items to what a file gives."""
    for i in ids:
        item = graph.items[i]
        if item.kind == "define":
            file.macros.update(item.names)
        elif item.kind in NAMED and not _is_member(graph, i):
            for name in item.names:
                file.introduces.setdefault(name, []).append(i)
        _words(item, file)
        for member in flatten(item.members):
            _words(member, file)
    return file


def _owner(graph: Graph, i: int) -> str:
    """The qualified class or namespace of what is defined out of line, or ''."""
    return graph.symbols.owner_of(graph.items[i]) if graph.items[i].owner else ""


def _is_member(graph: Graph, i: int) -> bool:
    owner = _owner(graph, i)
    return bool(owner) and owner not in graph.symbols.namespaces


def _words(item: Item, file: _File) -> None:
    file.words.update(item.names)
    for use in (*item.uses, *item.body_uses):
        if use[0] == ".":
            file.members.add(use[1:])
        elif "::" in use:
            file.words.update(use.removeprefix("::").split("::"))
        else:
            file.words.add(use)
