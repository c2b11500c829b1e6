"""Bodies from sources that the file of a document does not see: of functions that it calls.

Two sources are two translation units: what one of them names must not come to mean what the other
has. A body comes with all it needs or, where that would collide or be too long, not at all.
"""

from collections.abc import Container, Iterator, Sequence
from dataclasses import replace

from nanochat_chunker.slicing.closure import Closure
from nanochat_chunker.slicing.foreign import Meeting
from nanochat_chunker.slicing.graph import Graph
from nanochat_chunker.slicing.items import FULL, flatten
from nanochat_chunker.slicing.preprocess import is_c

_MAX_BODIES = 4  # overloads of one name
_MAX_TRIED = 64  # bodies that one document tries to take in
_HAVE_BODIES = ("function", "call")


class OtherSources:
    """Takes bodies from other sources into closures that have room for them."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._members: dict[str, list[tuple[int, str]]] | None = None
        self._skipped: dict[str, bool] = {}
        self._out_of_line: dict[str, dict[str, list[int]]] = {}
        self._directives: dict[str, frozenset[str]] = {}

    def bring(self, closure: Closure, limit: float) -> bool:
        """Takes in bodies up to as many calls away as the closure's detail says, nearest first.

        Each only where the closure stays within `limit`. Whether any came.
        """
        found = False
        items, detail = self._graph.items, closure.detail
        seen = self._graph.project.context(closure.path)
        near = [i for i in closure.roots if items[i].kind in _HAVE_BODIES]
        met = set(near)
        meeting: Meeting | None = None
        tried = 0
        closure.detail = replace(detail, depth=0)  # distances are counted here
        for _ in range(detail.depth):
            far: list[int] = []
            for i in near:
                far += [j for j in self._graph.callees(i) if closure.level.get(j) == FULL]
                for bodies in list(self._bodies(seen, i, closure.level)):
                    if tried == _MAX_TRIED or closure.level.get(bodies[0]) == FULL:
                        continue
                    size = sum(self._graph.part(j, True).size for j in bodies)
                    if closure.size + size > limit or not self._may_come(closure, bodies[0]):
                        continue
                    tried += 1
                    meeting = meeting or Meeting(self._graph, closure.path, closure.level)
                    if self._take(closure, bodies, limit, meeting):
                        found = True
                        far += bodies
            near = [j for j in dict.fromkeys(far) if j not in met]
            met.update(near)
        if not found:
            closure.detail = detail
        return found

    def _take(
        self, closure: Closure, bodies: Sequence[int], limit: float, meeting: Meeting
    ) -> bool:
        before = closure.copy()
        source = self._graph.paths[bodies[0]]
        closure.see(self._graph.project.context(source))
        room, closure.limit = closure.limit, limit
        closure.need(bodies, whole=True)
        closure.limit = room
        if closure.size <= limit:
            came = [i for i in closure.level if i not in before["level"]]
            if meeting.admits(came, source):
                return True
        closure.restore(before)
        return False

    def _bodies(self, seen: int, i: int, level: Container[int]) -> Iterator[tuple[int, ...]]:
        """The definitions of each function that `i` calls, if in a file that is not seen."""
        graph = self._graph
        named: dict[str, list[int]] = {}
        for j in graph.callees(i):
            named.setdefault(graph.qualifiers[j] + "::" + graph.items[j].names[0], []).append(j)
        for owner, name in self._member_calls(i, level):
            found = self._defined(owner).get(name)
            if found:
                named[f"{owner}::{name}"] = found
        for ids in named.values():
            ids = [j for j in ids if not self._is_skipped(graph.paths[j])]
            one_file = len({graph.paths[j] for j in ids}) == 1
            if one_file and len(ids) <= _MAX_BODIES and not seen >> graph.bits[ids[0]] & 1:
                yield tuple(ids)

    def _is_skipped(self, path: str) -> bool:
        found = self._skipped.get(path)
        if found is None:
            found = self._skipped[path] = bool(self._graph.project.skipped(path))
        return found

    def _defined(self, owner: str) -> dict[str, list[int]]:
        """The functions of a class that are defined out of line, by name."""
        found = self._out_of_line.get(owner)
        if found is None:
            found = self._out_of_line[owner] = {}
            for j in self._graph.symbols.members.get(owner, ()):
                if self._graph.items[j].kind == "function":
                    found.setdefault(self._graph.items[j].names[0], []).append(j)
        return found

    def _member_calls(self, i: int, level: Container[int]) -> Iterator[tuple[str, str]]:
        """Classes and the members of theirs that a body names."""
        graph, item = self._graph, self._graph.items[i]
        own = graph.symbols.owner_of(item) if item.owner else ""
        if self._members is None:
            self._members = self._find_members()
        for use in item.body_uses:
            name = graph.last_names[use]
            classes = self._members.get(name)
            if classes is None:
                continue
            owners = {owner for k, owner in classes if k in level}
            if use[0] == ".":
                # Through an object whose class is not known: only one may have such a member.
                owners = {own} if own in owners else owners
            elif "::" in use:
                scope = use.rpartition("::")[0].rpartition("::")[2]
                owners = {owner for owner in owners if owner.rpartition("::")[2] == scope}
            else:
                owners = owners & {own}
            if len(owners) == 1:
                yield next(iter(owners)), name

    def _find_members(self) -> dict[str, list[tuple[int, str]]]:
        """By the name of a function the classes that have one: their items, and qualified names."""
        found: dict[str, list[tuple[int, str]]] = {}
        for i, item in enumerate(self._graph.items):
            if item.kind == "class":
                for name, owner in dict.fromkeys(self._names_within(i)):
                    found.setdefault(name, []).append((i, owner))
        return found

    def _names_within(self, i: int) -> Iterator[tuple[str, str]]:
        item = self._graph.items[i]
        if not item.names:
            return
        parts = [self._graph.qualifiers[i], item.owner, item.names[0]]
        owner = "::".join(part for part in parts if part)
        for member in item.members:
            if member.kind in ("function", "prototype") and member.names:
                if member.names[0] not in item.names:
                    yield member.names[0], owner
            elif member.kind == "class" and member.names:
                for inner in flatten(member.members):
                    if inner.kind in ("function", "prototype") and inner.names:
                        yield inner.names[0], f"{owner}::{member.names[0]}"

    def _may_come(self, closure: Closure, j: int) -> bool:
        """Whether a function is known outside of its source, and its source fits the document."""
        graph, item = self._graph, self._graph.items[j]
        if not item.flags.isdisjoint(("local", "special", "inner")):
            return False
        if is_c(graph.paths[j]) != is_c(closure.path):
            return False
        if "using namespace" in graph.project.text(graph.paths[j])[item.tail : item.end]:
            return False  # what it finds so is not known
        name = item.names[0]
        if name in item.body_uses and any(
            graph.qualifiers[k] != graph.qualifiers[j] for k in graph.symbols.by_last_name(name)
        ):
            return False  # it may call another of its name, by the types of arguments
        return self._opened_by(graph.paths[j]) <= self._opened_by(closure.path)

    def _opened_by(self, path: str) -> frozenset[str]:
        """The namespaces that using-directives open for a file."""
        found = self._directives.get(path)
        if found is None:
            graph = self._graph
            seen = graph.project.context(path)
            found = self._directives[path] = frozenset(
                f"{graph.qualifiers[i]} {graph.items[i].names[0]}"
                for i in graph.lookup.directives
                if seen >> graph.bits[i] & 1
            )
        return found
