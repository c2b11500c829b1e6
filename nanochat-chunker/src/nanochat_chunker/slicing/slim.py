"""Closures that take less than all of what is named: for roots that need too much."""

from collections import defaultdict
from collections.abc import Iterable

from nanochat_chunker.slicing.closure import DECLARED, FULL, Closure, Detail
from nanochat_chunker.slicing.graph import Graph


class UsedMembers(Closure):
    """Classes come with their data, and of their functions and types only those that are named.

    A member counts as named where the document has its name anywhere. So what overrides a function
    stays or goes with it.
    """

    def __init__(self, graph: Graph, path: str, detail: Detail, limit: float) -> None:
        super().__init__(graph, path, detail, limit)
        self.members: dict[int, set[int]] = {}  # of each class those that stay
        self._words: set[str] = set()
        self._absent: dict[str, list[tuple[int, int]]] = defaultdict(list)  # by name

    def try_add(self, root: int, limit: float) -> bool:
        """Takes one more root in; where that is more than `limit`, grows anew without it."""
        roots = list(self.roots)
        self.add([root])
        if self.size <= limit:
            return True
        UsedMembers.__init__(self, self.graph, self.path, self.detail, self.limit)
        self.add(roots)
        return False

    def _take(self, i: int, level: int) -> None:
        before = self.level.get(i, 0)
        if before >= level:
            return
        item = self.graph.items[i]
        if item.kind != "class" or level == FULL or not item.members:
            super()._take(i, level)
            self._name(self.graph.words(i, level == FULL))
            return
        self._journal.append((i, 0))
        self.level[i] = DECLARED
        self._todo.append(i)  # for its companions
        slots = self.graph.slots(i)
        self.size += slots.size
        self.members[i] = set(slots.always)
        self._name(slots.words)
        for j in slots.needs:
            if j not in self.level:
                self._take(j, self._level_of(j))
        for place, names in slots.named:
            if not self._words.isdisjoint(names):
                self._keep(i, place)
            else:
                for name in names:
                    self._absent[name].append((i, place))

    def _keep(self, i: int, place: int) -> None:
        if place in self.members[i] or self.size > self.limit:
            return
        self.members[i].add(place)
        member = self.graph.member(i, place)
        self.size += member.size
        self._name(member.words)
        for j in member.needs:
            if j not in self.level:
                self._take(j, self._level_of(j))

    def _name(self, words: Iterable[str]) -> None:
        """Words that the document now has, and the members that come with them."""
        todo = [word for word in words if word not in self._words]
        self._words.update(todo)
        for word in todo:
            for i, place in self._absent.pop(word, ()):
                self._keep(i, place)

    def _declaration(self, i: int) -> Iterable[int]:
        return () if i in self.members else super()._declaration(i)
