"""Fitting documents to the budget: less detail, then fewer roots, then the project's headers."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nanochat_chunker.slicing.closure import Closure, Detail
from nanochat_chunker.slicing.graph import Graph
from nanochat_chunker.slicing.items import DECLARED, DEFINITIONS
from nanochat_chunker.slicing.model import Root, Slice, SliceOptions
from nanochat_chunker.slicing.other_sources import OtherSources
from nanochat_chunker.slicing.own_file import OwnFile
from nanochat_chunker.slicing.rendering import Renderer, paths_of
from nanochat_chunker.slicing.slim import UsedMembers

_TAKEN_ALONG = frozenset("include define undef using directive namespace access other".split())
_MAY_BE_HEAVY = frozenset(("class", "function", "prototype", "alias", "call", "variable"))
_ROOM = 0.5  # of the budget that one root may take before members lose their bodies
_FULL = 0.95  # of the budget: the lengths of closures are estimates

DECLARED_CALLEES = Detail("callees declared", 0)
DECLARED_MEMBERS = Detail("members declared", 0, DECLARED)
USED_MEMBERS = Detail("members used", 0, DECLARED, used=True)
WITH_INCLUDES = Detail("project's headers included", 0, includes=True)


def rungs(options: SliceOptions) -> list[Detail]:
    """Those of whole files, from the most detail to the least."""
    deep = options.cross_depth
    found = [Detail(f"bodies up to {deep} calls away", deep)] if deep > 0 else []
    if deep > 1:
        found.append(Detail("bodies of direct callees", 1))
    return [*found, DECLARED_CALLEES, DECLARED_MEMBERS]


class Ladder:
    """Makes the documents of a project's files."""

    def __init__(self, graph: Graph, options: SliceOptions, measure: Callable[[str], int]) -> None:
        self._graph = graph
        self._measure = measure
        self._budget = options.budget
        self._rungs = rungs(options)
        self._renderer = Renderer(graph)
        self._others = OtherSources(graph)
        # By item, detail and room whether it needs more than the room.
        self._weighed: dict[tuple[str, int], dict[int, bool]] = defaultdict(dict)
        self.notes: Counter[str] = Counter()  # what there is to say of the documents made

    def documents(self, path: str, left_out: Counter[str] | None = None) -> Iterator[Slice]:
        """Those whose roots are the definitions of one file: one where it fits, else several.

        Definitions that are in none are counted in `left_out`, by reason.
        """
        left_out = Counter() if left_out is None else left_out
        graph = self._graph
        ids = [i for i in graph.by_path.get(path, ()) if graph.items[i].kind != "include"]
        roots = [i for i in ids if graph.items[i].kind not in _TAKEN_ALONG]
        definitions = [i for i in roots if graph.items[i].kind in DEFINITIONS]
        if reason := graph.project.skipped(path):
            left_out[reason] += len(definitions)
            return
        if not roots:
            return
        text = graph.project.text(path)
        limit = self._budget * len(text) / max(1, self._measure(text))  # in characters
        slice_ = self._whole(path, ids, roots, limit)
        if slice_ is not None:
            yield slice_
            return
        yield from self._parts(path, definitions or roots, limit, left_out)

    def _whole(
        self, path: str, ids: Sequence[int], roots: Sequence[int], limit: float
    ) -> Slice | None:
        """A file as one document, with the most detail that fits.

        The closure grows from the least detail to the most, since each holds what the one before
        does: what does not fit at the first step is known at once.
        """
        fitting: list[tuple[Detail, dict[str, Any]]] = []
        closure = self._closure(path, self._rungs[-1], limit)
        closure.add(ids)
        for detail in reversed(self._rungs):
            if detail is not closure.detail:
                closure.raise_to(detail)
            if closure.size > limit:
                break
            fitting.append((detail, closure.copy()))
        for detail, state in reversed(fitting):
            closure.detail = detail
            closure.restore(state)
            alone = closure.copy()
            brought = self._others.bring(closure, limit * _FULL)
            slice_ = self._write(closure, roots, "file, " + detail.name)
            if slice_ is None and brought:
                closure.restore(alone)
                slice_ = self._write(closure, roots, "file, " + detail.name)
            if slice_ is not None:
                return slice_
        return None

    def _closure(self, path: str, detail: Detail, limit: float) -> Closure:
        kind = UsedMembers if detail.used else OwnFile if detail.includes else Closure
        return kind(self._graph, path, detail, limit)

    def _parts(
        self, path: str, roots: Sequence[int], limit: float, left_out: Counter[str]
    ) -> Iterator[Slice]:
        """Documents of as many neighbouring roots as fit, in the order of their lines."""
        made: list[tuple[int, Slice]] = []
        steps = (
            (DECLARED_CALLEES, limit * _ROOM), (DECLARED_MEMBERS, limit), (USED_MEMBERS, limit),
        )  # fmt: skip
        heavy = [
            i
            for i in self._runs(path, roots, limit, steps, made)
            if not self._too_large(path, i, limit, made)
        ]
        for i in self._runs(path, heavy, limit, ((WITH_INCLUDES, limit),), made):
            left_out["too_long"] += self._graph.items[i].kind in DEFINITIONS
        yield from (slice_ for _, slice_ in sorted(made, key=lambda pair: pair[0]))

    def _runs(
        self,
        path: str,
        roots: Sequence[int],
        limit: float,
        steps: Sequence[tuple[Detail, float]],
        made: list[tuple[int, Slice]],
    ) -> Iterator[int]:
        """Adds documents to `made`, each with its first root; gives the roots that fit nowhere.

        `steps` are tried for the first root of each document, with the room it may take.
        """
        at = 0
        while at < len(roots):
            closure = self._begin(path, roots[at], steps)
            if closure is None:
                yield roots[at]
                at += 1
                continue
            closure.limit = limit
            stop = self._grow(closure, roots, at + 1)
            slice_ = None
            while slice_ is None and stop > at:
                slice_ = self._write(closure, roots[at:stop], "part, " + closure.detail.name)
                if slice_ is None:
                    if stop == at + 1:
                        break
                    stop = at + max(1, (stop - at) * 3 // 4)
                    closure = self._closure(path, closure.detail, limit)
                    closure.add(roots[at:stop])
            if slice_ is None:
                yield roots[at]
            else:
                made.append((roots[at], slice_))
            at = stop

    def _too_large(self, path: str, root: int, limit: float, made: list[tuple[int, Slice]]) -> bool:
        """Whether there is a document, added to `made`, for a root that no step has room for."""
        return False

    def _begin(self, path: str, root: int, steps: Sequence[tuple[Detail, float]]) -> Closure | None:
        """The closure of one root at the first step where it has room."""
        for detail, room in steps:
            if not detail.includes and self._names_heavy(root, detail, room):
                continue
            closure = self._closure(path, detail, room)
            closure.add([root])
            if closure.size <= room:
                return closure
        return None

    def _names_heavy(self, root: int, detail: Detail, room: float) -> bool:
        """Whether something that a root names needs more than the room, all by itself.

        Known once, it spares the closures of all roots that name it.
        """
        # Two digits of the room, so that files of like text share what is known.
        unit = 10 ** max(0, len(str(int(room))) - 2)
        rounded = -(-int(room) // unit) * unit
        weighed = self._weighed[detail.name, rounded]
        needs = self._graph.part(root, True).needs
        known = needs & weighed.keys()
        return any(map(weighed.__getitem__, known)) or any(
            self._is_heavy(j, detail, rounded) for j in sorted(needs - known)
        )

    def _is_heavy(self, j: int, detail: Detail, room: int) -> bool:
        """Whether an item needs more than the room, in its own file.

        That does not depend on who asks, so documents do not depend on those made before.
        """
        weighed = self._weighed[detail.name, room]
        found = weighed.get(j)
        if found is None:
            found = self._graph.items[j].kind in _MAY_BE_HEAVY and (
                # What is light with all its members is so with those that are used.
                not detail.used or self._is_heavy(j, DECLARED_MEMBERS, room)
            )
            if found:
                closure = self._closure(self._graph.paths[j], detail, room)
                closure.need([j])
                found = closure.size > room
            weighed[j] = found
        return found

    def _grow(self, closure: Closure, roots: Sequence[int], stop: int) -> int:
        """Adds neighbours as long as they fit; gives the place of the first that does not."""
        while stop < len(roots) and closure.try_add(roots[stop], closure.limit * _FULL):
            stop += 1
        return stop

    def _write(self, closure: Closure, roots: Sequence[int], rung: str) -> Slice | None:
        graph = self._graph
        level = closure.finished()
        members = closure.members if isinstance(closure, UsedMembers) else {}
        own = closure.files if isinstance(closure, OwnFile) else ()
        text = self._renderer.render(level, roots, members, own)
        if self._measure(text) > self._budget:
            return None
        found = [root_of(graph, i) for i in roots if graph.items[i].kind in DEFINITIONS]
        if not found:
            found = [root_of(graph, roots[0])]
        return Slice(text, tuple(found), paths_of(graph, level), rung)


def root_of(graph: Graph, i: int) -> Root:
    """Where a root is defined, and its qualified name."""
    item, path = graph.items[i], graph.paths[i]
    name = item.names[0] if item.names else ""
    parts = [part for part in (graph.qualifiers[i], item.owner, name) if part]
    return Root(path, graph.project.line(path, item.begin), "::".join(parts), item.kind)
