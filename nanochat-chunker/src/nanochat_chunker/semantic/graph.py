"""What each item needs by libclang's facts, in place of names where there are facts."""

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from nanochat_chunker.semantic.checking import Checker
from nanochat_chunker.semantic.facts import ELSEWHERE, FileFacts, Place
from nanochat_chunker.semantic.mending import CheckedLadder
from nanochat_chunker.slicer import ProjectSlicer
from nanochat_chunker.slicing.graph import Graph
from nanochat_chunker.slicing.items import Item
from nanochat_chunker.slicing.ladder import Ladder
from nanochat_chunker.slicing.model import FileIndex, SliceOptions, Told
from nanochat_chunker.slicing.project import Configured

_WORD = re.compile(r"~?\s*([A-Za-z_]\w*)")
# What makes a name visible and is no referent of it: the compiler looks through it.
# Nor does it tell of macros within macros.
_OPENS = frozenset(("using", "namespace", "define"))
_FULL = re.compile(r"template\s*<\s*>")
_PASTED = re.compile(r"([A-Za-z_]\w{3,})\s*##")
_MAX_PASTED = 80  # macros of one beginning; more say nothing
_MEMBERS = frozenset(("function", "prototype", "variable"))


def semantic_slicer(
    indexes: Sequence[FileIndex],
    facts: Mapping[str, FileFacts],
    read_text: Callable[[str], str],
    options: SliceOptions,
    measure: Callable[[str], int],
    checker: Checker | None = None,
) -> ProjectSlicer:
    """The slicer of a project by the facts of its files, those that fell back among them."""
    told = told_by(facts, indexes)

    def without_facts() -> Graph:
        return Graph(Configured(indexes, read_text, options.project))

    def ladder(graph: Graph, options: SliceOptions, measure: Callable[[str], int]) -> Ladder:
        if checker is None:
            return Ladder(graph, options, measure)
        return CheckedLadder(graph, options, measure, checker, without_facts=without_facts)

    return ProjectSlicer(
        indexes, read_text, options, measure, told,
        lambda project: SemanticGraph(project, facts), ladder,
    )  # fmt: skip


def told_by(facts: Mapping[str, FileFacts], indexes: Iterable[FileIndex]) -> Told:
    """What the facts decide of the configuration."""
    included: dict[tuple[str, str, bool], str | None] = {}
    for index in indexes:
        each = facts.get(index.path)
        targets = dict(each.includes) if each is not None else {}
        for event in index.events:
            # Facts name the place of the `#`, events that of the line.
            if event.kind == "include" and (known := _between(targets, event.start, event.end)):
                key = index.path, str(event.value), event.extra
                included[key] = known if known != index.path else None
    return Told({path: each.skipped for path, each in facts.items()}, included)


def _between(targets: Mapping[int, str], start: int, end: int) -> str:
    return next((path for at, path in targets.items() if start <= at < end), "")


