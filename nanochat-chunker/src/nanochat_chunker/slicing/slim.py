"""Closures that take less than all of what is named: for roots that need too much."""

from collections.abc import Iterable, Mapping
from typing import ClassVar

from nanochat_chunker.slicing.closure import Closure, Detail
from nanochat_chunker.slicing.graph import Graph
from nanochat_chunker.slicing.items import DECLARED, FULL


class UsedMembers(Closure):
    """Classes come with their data, and of their functions and types only those that are named.

    A member counts as named where the document has its name anywhere. So what overrides a function
    stays or goes with it.
    """

    _GROWS: ClassVar[tuple[str, ...]] = (
        *Closure._GROWS,
        "_parted",
        "_kept",
        "_words",
        "_member_names",
        "_fresh",
        "_wanted",
    )

    def __init__(self, graph: Graph, path: str, detail: Detail, limit: float) -> None:
        super().__init__(graph, path, detail, limit)
        self._parted: set[int] = set()  # classes without some of their members
        self._kept: set[tuple[int, int]] = set()  # the members of those that stay, by place
        self._words: set[str] = set()  # of the document
        self._member_names: set[str] = set()  # in all parted classes
        self._fresh: list[frozenset[str]] = []  # words to come
        self._wanted: list[int] = []  # items to come

    @property
    def members(self) -> Mapping[int, frozenset[int]]:
        """Of each class that is not whole the members that stay, by place."""
        found = {i: set(self.graph.slots(i).always) for i in self._parted}
        for i, place in self._kept:
            if i in found:
                found[i].add(place)
        return {i: frozenset(places) for i, places in found.items()}

    def _take(self, i: int, level: int) -> None:
        before = self.level.get(i, 0)
        if before >= level:
            return
        graph = self.graph
        item = graph.items[i]
        if item.kind != "class" or level == FULL or not item.members:
            if i in self._parted:
                self._unpart(i)
            super()._take(i, level)
            self._fresh.append(graph.words(i, level == FULL))
            return
        self.level[i] = DECLARED
        self._todo.append(i)
        self._parted.add(i)
        slots = graph.slots(i)
        self.size += slots.size
        self._fresh.append(slots.words)
        self._member_names.update(slots.named)
        for name in slots.named.keys() & self._words:
            self._keep(i, slots.named[name])

    def _unpart(self, i: int) -> None:
        self._parted.discard(i)
        members = [self.graph.member(*key) for key in self._kept if key[0] == i]
        self.size -= self.graph.slots(i).size + sum(member.size for member in members)
        del self.level[i]

    def _keep(self, i: int, places: Iterable[int]) -> None:
        for place in places:
            key = (i, place)
            if key not in self._kept:
                self._kept.add(key)
                member = self.graph.member(i, place)
                self.size += member.size
                self._fresh.append(member.words)
                self._wanted.extend(member.needs)

    def _drain(self) -> None:
        while self.size <= self.limit:
            if self._todo:
                super()._drain()
            elif self._wanted:
                wanted = set(self._wanted).difference(self.level)
                self._wanted.clear()
                for j in wanted:
                    self._take(j, self._level_of(j))
            elif self._fresh:
                words = set().union(*self._fresh)
                self._fresh.clear()
                self._name(words - self._words)
            else:
                return

    def _name(self, words: set[str]) -> None:
        """Words that the document now has, and the members that come with them."""
        self._words |= words
        for name in words & self._member_names:
            for i in self.graph.with_member(name) & self._parted:
                self._keep(i, self.graph.slots(i).named[name])

    def _needs(self, i: int) -> frozenset[int]:
        return self.graph.slots(i).needs if i in self._parted else super()._needs(i)
