"""The last step of the ladder: a file's part of a closure, among the file's own includes."""

from collections.abc import Iterator
from typing import ClassVar

from nanochat_chunker.slicing.bottom_up import bottom_up
from nanochat_chunker.slicing.closure import Closure, Detail
from nanochat_chunker.slicing.graph import Graph
from nanochat_chunker.slicing.items import FULL

_DIRECTIVES = frozenset("include define undef using directive namespace".split())


class OwnFile(Closure):
    """Only items of the root's own file, with the directives before them; its includes stay.

    A header that cannot stand alone needs what its includers have before it. Of each of those, as
    far up as one that sees what is needed, the document has the same: items, directives, includes.
    """

    _GROWS: ClassVar[tuple[str, ...]] = (*Closure._GROWS, "_files", "_looked_at")

    def __init__(self, graph: Graph, path: str, detail: Detail, limit: float) -> None:
        super().__init__(graph, path, detail, limit)
        self._files = [path]  # and its includers, each included by the next
        self._begin = graph.by_path[path][0]
        self._looked_at: dict[int, int] = {}  # items whose needs were looked at, by level

    def finished(self) -> dict[int, int]:
        """The items, and all directives that stand before the last root."""
        graph, level = self.graph, dict(self.level)
        last = max(self.roots)
        for i in graph.by_path[self.path]:
            if i < last and graph.items[i].kind in _DIRECTIVES:
                level[i] = FULL
        for path in self._files[1:]:
            level.update((i, FULL) for i in self._directives_of(path))
        return bottom_up(graph, {i: level[i] for i in sorted(level)})

    def _take(self, i: int, level: int) -> None:
        path = self.graph.paths[i]
        if path == self.path or (i < self._begin and path in self._files):
            super()._take(i, level)

    def _finish(self) -> None:
        super()._finish()
        while self.size <= self.limit and self._reach():
            super()._finish()

    def _reach(self) -> bool:
        """Takes in the includers that see what the items need; whether there was any."""
        graph = self.graph
        wanted: set[int] = set()
        for i, level in self.level.items():
            if self._looked_at.get(i, 0) < level:
                self._looked_at[i] = level
                wanted |= graph.part(i, level == FULL).needs
        own = graph.project.closure[self.path]
        missing = [
            j
            for j in sorted(wanted)
            if j < self._begin and j not in self.level and not own >> graph.bits[j] & 1
        ]
        for j in missing:
            self._climb(graph.bits[j])
        for j in missing:
            self._take(j, self._level_of(j))
        return bool(missing)

    def _climb(self, bit: int) -> None:
        """Adds includers up to the first that sees the file at `bit`; none where none does."""
        project = self.graph.project
        files = list(self._files)
        while not project.closure[files[-1]] >> bit & 1:
            above = project.parent.get(files[-1])
            if above is None or above in files:
                return
            files.append(above)
        for path in files[len(self._files) :]:
            self._files.append(path)
            self.size += sum(self.graph.items[i].size(False) for i in self._directives_of(path))

    def _directives_of(self, path: str) -> Iterator[int]:
        """Of an includer the directives before the file that it includes."""
        graph = self.graph
        for i in graph.by_path.get(path, ()):
            item = graph.items[i]
            if i >= self._begin:
                return
            if item.kind not in _DIRECTIVES:
                continue
            if item.kind == "include":
                target = graph.project.resolve(path, item.names[0], "angle" in item.flags)
                if target in self._files:
                    continue
            yield i

    @property
    def files(self) -> tuple[str, ...]:
        """The root's file and its includers that are in part in the document."""
        return tuple(self._files)
