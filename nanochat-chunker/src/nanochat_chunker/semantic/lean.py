"""The least of a project: what must be declared, for documents that do not fit otherwise."""

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from types import MappingProxyType
from typing import Any, cast

from nanochat_chunker.slicing.closure import Detail
from nanochat_chunker.slicing.graph import Graph
from nanochat_chunker.slicing.items import DECLARED, FULL
from nanochat_chunker.slicing.parts import Follower, Part, View
from nanochat_chunker.slicing.rendering import Renderer

LEAN = Detail("what clang asks for", 0, DECLARED)
# Literals are looked at so that what begins no comment in them is none.
_LITERAL_OR_COMMENT = re.compile(
    r'R"([^()\\\s]{0,16})\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|(?<![0-9A-Fa-f])\'(?:\\.|[^\'\\\n])*\''
    r"|[ \t]*(?://(?:\\\n|[^\n])*|/\*.*?\*/)",
    re.S,
)
_EMPTY_LINE = re.compile(r"^[ \t]*\n", re.M)


def without_comments(text: str) -> str:
    """A text without its comments and without the lines that these leave empty."""
    bare = _LITERAL_OR_COMMENT.sub(_kept, text)
    if bare == text or 'R"' in text:  # literals may have empty lines
        return bare
    return _EMPTY_LINE.sub("", bare)


def _kept(found: re.Match[str]) -> str:
    text = found[0]
    if not text.lstrip(" \t").startswith(("//", "/*")):
        return text
    return " " if text.endswith("*/") else ""


class LeanRenderer(Renderer):
    """Writes only the roots with their comments."""

    _roots: frozenset[int] = frozenset()

    def render(
        self,
        level: Mapping[int, int],
        roots: Iterable[int],
        members: Mapping[int, frozenset[int]] = MappingProxyType({}),
        own: Sequence[str] = (),
    ) -> str:
        roots = tuple(roots)
        for i in {*roots, *self._roots}:
            self._pieces.pop((i, FULL, None), None)
        self._roots = frozenset(roots)
        return super().render(level, roots, members, own)

    def _cut(self, i: int, level: int, members: Set[int] | None = None) -> str:
        text = super()._cut(i, level, members)
        return text if i in self._roots else without_comments(text)


class LeanGraph:
    """A graph in which what was declared forward stays so.

    Documents of it are no more than a beginning: clang says what else they need.
    """

    def __init__(self, graph: Graph, renderer: Renderer) -> None:
        self._graph = graph
        self._renderer = renderer
        self._parts: dict[tuple[int, bool], Part] = {}
        self._followers: Mapping[int, Sequence[Follower]] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._graph, name)

    def declaration(self, i: int) -> tuple[int, ...]:
        item = self._graph.items[i]
        whole = set(self._graph.needs(i, item.uses, "head")) if item.kind == "class" else ()
        found = (j if j in whole else self._forward(i, j) for j in self._graph.declaration(i))
        return tuple(dict.fromkeys(found))

    def body(self, i: int) -> tuple[int, ...]:
        return tuple(dict.fromkeys(self._forward(i, j) for j in self._graph.body(i)))

    def companions(self, i: int) -> tuple[int, ...]:
        return () if self._graph.items[i].kind == "forward" else self._graph.companions(i)

    def types(self, j: int) -> tuple[int, ...]:
        return Graph.types(self._graph, j)

    def part(self, i: int, full: bool) -> Part:
        """The size is without comments, as such documents are written."""
        found = self._parts.get((i, full))
        if found is None:
            text = self._renderer.text_of(i, FULL if full else DECLARED)
            needs = (*self.declaration(i), *(self.body(i) if full else ()))
            found = self._parts[i, full] = Part(len(text), frozenset(needs))
        return found

    @property
    def followers(self) -> Mapping[int, Sequence[Follower]]:
        if self._followers is None:
            found, items = Graph.find_followers(cast(Graph, self)), self._graph.items
            self._followers = {i: each for i, each in found.items() if items[i].kind != "forward"}
        return self._followers

    def view(self, path: str) -> View:
        return View(self.followers, self._graph.bits, self._graph.project.context(path))

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
