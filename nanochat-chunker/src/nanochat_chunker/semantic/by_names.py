"""Documents as they are without libclang, for roots whose documents with it do not compile."""

from collections.abc import Iterator, Sequence

from nanochat_chunker.slicing.closure import Closure
from nanochat_chunker.slicing.graph import Graph
from nanochat_chunker.slicing.ladder import (
    DECLARED_CALLEES,
    DECLARED_MEMBERS,
    USED_MEMBERS,
    Ladder,
)
from nanochat_chunker.slicing.model import Slice


class ByNames(Ladder):
    """A ladder over a project's graph without facts, for the roots of a graph that has them."""

    def documents_like(
        self, graph: Graph, closure: Closure, roots: Sequence[int], rung: str
    ) -> Iterator[Slice]:
        """Those of the same roots, from as much detail down; none where they are not the same."""
        added, own = self._same(graph, closure.roots), self._same(graph, roots)
        if added is None or own is None:
            return
        steps = (closure.detail, DECLARED_CALLEES, DECLARED_MEMBERS, USED_MEMBERS)
        for detail in dict.fromkeys(steps):
            again = self._closure(closure.path, detail, closure.limit)
            again.add(added)
            if again.size > closure.limit:
                continue
            slice_ = self._write(again, own, f"{rung.partition(',')[0]}, {detail.name}")
            if slice_ is not None:
                yield slice_

    def _same(self, graph: Graph, ids: Sequence[int]) -> list[int] | None:
        """The items that begin where those of another graph do; None where one does not."""
        mine = self._graph
        here = {
            (path, mine.items[j].begin): j
            for path in {graph.paths[i] for i in ids}
            for j in reversed(mine.by_path.get(path, ()))
        }
        places = [(graph.paths[i], graph.items[i].begin) for i in ids]
        return [here[place] for place in places] if here.keys() >= set(places) else None
