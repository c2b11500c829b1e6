"""The least of a project: what must be declared, for documents that do not fit otherwise."""

from typing import Any, cast

from nanochat_chunker.slicing.closure import Detail
from nanochat_chunker.slicing.graph import DECLARED, Follower, Graph, Part, View

LEAN = Detail("what clang asks for", 0, DECLARED)


class LeanGraph:
    """A graph in which what was declared forward stays so, and nothing comes along unasked.

    Documents of it are no more than a beginning: clang says what else they need.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def __getattr__(self, name: str) -> Any:
        return getattr(self._graph, name)

    def declaration(self, i: int) -> tuple[int, ...]:
        return self._lighter(i, self._graph.declaration(i))

    def body(self, i: int) -> tuple[int, ...]:
        return self._lighter(i, self._graph.body(i))

    def part(self, i: int, full: bool) -> Part:
        needs = (*self.declaration(i), *(self.body(i) if full else ()))
        return Part(self._graph.part(i, full).size, frozenset(needs))

    def followers(self, i: int) -> tuple[Follower, ...]:
        return ()

    def view(self, path: str) -> View:
        return View(cast(Graph, self), self._graph.project.context(path))

    def _lighter(self, i: int, ids: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(dict.fromkeys(self._forward(i, j) for j in ids))

    def _forward(self, i: int, j: int) -> int:
        """A forward declaration before `i` of the class at `j`, or the class."""
        items, symbols = self._graph.items, self._graph.symbols
        item = items[j]
        if item.kind != "class" or not item.names or item.owner or "special" in item.flags:
            return j
        scope = self._graph.qualifiers[j]
        named = symbols.table.get(f"{scope}::{item.names[0]}" if scope else item.names[0], ())
        seen = self._graph.project.context(self._graph.paths[i])
        forwards = [
            k
            for k in named
            if k < i and items[k].kind == "forward" and seen >> self._graph.bits[k] & 1
        ]
        return forwards[-1] if forwards else j
