"""Functions bottom-up: the body of a function after the bodies of those that it calls.

The project's order has a callee that is defined further down after its caller. Here the caller
moves down to it, past what does not need it defined and does not change what it means.
"""

from collections.abc import Iterable, Mapping

from nanochat_chunker.slicing.calls import calls_among, components
from nanochat_chunker.slicing.graph import Graph
from nanochat_chunker.slicing.items import FULL, Item, flatten
from nanochat_chunker.slicing.parameters import parameters

# What no function moves past: its names may mean something else there, or be needed.
_WALLS = frozenset("include undef directive namespace instantiation other access friend".split())
# What may stand between whatever it names: the thing is the same one before and after.
_SAME = frozenset("prototype forward extern function assert".split())


def bottom_up(graph: Graph, level: Mapping[int, int]) -> dict[int, int]:
    """The items of a document in another order: callees first, else as they were.

    Functions that call each other keep their order, and so does a function that somebody on the way
    needs before its callee.
    """
    functions = [i for i, at in level.items() if at == FULL and graph.items[i].kind == "function"]
    calls = calls_among(graph, functions) if len(functions) > 1 else {}
    if not calls:
        return dict(level)
    places = {i: place for place, i in enumerate(level)}
    if all(places[j] < places[i] for i, callees in calls.items() for j in callees):
        return dict(level)
    component = components(calls)
    together: dict[int, set[int]] = {}  # what the functions of a cycle call outside of it
    for i, callees in calls.items():
        outside = together.setdefault(component[i], set())
        outside.update(j for j in callees if component[j] != component[i])
    waits = {i: set(together.get(cycle, ())) for i, cycle in component.items()}
    order = _Order(graph, places, waits)
    for i in level:
        order.put(i)
    order.end()
    return {i: level[i] for i in order.done}


class _Order:
    """The new order as it grows; `_late` are the functions that wait for their callees."""

    def __init__(self, graph: Graph, places: Mapping[int, int], waits: dict[int, set[int]]) -> None:
        self.done: list[int] = []
        self._graph = graph
        self._places = places
        self._waits = waits
        self._callers: dict[int, list[int]] = {}
        for i, callees in waits.items():
            for j in callees:
                self._callers.setdefault(j, []).append(i)
        self._late: dict[int, frozenset[str]] = {}  # with the words in them
        self._undeclared: dict[str, set[int]] = {}  # those of them that nothing declares, by name
        self._declared: dict[tuple[str, str], list[int]] = {}
        self._defined: set[str] = set()  # macros

    def put(self, i: int) -> None:
        """Takes the next item of the old order."""
        item = self._graph.items[i]
        if self._waits.get(i) and self._is_movable(i, item):
            self._late[i] = frozenset(_words(item))
            if not self._is_declared(i, item):
                self._undeclared.setdefault(item.names[0], set()).add(i)
            return
        if self._late:
            self._clear_the_way(i, item)
        if i in self._callers:
            self._emit(i)
        else:
            self._write(i, item)

    def end(self) -> None:
        """Writes what still waits."""
        for i in sorted(self._late, key=self._places.__getitem__):
            if i in self._late:
                self._emit(i)

    def _emit(self, first: int) -> None:
        """Writes an item, and what waited for nothing else."""
        stack = [first]
        asked: set[int] = set()
        while stack:
            i = stack[-1]
            item = self._graph.items[i]
            if i in self._late:
                before = [] if i in asked else [j for j in self._named_late(i, item) if j != i]
                asked.add(i)
                if before:
                    stack += reversed(before)
                    continue
                del self._late[i]
                self._undeclared.get(item.names[0], set()).discard(i)
            elif i != first or first in asked:  # written on the way here
                stack.pop()
                continue
            stack.pop()
            self._write(i, item)
            stack += reversed(self._released(i))

    def _write(self, i: int, item: Item) -> None:
        self.done.append(i)
        if item.names:
            if item.kind in ("prototype", "function"):
                self._declared.setdefault((self._graph.qualifiers[i], item.names[0]), []).append(i)
            elif item.kind == "define":
                self._defined.add(item.names[0])

    def _released(self, i: int) -> list[int]:
        """The late functions that waited for `i` alone."""
        found = []
        for caller in self._callers.get(i, ()):
            self._waits[caller].discard(i)
            if not self._waits[caller] and caller in self._late:
                found.append(caller)
        return sorted(found, key=self._places.__getitem__)

    def _is_movable(self, i: int, item: Item) -> bool:
        """Whether a function may be defined after it is used."""
        flags = item.flags
        if item.needs_body or "special" in flags or "inner" in flags:
            return False
        if not item.names[0].startswith("operator") or item.owner:
            return True
        return self._is_declared(i, item)

    def _is_declared(self, i: int, item: Item) -> bool:
        """Whether what is written already declares a function; a member is, in its class."""
        if item.owner:
            return True
        mine = self._parameters(i)
        declared = self._declared.get((self._graph.qualifiers[i], item.names[0]), ())
        return any(self._parameters(j) == mine for j in declared)

    def _parameters(self, i: int) -> tuple[str, ...]:
        """The types of a function's parameters as they are written, to tell overloads apart.

        A default argument stays: one in a definition belongs to who calls it.
        """
        item = self._graph.items[i]
        head = self._graph.project.text(self._graph.paths[i])[item.begin : item.end]
        return parameters(head, item.names[0])

    def _clear_the_way(self, i: int, item: Item) -> None:
        """Writes those late functions that must stand before an item."""
        kind = item.kind
        if kind in _WALLS or (kind == "define" and item.names[0] in self._defined):
            self.end()
            return
        for late in self._named_late(i, item):
            if late in self._late:
                self._emit(late)
        if self._late and kind not in _SAME:
            for late in [k for k, words in self._late.items() if not words.isdisjoint(item.names)]:
                if late in self._late:
                    self._emit(late)

    def _named_late(self, i: int, item: Item) -> list[int]:
        """The late functions that an item names and nothing declares."""
        if not self._undeclared:
            return []
        names = set(_words(item))
        for member in flatten(item.members):
            names.update(_words(member))
        found = [i for name, late in self._undeclared.items() if name in names for i in late]
        return sorted(found, key=self._places.__getitem__)


def _words(item: Item) -> Iterable[str]:
    """The parts of the names in an item, those of members through objects left out."""
    for use in (*item.uses, *item.body_uses):
        if use[0] != ".":
            if "::" in use:
                yield from use.split("::")
            else:
                yield use
