"""The macros of a project where they are used: what they stand for, declare, and paste."""

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from functools import partial

from nanochat_chunker.slicing.call_names import CallNames, read_call, read_call_with_body
from nanochat_chunker.slicing.index import blank_literals
from nanochat_chunker.slicing.items import Item
from nanochat_chunker.slicing.macro_words import is_macro_word
from nanochat_chunker.slicing.macros import Lookup, Macro, Table, expand
from nanochat_chunker.slicing.names import names_in, places_of
from nanochat_chunker.slicing.ordering import Ordered
from nanochat_chunker.slicing.pastes import Pastes, find_pastes
from nanochat_chunker.slicing.stand_ins import Answers, filled, has_stand_in

_MAX_CALLS = 200  # different calls of one macro that are looked at within one item
_MAX_CALL = 2000  # characters of one
_OPENS = re.compile(r"\s*\(")
_PARENTHESIS = re.compile(r"[()]")

# The definitions of each macro, by place in the project's order.
Values = Mapping[str, Sequence[tuple[int, Macro]]]


class Macros:
    """What `#define`s say, by name and in the project's order."""

    def __init__(self, ordered: Ordered) -> None:
        self._ordered = ordered
        self._project = ordered.project
        self._values = self._read()
        self.pasting = self._find_pasting()
        defines = self._project.defines
        self._without_body = Answers(read_call, defines, is_macro_word)
        self._with_body = Answers(read_call_with_body, defines, is_macro_word)
        self._made = Answers(partial(_names_made, self.pasting), defines)
        self._found_pastes = Answers(partial(find_pastes, self.pasting), defines)
        self._pastes: dict[tuple[str, str], Pastes | None] = {}
        self._tables: dict[str, Table] = {}
        self._expanded: dict[tuple[str, str], frozenset[str]] = {}

    def value(self, name: str, i: int, seen: int) -> Macro | None:
        """What a macro stands for at item `i`: its last definition before, in files of `seen`."""
        return _last_before(self._values, self._ordered.bits, i, seen, name)

    def before(self, ids: Sequence[int], i: int) -> int:
        """Of the definitions of one name the one in force at item `i`, or -1."""
        place = bisect_left(ids, i)
        if place > 0:
            return ids[place - 1]
        bits = self._ordered.bits
        return next((j for j in ids if bits[j] == bits[i]), -1)

    def declared(self, i: int) -> Item:
        """A macro call with the names that its expansion declares and uses."""
        item, path = self._ordered.items[i], self._ordered.paths[i]
        if not any(self._project.defines(use) for use in item.uses):
            return item
        bodied = item.tail >= 0  # `ACTION(name) { ... }`
        code = self._project.text(path)[item.begin : item.tail if bodied else item.end]
        said = self._said(i, self._project.context(path), code, bodied)
        if said is None:
            return item
        names, uses = said.declared, said.uses
        if bodied:  # names made of the call's arguments: others are not this call's alone
            words = set(names_in(code.partition("(")[2]))
            names = tuple(name for name in names if any(word in name for word in words))
            if not names:
                return item
        return replace(
            item, names=tuple(dict.fromkeys(names)), owner="",
            uses=tuple(sorted(uses.union(item.uses))), members=(), flags=item.flags | {"expanded"},
        )  # fmt: skip

    def _said(self, i: int, seen: int, code: str, bodied: bool) -> CallNames | None:
        """What a call at item `i` says; None where it is no macro's."""

        def lookup(name: str) -> Macro | None:
            return self.value(name, i, seen)

        answers = self._with_body if bodied else self._without_body
        said, filling = answers.ask(code, lookup)
        if said is None or not filling:
            return said
        return said.filled(filling) or answers.exactly(code, lookup)

    def pasted(self, i: int, name: str) -> Set[str]:
        """The names that calls of the pasting macro `name` within item `i` make."""
        item, path = self._ordered.items[i], self._ordered.paths[i]
        at_end = self._at_end(path)
        if item.kind == "define" or at_end[name] is None:
            return frozenset()
        key = (name, path)
        if key not in self._pastes:
            self._pastes[key] = self._found_pastes.exactly(name, at_end.__getitem__)
        pastes = self._pastes[key]
        if pastes is None:
            made: set[str] = set()
            for call in self._calls(i, name):
                made |= self._by_expansion(path, call)
            return made
        return pastes.made_by(self._calls(i, name)) if pastes.open else pastes.fixed

    def _read(self) -> dict[str, list[tuple[int, Macro]]]:
        values: dict[str, list[tuple[int, Macro]]] = defaultdict(list)
        at: dict[str, dict[int, Macro]] = {}
        for i, item in enumerate(self._ordered.items):
            if item.kind == "define":
                path = self._ordered.paths[i]
                if path not in at:
                    events = self._project.files[path].events
                    at[path] = {e.start: e.value for e in events if isinstance(e.value, Macro)}
                macro = at[path].get(item.begin)
                if macro is not None:
                    values[macro.name].append((i, macro))
        return values

    def _find_pasting(self) -> frozenset[str]:
        """Macros that make names with `##`, themselves or through another."""
        defines = [item for item in self._ordered.items if item.kind == "define"]
        users: dict[str, list[str]] = defaultdict(list)
        for item in defines:
            for use in item.uses:
                for part in use.split("::"):
                    users[part].append(item.names[0])
        todo = [item.names[0] for item in defines if "pastes" in item.flags]
        found = set(todo)
        while todo:
            more = [user for user in users[todo.pop()] if user not in found]
            found.update(more)
            todo.extend(more)
        return frozenset(found)

    def _at_end(self, path: str) -> Table:
        """The macros as they are at the end of a file."""
        found = self._tables.get(path)
        if found is None:
            last, seen = self._ordered.by_path[path][-1], self._project.context(path)
            look = partial(_last_before, self._values, self._ordered.bits, last, seen)
            found = self._tables[path] = Table(look)
        return found

    def _by_expansion(self, path: str, call: str) -> frozenset[str]:
        """The names in the expansion of a call in a file, macros that paste nothing left alone."""
        found = self._expanded.get((path, call))
        if found is not None:
            return found
        names, filling = self._made.ask(call, self._at_end(path).__getitem__)
        if filling:
            made = {name for name in names if has_stand_in(name)}
            names = names - made
            for name in made:
                names = names.union(names_in(blank_literals(filled(name, filling))))
        self._expanded[path, call] = names
        return names

    def _calls(self, i: int, name: str) -> list[str]:
        """The different calls of a macro within an item."""
        item = self._ordered.items[i]
        code = self._project.text(self._ordered.paths[i])
        calls: dict[str, None] = {}
        for start in places_of(name, code, item.begin, item.end):
            if _OPENS.match(code, start + len(name), item.end) is None:
                continue
            depth = 0
            for end in _PARENTHESIS.finditer(code, start, min(item.end, start + _MAX_CALL)):
                depth += 1 if end[0] == "(" else -1
                if depth == 0:
                    calls[code[start : end.end()]] = None
                    break
            if len(calls) >= _MAX_CALLS:
                break
        return list(calls)


def _last_before(values: Values, bits: Sequence[int], i: int, seen: int, name: str) -> Macro | None:
    best: Macro | None = None
    for j, macro in values.get(name, ()):
        if seen >> bits[j] & 1:
            if j > i and best is not None:
                break
            best = macro
    return best


def _names_made(pasting: Set[str], call: str, lookup: Lookup) -> frozenset[str]:
    """The names in the expansion of a call, and its macros that paste nothing."""
    names: set[str] = set()

    def pastes(word: str) -> Macro | None:
        macro = lookup(word)
        if macro is None:
            return None
        names.add(word)
        return macro if macro.params is None or word in pasting else None

    names.update(names_in(blank_literals(expand(call, Table(pastes)))))
    return frozenset(names)


def chain_of(item: Item) -> str:
    """The name that a macro stands for, where it is one: `#define NAMESPACE rocksdb`."""
    if "function" in item.flags or len(item.uses) != 1:
        return ""
    return item.uses[0]
