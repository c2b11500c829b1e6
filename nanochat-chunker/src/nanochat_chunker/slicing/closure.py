"""The items of one document: what its roots need, what that needs, and so on."""

from collections.abc import Iterable
from dataclasses import dataclass

from nanochat_chunker.slicing.graph import Graph

DECLARED, FULL = 1, 2  # how much of an item a document holds
_OVERHEAD = 4  # characters around an item, about


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

    def __init__(self, graph: Graph, path: str, detail: Detail, limit: float) -> None:
        self.graph = graph
        self.detail = detail
        self.limit = limit
        self.path = path
        self.level: dict[int, int] = {}
        self.roots: list[int] = []
        self.size = 0  # of its text in characters, about
        self._seen = graph.project.context(path)
        self._local_types = graph.has_local_types(path)
        self._todo: list[int] = []
        self._journal: list[tuple[int, int]] = []  # items and their level before, 0: none
        self._waiting: set[int] = set()  # what comes along once all its types are there

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

    def _finish(self) -> None:
        calls: set[int] = set()  # functions that are called one step further away
        for distance in range(self.detail.depth + 1):
            for i in sorted(calls):
                self._take(i, FULL)
            calls.clear()
            while self._todo:
                self._drain(calls if distance < self.detail.depth else None)
                if self.size > self.limit:
                    self._todo.clear()
                    return
                self._wake()

    def sees(self, j: int) -> bool:
        """Whether an item is in a file that the roots' file sees."""
        return bool(self._seen >> self.graph.bits[j] & 1)

    def _wake(self) -> None:
        """Takes what waited for types that are there now."""
        for j in sorted(self._waiting):
            if j in self.level:
                self._waiting.discard(j)
            elif self._types_present(j):
                self._waiting.discard(j)
                self._take(j, self._level_of(j))

    def try_add(self, root: int, limit: float) -> bool:
        """Takes one more root in; where that is more than `limit`, stays as it was."""
        length, roots, size, waiting = len(self._journal), len(self.roots), self.size, self._waiting
        self._waiting = set(waiting)
        self.add([root])
        if self.size <= limit:
            return True
        for i, old in reversed(self._journal[length:]):
            if old:
                self.level[i] = old
            else:
                del self.level[i]
        del self._journal[length:]
        del self.roots[roots:]
        self.size, self._waiting = size, waiting
        return False

    def finished(self) -> dict[int, int]:
        """The items with the directives they stood under, in the project's order."""
        level = dict(self.level)
        self._directives(level)
        return dict(sorted(level.items()))

    def _take(self, i: int, level: int) -> None:
        old = self.level.get(i, 0)
        if old >= level:
            return
        if old:
            self.size -= self.graph.size(i, old == DECLARED) + _OVERHEAD
        self._journal.append((i, old))
        self.level[i] = level
        self.size += self.graph.size(i, level == DECLARED) + _OVERHEAD
        self._todo.append(i)

    def _drain(self, calls: set[int] | None) -> None:
        """Takes what the items taken need; what functions among them call goes to `calls`."""
        graph, items, levels = self.graph, self.graph.items, self.level
        take, level_of, todo = self._take, self._level_of, self._todo
        seen, bits = self._seen, graph.bits
        while todo and self.size <= self.limit:
            i = todo.pop()
            whole = items[i].kind == "instantiation"
            for j in self._declaration(i):
                if j not in levels or whole:
                    take(j, FULL if whole else level_of(j))
            if levels[i] == FULL:
                for j in graph.body(i):
                    if j not in levels:
                        take(j, level_of(j))
                if calls is not None and items[i].kind in ("function", "call"):
                    calls.update(j for j in graph.callees(i) if seen >> bits[j] & 1)
            for j in graph.companions(i):
                if j not in levels and seen >> bits[j] & 1:
                    if items[i].kind == "forward" or not graph.types(j):
                        take(j, level_of(j))
                    else:
                        self._waiting.add(j)

    def _declaration(self, i: int) -> Iterable[int]:
        """What the declaration of an item needs in this closure."""
        return self.graph.declaration(i)

    def _level_of(self, j: int) -> int:
        """How much of an item comes along where it is only needed."""
        item = self.graph.items[j]
        if item.kind == "function":
            # No other file can define a template for the types of an unnamed namespace.
            whole = item.needs_body or (self._local_types and "template" in item.flags)
            return FULL if whole else DECLARED
        return self.detail.classes if item.kind == "class" else FULL

    def _types_present(self, j: int) -> bool:
        return all(k in self.level for k in self.graph.types(j))

    def _directives(self, level: dict[int, int]) -> None:
        """Using-directives and #undefs that the items stood under."""
        graph, items, symbols = self.graph, self.graph.items, self.graph.symbols
        paths = {graph.paths[i] for i in level}
        own = graph.project.closure[self.path]
        present: set[str] = set()
        for i in level:
            qualifier = graph.qualifiers[i]
            while qualifier and qualifier not in present:
                present.add(qualifier)
                qualifier = qualifier.rpartition("::")[0]
        for i in graph.lookup.directives:
            scope = graph.qualifiers[i]
            name = items[i].names[0]
            if i in level:
                continue
            if not self._seen >> graph.bits[i] & 1:
                continue
            if not own >> graph.bits[i] & 1 and graph.paths[i] not in paths:
                continue
            if scope and scope not in present:
                continue
            target = graph.lookup.namespace_named(name, scope)
            if target in present or name in ("std", "::std"):
                level[i] = FULL
        for i in [i for i in level if items[i].kind == "define"]:
            for j in symbols.undefs.get(items[i].names[0], ()):
                # Those of other files come in pairs of headers, read again for each user.
                if graph.paths[j] == graph.paths[i] and j > i:
                    level[j] = FULL
