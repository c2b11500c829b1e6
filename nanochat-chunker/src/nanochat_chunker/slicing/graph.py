"""What each item of a project needs: its names resolved to other items, once for all documents."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set

from nanochat_chunker.slicing.expansion import Macros
from nanochat_chunker.slicing.items import DECLARED, FULL, Item, flatten
from nanochat_chunker.slicing.lookup import Lookup
from nanochat_chunker.slicing.names import LastNames, names_in, outermost
from nanochat_chunker.slicing.ordering import Ordered
from nanochat_chunker.slicing.parts import (
    Follower,
    Ids,
    Member,
    Part,
    Slots,
    View,
    declared_names,
    names_of,
    words_in,
)
from nanochat_chunker.slicing.project import Configured
from nanochat_chunker.slicing.symbols import Symbols

_TYPES = frozenset(("class", "enum", "alias", "forward", "using"))
_HAVE_COMPANIONS = frozenset(("alias", "class", "function", "prototype", "forward", "enum"))
_FIRST_ARGUMENT = re.compile(r"\w+\s*\(\s*(\w+)\s*,")
_BEFORE_ARGUMENTS = re.compile(r"([A-Za-z_]\w*)\s*<")
_CLASS_KEY = re.compile(r"\b(?:class|struct|union)\b")
_MAX_BODIES = 4  # overloads of one name whose bodies come along with a call

_MAX_VIEWS = 16
_OVERHEAD = 4  # characters around an item, about


class Graph:
    """Items by place in the project's order, with lazily resolved dependencies."""

    def __init__(self, project: Configured) -> None:
        ordered = Ordered(project)
        self.project = project
        self.items = ordered.items
        self.paths = ordered.paths
        self.by_path = ordered.by_path
        self.bits = ordered.bits
        self.qualifiers = ordered.qualifiers
        macros = Macros(ordered)
        for i, item in enumerate(self.items):
            if item.kind == "call":
                self.items[i] = macros.declared(i)
        self.symbols = Symbols()
        for item in self.items:
            self.symbols.add_namespaces(item)
        for i, item in enumerate(self.items):
            self.symbols.add(i, item)
        self.lookup = Lookup(ordered, self.symbols, macros)
        self.last_names = LastNames()
        self._decl: dict[int, Ids] = {}
        self._body: dict[int, Ids] = {}
        self._callees: dict[int, Ids] = {}
        self._companions: dict[int, Ids] = {}
        self._types: dict[int, Ids] = {}
        self._slots: dict[int, Slots] = {}
        self._with_member: dict[str, set[int]] = defaultdict(set)
        self._members: dict[tuple[int, int], Member] = {}
        self._words: dict[tuple[int, bool], frozenset[str]] = {}
        self._whole: list[Part | None] = [None] * len(self.items)
        self._declared: list[Part | None] = [None] * len(self.items)
        self._followers: Mapping[int, Sequence[Follower]] | None = None
        self._views: dict[int, View] = {}
        self._local_types: dict[str, bool] = {}
        self._calls: dict[str, dict[str, list[int]]] = {}  # by path and first argument
        # How much of each item comes along where it is only needed; 0: that depends.
        self.needed_level = bytes(
            0 if item.kind == "class"
            else DECLARED if item.kind == "function" and not item.needs_body
            else FULL
            for item in self.items
        )  # fmt: skip

    def declaration(self, i: int) -> Ids:
        """What the declaration of an item needs; of a class, with its members declared."""
        found = self._decl.get(i)
        if found is None:
            item = self.items[i]
            names = {*item.uses, *declared_names(item.members)}
            if item.kind in ("call", "enum", "class") or item.needs_body:
                names.update(item.body_uses)
            if "inner" in item.flags:
                names.update(self._inner_names(i))
            if item.owner:
                names.add(item.owner)
            found = self.needs(i, names, "declaration")
            if item.kind == "call" and "body" in item.flags and "expanded" not in item.flags:
                found = tuple(sorted({*found, *self._calls_before(i)}))
            self._decl[i] = found
        return found

    def _calls_before(self, i: int) -> list[int]:
        """Calls that a call with a body needs before it, both of macros that no file defines.

        Those of the same first argument: `TYPED_TEST_SUITE(Case, Types)` of `TYPED_TEST(Case, It)`.
        """
        path = self.paths[i]
        calls = self._calls.get(path)
        if calls is None:
            calls = self._calls[path] = defaultdict(list)
            for j in self.by_path[path]:
                if self.items[j].kind == "call" and not self.items[j].flags & {"body", "expanded"}:
                    calls[self._first_argument(j)].append(j)
        first = self._first_argument(i)
        return [j for j in calls.get(first, ()) if j < i] if first else []

    def _first_argument(self, i: int) -> str:
        item = self.items[i]
        found = _FIRST_ARGUMENT.match(self.project.text(self.paths[i]), item.begin, item.end)
        return found[1] if found is not None else ""

    def slots(self, i: int) -> Slots:
        """A class parted into what always stays of it and what stays where it is named."""
        found = self._slots.get(i)
        if found is None:
            item = self.items[i]
            places = [names_of(item, member) for member in item.members]
            always = tuple(place for place, names in enumerate(places) if names is None)
            kept = tuple(item.members[place] for place in always)
            names = {item.owner, *item.names, *item.uses, *item.body_uses, *declared_names(kept)}
            named: dict[str, list[int]] = defaultdict(list)
            for place, words in enumerate(places):
                for word in words or ():
                    named[word].append(place)
                    self._with_member[word].add(i)
            found = self._slots[i] = Slots(
                item.size(True) - sum(m.size(True) for m in item.members if m not in kept),
                words_in(names),
                frozenset(self.needs(i, names - {""}, "head")),
                always,
                named,
            )
        return found

    def with_member(self, name: str) -> Set[int]:
        """The classes, of those parted so far, with a member of this name that may go."""
        return self._with_member[name]

    def member(self, i: int, place: int) -> Member:
        """One member of a class, declared."""
        key = (i, place)
        found = self._members.get(key)
        if found is None:
            member = self.items[i].members[place]
            names = declared_names((member,))
            found = self._members[key] = Member(
                member.size(True), words_in({*names, *member.names}), self.lookup.resolve(i, names)
            )
        return found

    def words(self, i: int, full: bool) -> frozenset[str]:
        """The words of an item: of a function with its body, of a class with its members."""
        key = (i, full)
        found = self._words.get(key)
        if found is None:
            item = self.items[i]
            names = {*item.names, item.owner, *item.uses}
            if full or item.kind != "function" or item.needs_body:
                names.update(item.body_uses)
            if full:
                for member in flatten(item.members):
                    names.update(member.uses)
                    names.update(member.body_uses)
            found = self._words[key] = words_in(names)
        return found

    def body(self, i: int) -> Ids:
        """What the bodies of an item need beyond its declaration."""
        found = self._body.get(i)
        if found is None:
            item = self.items[i]
            names = set(item.body_uses)
            for member in flatten(item.members):
                names.update(member.body_uses)
            found = self._body[i] = self.needs(i, names, "body") if names else ()
        return found

    def callees(self, i: int) -> Ids:
        """The functions whose bodies may come along with that of `i`."""
        found = self._callees.get(i)
        if found is None:
            ids: list[int] = []
            for j in self.body(i):
                kind = self.items[j].kind
                if kind == "function":
                    ids.append(j)
                elif kind == "prototype":
                    ids.extend(self._bodies(j))
            found = self._callees[i] = tuple(dict.fromkeys(ids))
        return found

    def needs(self, i: int, names: Iterable[str], part: str) -> Ids:
        """What a part of an item needs: its declaration, its body, or the head of a class.

        The place where facts other than names come in.
        """
        return self.lookup.resolve(i, names)

    def has_local_types(self, path: str) -> bool:
        """Whether a file has classes in an unnamed namespace."""
        found = self._local_types.get(path)
        if found is None:
            found = self._local_types[path] = any(
                self.items[i].kind == "class" and "local" in self.items[i].flags
                for i in self.by_path.get(path, ())
            )
        return found

    def part(self, i: int, full: bool) -> Part:
        """An item with its bodies, if `full`, or without."""
        parts = self._whole if full else self._declared
        found = parts[i]
        if found is None:
            needs = frozenset(self.declaration(i))
            if full:
                needs = needs.union(self.body(i))
            found = parts[i] = Part(self.items[i].size(not full) + _OVERHEAD, needs)
        return found

    def types(self, j: int) -> Ids:
        """The types without which an operator or a specialisation is of no use.

        Those that a declaration names; of a specialised class, those that it is specialised for,
        `B` in `template <class T> struct A<B<T>, void_t<C>>`.
        """
        found = self._types.get(j)
        if found is None:
            item = self.items[j]
            if item.kind != "class":
                ids = self.declaration(j)
            elif "special" in item.flags:
                ids = self.lookup.resolve(j, self._specialised_for(j))
                ids = tuple(k for k in ids if not self._is_alias_template(k))
            else:
                ids = self.needs(j, item.uses, "head")
            found = self._types[j] = tuple(k for k in ids if self.items[k].kind in _TYPES)
        return found

    def _is_alias_template(self, k: int) -> bool:
        return self.items[k].kind == "alias" and "template" in self.items[k].flags

    def _specialised_for(self, j: int) -> tuple[str, ...]:
        item = self.items[j]
        head = self.project.text(self.paths[j])[
            item.begin : item.tail if item.tail > 0 else item.end
        ]
        for named in _BEFORE_ARGUMENTS.finditer(head):
            if named[1] == item.names[0]:
                since = max(head.rfind(mark, 0, named.start()) for mark in ";{}") + 1
                if _CLASS_KEY.search(head, since, named.start()):
                    return names_in(outermost(head[named.end() :]))
        return item.uses

    def companions(self, i: int) -> Ids:
        """What no name asks for once `i` is there.

        Specialisations, nested classes defined out of line, the definition of what was declared
        forward. Operators are more than companions of one item: see `followers`.
        """
        found = self._companions.get(i)
        if found is None:
            item = self.items[i]
            found = ()
            if item.names and item.kind in _HAVE_COMPANIONS:
                found = tuple(dict.fromkeys(self._find_companions(i, item)))
            self._companions[i] = found
        return found

    @property
    def followers(self) -> Mapping[int, Sequence[Follower]]:
        """By item what comes along without being named, and the types it waits for."""
        if self._followers is None:
            self._followers = self.find_followers()
        return self._followers

    def view(self, path: str) -> View:
        """What a file sees."""
        return self.view_of(self.project.context(path))

    def view_of(self, seen: int) -> View:
        """What is in some files; the last few are kept."""
        found = self._views.get(seen)
        if found is None:
            if len(self._views) >= _MAX_VIEWS:
                del self._views[next(iter(self._views))]
            found = self._views[seen] = View(self.followers, self.bits, seen)
        return found

    def find_followers(self) -> dict[int, list[Follower]]:
        """Each under one item only; closures keep those that wait for another."""
        found: dict[int, list[Follower]] = defaultdict(list)
        waiting: dict[int, Follower] = {}
        for i, item in enumerate(self.items):
            for j in self.companions(i):
                if item.kind == "forward":
                    found[i].append(Follower(j, frozenset()))
                    continue
                if j not in waiting:
                    waiting[j] = Follower(j, frozenset(self.types(j)))
                found[i].append(waiting[j])
        operators = {j: self.types(j) for j in self.symbols.operators}
        asked = Counter(k for types in operators.values() for k in types)
        for j, types in operators.items():
            if types:
                rarest = min(types, key=lambda k: (asked[k], k))
                found[rarest].append(Follower(j, frozenset(types)))
        return found

    def _qualified(self, i: int) -> str:
        prefix = self.qualifiers[i] + "::" if self.qualifiers[i] else ""
        return prefix + self.items[i].names[0]

    def _find_companions(self, i: int, item: Item) -> Iterable[int]:
        symbols, items = self.symbols, self.items
        name = self._qualified(i)
        yield from (j for j in symbols.special.get(name, ()) if j != i)
        if item.kind == "forward":
            for j in symbols.table.get(name, ()):
                if items[j].kind in ("class", "enum") and "special" not in items[j].flags:
                    yield j
        if item.kind == "class":
            for j in symbols.members.get(name, ()):
                if items[j].kind == "class" or "constexpr" in items[j].flags:
                    yield j

    def _bodies(self, j: int) -> Ids:
        """The definitions of a function that is declared at `j`."""
        item = self.items[j]
        if item.owner or not item.names:
            return ()
        found = tuple(
            k
            for k in self.symbols.table.get(self._qualified(j), ())
            if self.items[k].kind == "function"
        )
        return found if len(found) <= _MAX_BODIES else ()

    def _inner_names(self, i: int) -> set[str]:
        item, path = self.items[i], self.paths[i]
        names: set[str] = set()
        for event in self.project.files[path].events:
            if event.kind == "include" and item.begin < event.start < item.end:
                target = self.project.resolve(path, str(event.value), event.extra)
                if target is not None:
                    for inner in self.project.files[target].items:
                        names.update(inner.uses)
                        names.update(inner.body_uses)
        return names