class SemanticGraph(Graph):
    """A graph in which references say what an item needs.

    Names decide as before where clang has no say: in items with errors, in files that fell back,
    and for the names that it could not resolve, such as those that depend on template parameters.
    """

    def __init__(self, project: Configured, facts: Mapping[str, FileFacts]) -> None:
        self._facts = {path: each for path, each in facts.items() if not each.fallback}
        super().__init__(project)
        self._begins = {
            path: [self.items[i].begin for i in ids] for path, ids in self.by_path.items()
        }
        self._macro_names: list[str] = []
        self._redeclared: dict[str, list[int]] = defaultdict(list)  # by USR
        self._usrs: dict[tuple[str, int], str] = {}
        for path, each in self._facts.items():
            for declared in each.declared:
                i = self.item_at(Place(path, declared.offset))
                if i >= 0 and declared.usr and not self._is_member(i):
                    self._usrs[path, declared.offset] = declared.usr
                    self._redeclared[declared.usr].append(i)
        for ids in self._redeclared.values():
            ids.sort()

    def item_at(self, place: Place) -> int:
        """The item that holds a place, or -1."""
        begins = self._begins.get(place.path)
        if not begins:
            return -1
        at = bisect_right(begins, place.offset) - 1
        if at < 0:
            return -1
        i = self.by_path[place.path][at]
        return i if place.offset < self.items[i].end else -1

    def needs(self, i: int, names: Iterable[str], part: str) -> tuple[int, ...]:
        names = set(names)
        facts = self._facts.get(self.paths[i])
        item = self.items[i]
        if facts is None or _any_in(facts.errors, item.begin, item.end):
            return self.lookup.resolve(i, names)
        if item.kind == "define":
            # What its expansion means is known where it is expanded, macros within it aside.
            inner = {name for name in names if name in self.symbols.macros}
            inner.update(self._pasted_names(i))
            return tuple(j for j in self.lookup.resolve(i, inner) if self.items[j].kind == "define")
        found: set[int] = set()
        covered: set[str] = set()
        text = self.project.text(self.paths[i])
        for begin, end in _spans(item, part):
            for n in range(bisect_left(facts.offsets, begin), bisect_left(facts.offsets, end)):
                word = _WORD.match(text, facts.offsets[n])
                if word is not None:
                    covered.add(word[1])
                target = facts.targets[n]
                if target != ELSEWHERE:
                    found.update(self._meant(i, facts.places[target - 1]))
        open_names = {
            name for name in names if name.rpartition("::")[2].lstrip("~.") not in covered
        }
        if "inner" in item.flags:
            open_names = names
        found.update(self.lookup.resolve(i, open_names))
        by_name = self.lookup.resolve(i, names - open_names)
        found.update(j for j in by_name if self.items[j].kind in _OPENS)
        found.discard(i)
        return tuple(sorted(found))

    def types(self, j: int) -> tuple[int, ...]:
        """Those that must be there before a specialisation comes along unasked.

        None for a partial one beside its template: it may be what decides, for whatever types.
        """
        item = self.items[j]
        if "special" in item.flags and item.names and not self._is_full(j):
            scope = self.qualifiers[j]
            name = f"{scope}::{item.names[0]}" if scope else item.names[0]
            for k in self.symbols.table.get(name, ()):
                if self.paths[k] == self.paths[j] and "special" not in self.items[k].flags:
                    return ()
        return super().types(j)

    def _is_full(self, j: int) -> bool:
        """Whether a specialisation leaves no parameter open."""
        text = self.project.text(self.paths[j])
        return _FULL.match(text, self.items[j].begin) is not None

    def _pasted_names(self, i: int) -> Iterator[str]:
        """The macros that a macro may make with `NAME_##x`, all that begin so."""
        item = self.items[i]
        if "pastes" not in item.flags:
            return
        text = self.project.text(self.paths[i])[item.begin : item.end]
        if not self._macro_names:
            self._macro_names = sorted(self.symbols.macros)
        for prefix in set(_PASTED.findall(text)):
            at = bisect_left(self._macro_names, prefix)
            until = bisect_left(self._macro_names, prefix + "\x7f")
            if until - at <= _MAX_PASTED:
                yield from self._macro_names[at:until]

    def _meant(self, i: int, place: Place) -> list[int]:
        """The items that a reference from item `i` to a declaration needs."""
        j = self.item_at(place)
        if j < 0 or (j == i and place.usr not in self._redeclared):
            return []
        if self._is_member(j):
            # Declared in its class; the class is what a use of it needs.
            return self._class_of(j)
        usr = place.usr
        if usr not in self._redeclared:  # of an instantiation: that of its template
            usr = self._usrs.get((place.path, place.offset), "")
        if not usr:
            return [j]
        # The last declaration that clang knows of may be one that the file itself does not see.
        path = self.paths[i]
        for seen in (self.project.closure[path], self.project.context(path)):
            group = tuple(k for k in self._redeclared[usr] if seen >> self.bits[k] & 1)
            found = self.lookup.needed(i, group) if len(group) > 1 else group
            chosen = [k for k in found if k != i]
            if chosen:
                return chosen
        return [j] if j != i else []

    def _is_member(self, i: int) -> bool:
        """Whether an item is a member of a class, defined out of line."""
        item = self.items[i]
        return item.kind in _MEMBERS and bool(item.owner)

    def _class_of(self, j: int) -> list[int]:
        """The class of a member that is defined out of line."""
        owner = self.symbols.owner_of(self.items[j])
        while owner:  # outwards: nested classes are no items
            named = self.symbols.table.get(owner, ())
            classes = [k for k in named if self.items[k].kind == "class"]
            if classes:
                return classes[-1:]
            owner = owner.rpartition("::")[0]
        return []


def _any_in(places: tuple[int, ...], begin: int, end: int) -> bool:
    at = bisect_left(places, begin)
    return at < len(places) and places[at] < end


def _spans(item: Item, part: str) -> Iterator[tuple[int, int]]:
    """The stretches of text that make up a part of an item."""
    if item.kind == "class" and item.members:
        if part == "head":
            yield from _without(item.begin, item.end, ((m.begin, m.end) for m in item.members))
        elif part == "body":
            yield from _bodies(item.members)
        else:
            yield from _without(item.begin, item.end, _bodies(item.members))
    elif item.kind == "function" and item.tail >= 0 and not item.needs_body:
        yield (item.tail, item.end) if part == "body" else (item.begin, item.tail)
    elif part != "body" or item.kind == "call":
        yield item.begin, item.end


def _bodies(members: Iterable[Item]) -> Iterator[tuple[int, int]]:
    for member in members:
        if member.members:
            yield from _bodies(member.members)
        elif member.kind == "function" and member.tail >= 0 and not member.needs_body:
            yield member.tail, member.end


def _without(begin: int, end: int, holes: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    at = begin
    for left, right in holes:
        if left > at:
            yield at, left
        at = max(at, right)
    if at < end:
        yield at, end
