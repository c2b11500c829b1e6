"""The items of one document: what its roots need, what that needs, and so on."""

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar

from nanochat_chunker.slicing.bottom_up import bottom_up
from nanochat_chunker.slicing.graph import Graph
from nanochat_chunker.slicing.items import DECLARED, FULL
from nanochat_chunker.slicing.parts import Follower


@dataclass(frozen=True)
class Detail:
    """How much of what a root needs comes along: one rung of the ladder.

    `depth` is how many calls away from the root functions bring their bodies; `classes` is FULL,
    or DECLARED for classes without the bodies of their members; with `used` they have only the
    members that are named; with `includes` only the root's own file counts, the headers of the
    project are included.
    """

    name: str
    depth: int
    classes: int = FULL
    used: bool = False
    includes: bool = False


class Closure:
    """Items, each whole or only declared, that grow by roots of one file until they are enough."""

    _GROWS: ClassVar[tuple[str, ...]] = ("level", "roots", "size", "_waiting")

    def __init__(self, graph: Graph, path: str, detail: Detail, limit: float) -> None:
        self.graph = graph
        self.detail = detail
        self.limit = limit
        self.path = path
        self.level: dict[int, int] = {}
        self.roots: list[int] = []
        self.size = 0  # of its text in characters, about
        self._view = graph.view(path)
        self._local_types = graph.has_local_types(path)
        self._todo: list[int] = []
        self._waiting: dict[int, tuple[Follower, ...]] = {}  # by one of the types not yet there

    def need(self, ids: Iterable[int], *, whole: bool = False) -> None:
        """Takes in items that others need, with their bodies if `whole`, and all they need."""
        for i in ids:
            self._take(i, FULL if whole else self._level_of(i))
        self._finish()

    def add(self, roots: Iterable[int]) -> None:
        """Takes roots in, and all they need; stops where that is more than the limit."""
        for i in roots:
            self.roots.append(i)
            self._take(i, FULL)
        self._finish()

    def try_add(self, root: int, limit: float) -> bool:
        """Takes one more root in; where that is more than `limit`, stays as it was."""
        before = self.copy()
        self.add([root])
        if self.size <= limit:
            return True
        self.restore(before)
        return False

    def raise_to(self, detail: Detail) -> None:
        """Takes in what a detail has beyond the present one, which must be less."""
        before, self.detail = self.detail, detail
        if detail.classes > before.classes:
            items = self.graph.items
            for i, level in list(self.level.items()):
                if level < detail.classes and items[i].kind == "class":
                    self._take(i, detail.classes)
            self._drain()
        self._follow_calls(before.depth)

    def copy(self) -> dict[str, Any]:
        """What changes when it grows."""
        return {"_view": self._view, **{name: copy(getattr(self, name)) for name in self._GROWS}}

    def restore(self, before: dict[str, Any]) -> None:
        """Makes it again what it was at `copy`."""
        for name, value in before.items():
            setattr(self, name, value)
        self._todo.clear()

    def see(self, files: int) -> None:
        """More files are seen, and what comes along unasked from them."""
        graph, new = self.graph, files & ~self._view.seen
        if not new:
            return
        self._view = graph.view_of(self._view.seen | files)
        for i in list(self.level):
            for follower in graph.followers.get(i, ()):
                if new >> graph.bits[follower.item] & 1:
                    self._offer(follower)

    def sees(self, j: int) -> bool:
        """Whether an item is in a file that the roots' file sees."""
        return bool(self._view.seen >> self.graph.bits[j] & 1)

    def finished(self) -> dict[int, int]:
        """The items with the directives they stood under, in the order of the document."""
        level = dict(self.level)
        self._directives(level)
        return bottom_up(self.graph, {i: level[i] for i in sorted(level)})

    def _finish(self) -> None:
        self._drain()
        self._follow_calls(0)

    def _follow_calls(self, distance: int) -> None:
        """The bodies of functions that are called, one step further away each time."""
        graph, items = self.graph, self.graph.items
        while distance < self.detail.depth and self.size <= self.limit:
            distance += 1
            calls: set[int] = set()
            for i, level in self.level.items():
                if level == FULL and items[i].kind in ("function", "call"):
                    calls.update(graph.callees(i))
            for j in sorted(calls):
                if self.sees(j):
                    self._take(j, FULL)
            if not self._todo:
                return
            self._drain()

    def _take(self, i: int, level: int) -> None:
        old = self.level.get(i, 0)
        if old >= level:
            return
        if old:
            self.size -= self.graph.part(i, old == FULL).size
        self.level[i] = level
        self.size += self.graph.part(i, level == FULL).size
        self._todo.append(i)

    def _drain(self) -> None:
        """Takes what the items taken need, up to the limit."""
        levels, todo, view, waiting = self.level, self._todo, self._view, self._waiting
        offer = self._offer
        take, level_of, needs_of = self._take, self._level_of, self._needs
        while todo and self.size <= self.limit:
            i = todo.pop()
            for j in needs_of(i).difference(levels):
                take(j, level_of(j))
            if self.graph.items[i].kind == "instantiation":
                for j in needs_of(i):
                    take(j, FULL)
            for follower in (*view[i], *waiting.pop(i, ())):
                if follower.item not in levels:
                    offer(follower)
        if self.size > self.limit:
            todo.clear()

    def _offer(self, follower: Follower) -> None:
        """Takes what comes along unasked, or keeps it until one of its types is there."""
        missing = follower.types.difference(self.level)
        if missing:
            first = min(missing)
            self._waiting[first] = (*self._waiting.get(first, ()), follower)
        else:
            self._take(follower.item, self._level_of(follower.item))

    def _needs(self, i: int) -> frozenset[int]:
        """What an item needs in this closure."""
        return self.graph.part(i, self.level[i] == FULL).needs

    def _level_of(self, j: int) -> int:
        """How much of an item comes along where it is only needed."""
        level = self.graph.needed_level[j] or self.detail.classes
        if self._local_types and level == DECLARED:
            item = self.graph.items[j]
            if item.kind == "function" and "template" in item.flags:
                return FULL  # no other file can define it for the types of an unnamed namespace
        return level

    def _directives(self, level: dict[int, int]) -> None:
        """Using-directives and #undefs that the items stood under."""
        graph, items, undefs = self.graph, self.graph.items, self.graph.symbols.undefs
        paths = set(map(graph.paths.__getitem__, level))
        own, seen = graph.project.closure[self.path], self._view.seen
        present: set[str] = set()
        for qualifier in set(map(graph.qualifiers.__getitem__, level)):
            while qualifier and qualifier not in present:
                present.add(qualifier)
                qualifier = qualifier.rpartition("::")[0]
        for i in [i for i in graph.lookup.directives if seen >> graph.bits[i] & 1]:
            scope = graph.qualifiers[i]
            name = items[i].names[0]
            if i in level:
                continue
            if not own >> graph.bits[i] & 1 and graph.paths[i] not in paths:
                continue
            if scope and scope not in present:
                continue
            target = graph.lookup.namespace_named(name, scope)
            if target in present or name in ("std", "::std"):
                level[i] = FULL
        for i in [i for i in level if items[i].kind == "define"]:
            for j in undefs.get(items[i].names[0], ()):
                # Those of other files come in pairs of headers, read again for each user.
                if graph.paths[j] == graph.paths[i] and j > i:
                    level[j] = FULL
