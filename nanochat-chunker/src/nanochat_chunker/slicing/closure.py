"""The items of one document: what its roots need, what that needs, and so on."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from nanochat_chunker.slicing.graph import Graph

FULL, DECLARED = "full", "declared"
_TYPES = frozenset(("class", "enum", "alias", "forward", "using"))


@dataclass
class Detail:
    """How much of what a root needs comes along: one rung of the ladder."""

    name: str
    depth: int  # calls away from the root up to which functions bring their bodies
    classes: str  # full, declared (members without bodies)


@dataclass
class Closure:
    """The items of a document and whether each is whole or only declared."""

    level: dict[int, str] = field(default_factory=dict)
    roots: frozenset[int] = frozenset()


def close(graph: Graph, roots: Iterable[int], path: str, detail: Detail) -> Closure:
    """All that the items `roots` of the file `path` need to compile."""
    return _Closing(graph, roots, path, detail).run()


class _Closing:
    def __init__(self, graph: Graph, roots: Iterable[int], path: str, detail: Detail) -> None:
        self.graph = graph
        self.detail = detail
        self.path = path
        self.seen = graph.context(path)
        self.closure = Closure(roots=frozenset(roots))
        self.todo: list[tuple[int, int]] = []  # item, calls away from the root
        self.distance: dict[int, int] = {}

    def run(self) -> Closure:
        for i in sorted(self.closure.roots):
            self._take(i, FULL, 0)
        while True:
            self._drain()
            if not self._more():
                break
        self._directives()
        return self.closure

    def _take(self, i: int, level: str, distance: int) -> None:
        levels = self.closure.level
        old = levels.get(i)
        if old == FULL or old == level:
            return
        levels[i] = level
        self.todo.append((i, distance))

    def _drain(self) -> None:
        graph, items = self.graph, self.graph.items
        levels = self.closure.level
        detail = self.detail
        while self.todo:
            i, distance = self.todo.pop()
            for j in graph.declaration(i):
                if j not in levels:
                    self._need(j, distance)
            if levels[i] == FULL:
                is_call = items[i].kind in ("function", "call")
                for j in graph.body(i):
                    if j not in levels:
                        self._need(j, distance)
                    if is_call and distance < detail.depth:
                        self._bring(j, distance + 1)

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
        graph, items = self.graph, self.graph.items
        item = items[j]
        if item.kind == "function":
            self._take(j, FULL, distance)
        elif item.kind == "prototype" and not item.owner:
            prefix = item.qualifier + "::" if item.qualifier else ""
            bodies = [
                k
                for k in graph.symbols.table.get(prefix + item.names[0], ())
                if items[k].kind == "function" and self.seen >> graph.bits[k] & 1
            ]
            if len(bodies) <= 4:
                for k in bodies:
                    self._take(k, FULL, distance)

    def _more(self) -> bool:
        """What no name asks for: specialisations, operators, definitions of what was forward."""
        graph, items, symbols = self.graph, self.graph.items, self.graph.symbols
        levels = self.closure.level
        seen, bits = self.seen, graph.bits
        before = len(levels)
        for i in list(levels):
            item = items[i]
            if not item.names:
                continue
            prefix = item.qualifier + "::" if item.qualifier else ""
            name = prefix + item.names[0]
            if item.kind in ("class", "function", "prototype", "forward") and name in symbols.special:
                for j in symbols.special[name]:
                    if j not in levels and seen >> bits[j] & 1 and self._types_present(j, need=False):
                        self._need(j, 0)
            if item.kind == "forward":
                for j in symbols.table.get(name, ()):
                    if (
                        items[j].kind in ("class", "enum")
                        and j not in levels
                        and seen >> bits[j] & 1
                        and "special" not in items[j].flags
                    ):
                        self._need(j, 0)
            if item.kind == "class" and name in symbols.members:
                for j in symbols.members[name]:
                    if items[j].kind == "class" and j not in levels and seen >> bits[j] & 1:
                        self._need(j, 0)
        for j in symbols.operators:
            if j not in levels and seen >> bits[j] & 1 and self._types_present(j, need=True):
                self._need(j, 0)
        return len(levels) > before

    def _types_present(self, j: int, need: bool) -> bool:
        """Whether the types that a declaration names are all in the document."""
        levels = self.closure.level
        item = self.graph.items[j]
        if item.kind == "class":
            ids = self.graph.resolve_head(j)
        else:
            ids = self.graph.declaration(j)
        types = [k for k in ids if self.graph.items[k].kind in _TYPES]
        if need and not types:
            return False
        return all(k in levels for k in types)

    def _directives(self) -> None:
        """Using-directives and #undefs that the document's items stood under."""
        graph, items, symbols = self.graph, self.graph.items, self.graph.symbols
        levels = self.closure.level
        paths = {graph.paths[i] for i in levels}
        present: set[str] = set()
        for i in levels:
            qualifier = items[i].qualifier
            while qualifier and qualifier not in present:
                present.add(qualifier)
                qualifier = qualifier.rpartition("::")[0]
        for i in graph.directives:
            if i in levels:
                target = graph.namespace_named(items[i].names[0], items[i].qualifier)
                if target and target not in present:
                    del levels[i]
                continue
            if graph.paths[i] not in paths or not self.seen >> graph.bits[i] & 1:
                continue
            scope = items[i].qualifier
            if scope and scope not in present:
                continue
            target = graph.namespace_named(items[i].names[0], scope)
            if target in present or (not target and items[i].names[0] in ("std", "::std")):
                levels[i] = FULL
        for i in [i for i in levels if items[i].kind == "define"]:
            for j in symbols.undefs.get(items[i].names[0], ()):
                if graph.paths[j] in paths and j > i:
                    levels[j] = FULL
