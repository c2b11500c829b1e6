"""The items of one document: what its roots need, what that needs, and so on."""

from collections.abc import Iterable
from dataclasses import dataclass

from nanochat_chunker.slicing.graph import Graph

FULL, DECLARED = "full", "declared"
_OVERHEAD = 4  # characters around an item, about


@dataclass(frozen=True)
class Detail:
    """How much of what a root needs comes along: one rung of the ladder."""

    name: str
    depth: int  # calls away from the root up to which functions bring their bodies
    classes: str  # full, declared (members without bodies)


class Closure:
    """Items, each whole or only declared, that grow by roots of one file until they are enough."""

    def __init__(self, graph: Graph, path: str, detail: Detail, limit: float) -> None:
        self.graph = graph
        self.detail = detail
        self.limit = limit
        self.path = path
        self.level: dict[int, str] = {}
        self.roots: list[int] = []
        self.size = 0  # of its text in characters, about
        self._seen = graph.context(path)
        self._todo: list[tuple[int, int]] = []  # item, calls away from the root
        self._journal: list[tuple[int, str | None]] = []  # items and their level before
        self._waiting: set[int] = set()  # what comes along once all its types are there

    def add(self, roots: Iterable[int]) -> None:
        """Takes roots in, and all they need; stops where that is more than the limit."""
        for i in roots:
            self.roots.append(i)
            self._take(i, FULL, 0)
        while self._todo:
            self._drain()
            if self.size > self.limit:
                self._todo.clear()
                return
            for j in sorted(self._waiting):
                if j in self.level:
                    self._waiting.discard(j)
                elif self._types_present(j):
                    self._waiting.discard(j)
                    self._need(j, 0)

    def need(self, ids: Iterable[int], *, whole: bool = False) -> None:
        """Takes in what the roots turn out to need beside what the graph knows."""
        for j in ids:
            if whole:
                self._take(j, FULL, 0)
            else:
                self._need(j, 0)
        self.add(())

    def sees(self, j: int) -> bool:
        """Whether an item is in a file that the roots' file sees."""
        return bool(self._seen >> self.graph.bits[j] & 1)

    def save(self) -> tuple[int, int, int, frozenset[int]]:
        """A mark to which `restore` goes back."""
        return len(self._journal), len(self.roots), self.size, frozenset(self._waiting)

    def restore(self, saved: tuple[int, int, int, frozenset[int]]) -> None:
        """Forgets what was added since `save`."""
        length, roots, self.size, waiting = saved
        for i, old in reversed(self._journal[length:]):
            if old is None:
                del self.level[i]
            else:
                self.level[i] = old
        del self._journal[length:]
        del self.roots[roots:]
        self._waiting = set(waiting)

    def finished(self) -> dict[int, str]:
        """The items with the directives they stood under, in the project's order."""
        level = dict(self.level)
        self._directives(level)
        return dict(sorted(level.items()))

    def _take(self, i: int, level: str, distance: int) -> None:
        old = self.level.get(i)
        if old in (FULL, level):
            return
        if old is not None:
            self.size -= self.graph.size(i, old) + _OVERHEAD
        self._journal.append((i, old))
        self.level[i] = level
        self.size += self.graph.size(i, level) + _OVERHEAD
        self._todo.append((i, distance))

    def _drain(self) -> None:
        graph, items, levels = self.graph, self.graph.items, self.level
        while self._todo and self.size <= self.limit:
            i, distance = self._todo.pop()
            for j in graph.declaration(i):
                if j not in levels:
                    self._need(j, distance)
            if levels[i] == FULL:
                calls = distance < self.detail.depth and items[i].kind in ("function", "call")
                for j in graph.body(i):
                    if j not in levels:
                        self._need(j, distance)
                    if calls:
                        self._bring(j, distance + 1)
            for j in graph.companions(i):
                if j not in levels and self._seen >> graph.bits[j] & 1:
                    if items[i].kind == "forward" or not graph.types(j):
                        self._need(j, distance)
                    else:
                        self._waiting.add(j)

    def _need(self, j: int, distance: int) -> None:
        item = self.graph.items[j]
        if item.kind == "function":
            level = FULL if item.needs_body else DECLARED
        elif item.kind == "class":
            level = FULL if self.detail.classes == "full" else DECLARED
        else:
            level = FULL
        self._take(j, level, distance)

    def _bring(self, j: int, distance: int) -> None:
        """The body of a function that is called."""
        item = self.graph.items[j]
        if item.kind == "function":
            self._take(j, FULL, distance)
        elif item.kind == "prototype":
            for k in self.graph.bodies(j):
                if self._seen >> self.graph.bits[k] & 1:
                    self._take(k, FULL, distance)

    def _types_present(self, j: int) -> bool:
        return all(k in self.level for k in self.graph.types(j))

    def _directives(self, level: dict[int, str]) -> None:
        """Using-directives and #undefs that the items stood under."""
        graph, items, symbols = self.graph, self.graph.items, self.graph.symbols
        paths = {graph.paths[i] for i in level}
        present: set[str] = set()
        for i in level:
            qualifier = graph.qualifiers[i]
            while qualifier and qualifier not in present:
                present.add(qualifier)
                qualifier = qualifier.rpartition("::")[0]
        for i in graph.directives:
            scope = graph.qualifiers[i]
            name = items[i].names[0]
            if i in level:
                continue
            target = graph.namespace_named(name, scope)
            if graph.paths[i] not in paths or not self._seen >> graph.bits[i] & 1:
                continue
            if scope and scope not in present:
                continue
            if target in present or name in ("std", "::std"):
                level[i] = FULL
        for i in [i for i in level if items[i].kind == "define"]:
            for j in symbols.undefs.get(items[i].names[0], ()):
                # Those of other files come in pairs of headers, read again for each user.
                if graph.paths[j] == graph.paths[i] and j > i:
                    level[j] = FULL
