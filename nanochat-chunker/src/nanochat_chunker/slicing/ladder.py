"""Fitting documents to the budget: less detail, then fewer roots."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from nanochat_chunker.slicing.closure import DECLARED, FULL, Closure, Detail
from nanochat_chunker.slicing.graph import Graph
from nanochat_chunker.slicing.items import DEFINITIONS
from nanochat_chunker.slicing.model import Root, Slice, SliceOptions
from nanochat_chunker.slicing.rendering import Renderer, paths_of

_TAKEN_ALONG = frozenset("include define undef using directive namespace access other".split())
_ROOM = 0.5  # of the budget that one root may take before members lose their bodies


def rungs(options: SliceOptions) -> list[Detail]:
    """From the most detail to the least."""
    deep = options.cross_depth
    found = [Detail(f"bodies up to {deep} calls away", deep, FULL)]
    if deep > 1:
        found.append(Detail("bodies of direct callees", 1, FULL))
    if deep > 0:
        found.append(Detail("callees declared", 0, FULL))
    found.append(Detail("members declared", 0, DECLARED))
    return found


class Ladder:
    """Makes the documents of a project's files."""

    def __init__(self, graph: Graph, options: SliceOptions, measure: Callable[[str], int]) -> None:
        self._graph = graph
        self._measure = measure
        self._budget = options.budget
        self._rungs = rungs(options)
        self._renderer = Renderer(graph)
        self.notes: Counter[str] = Counter()  # what there is to say of the documents made

    def documents(self, path: str) -> Iterator[Slice]:
        """Those whose roots are the definitions of one file: one where it fits, else several."""
        graph = self._graph
        ids = [i for i in graph.by_path.get(path, ()) if graph.items[i].kind != "include"]
        roots = [i for i in ids if graph.items[i].kind not in _TAKEN_ALONG]
        if not roots or graph.project.skipped(path):
            return
        text = graph.project.text(path)
        limit = self._budget * len(text) / max(1, self._measure(text))  # in characters
        for detail in self._rungs:
            closure = Closure(graph, path, detail, limit)
            closure.add(ids)
            if closure.size > limit:
                continue
            slice_ = self._write(closure, roots, "file, " + detail.name)
            if slice_ is not None:
                yield slice_
                return
        definitions = [i for i in roots if graph.items[i].kind in DEFINITIONS]
        yield from self._parts(path, definitions or roots, limit)

    def _parts(self, path: str, roots: Sequence[int], limit: float) -> Iterator[Slice]:
        """Documents of as many neighbouring roots as fit."""
        at = 0
        while at < len(roots):
            for detail, room in zip(self._rungs[-2:], (limit * _ROOM, limit), strict=False):
                closure = Closure(self._graph, path, detail, room)
                closure.add(roots[at : at + 1])
                if closure.size <= room:
                    break
            closure.limit = limit
            if closure.size > limit:
                yield from self._too_large(path, roots[at], limit)
                at += 1
                continue
            stop = at + 1
            while stop < len(roots):
                saved = closure.save()
                closure.add(roots[stop : stop + 1])
                if closure.size > limit * 0.95:
                    closure.restore(saved)
                    break
                stop += 1
            while True:
                slice_ = self._write(closure, roots[at:stop], "part, " + closure.detail.name)
                if slice_ is not None or stop == at + 1:
                    break
                stop = at + max(1, (stop - at) * 3 // 4)
                closure = Closure(self._graph, path, closure.detail, limit)
                closure.add(roots[at:stop])
            if slice_ is not None:
                yield slice_
            at = stop

    def _too_large(self, path: str, root: int, limit: float) -> Iterator[Slice]:
        """What becomes of a root that needs more than the budget: nothing here."""
        yield from ()

    def _write(self, closure: Closure, roots: Sequence[int], rung: str) -> Slice | None:
        graph = self._graph
        level = closure.finished()
        text = self._renderer.render(level, roots)
        if self._measure(text) > self._budget:
            return None
        found = [root_of(graph, i) for i in roots if graph.items[i].kind in DEFINITIONS]
        if not found:
            found = [root_of(graph, roots[0])]
        return Slice(text, tuple(found), paths_of(graph, level), rung)


def root_of(graph: Graph, i: int) -> Root:
    item, path = graph.items[i], graph.paths[i]
    name = item.names[0] if item.names else ""
    parts = [part for part in (item.qualifier, item.owner, name) if part]
    line = graph.project.text(path).count("\n", 0, item.begin) + 1
    return Root(path, line, "::".join(parts), item.kind)
