"""The macros of a project where they are used: what they stand for, declare, and paste."""

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from nanochat_chunker.slicing.index import blank_literals
from nanochat_chunker.slicing.items import Item
from nanochat_chunker.slicing.macros import (
    Lookup,
    Macro,
    Table,
    arguments_at,
    expand,
    tokens_of,
    trimmed,
)
from nanochat_chunker.slicing.names import names_in
from nanochat_chunker.slicing.ordering import Ordered
from nanochat_chunker.slicing.parsing import parse
from nanochat_chunker.slicing.stand_ins import Answers, Filling, filled, has_stand_in

_MAX_CALLS = 200  # different calls of one macro that are looked at within one item
_MAX_CALL = 2000  # characters of one
_WORD = re.compile(r"[A-Za-z_][\w:]*$")
_DECLARED = re.compile(r"[\w:~]+|[\w:]*operator.*", re.DOTALL)
# The parts of a name made with ##: words, and places of parameters.
Paste = tuple[str | int, ...]


class _Said(NamedTuple):
    """The names that a call declares, and those that it uses.

    `made` are uses with stand-ins, each with the namespace around.
    """

    names: tuple[str, ...]
    uses: frozenset[str]
    made: tuple[tuple[str, str], ...]

    def filled(self, filling: Filling) -> "_Said | None":
        """The same with arguments in place of stand-ins; None where one is declared but no word."""
        names = tuple(filled(name, filling) for name in self.names)
        if not all(map(_DECLARED.fullmatch, names)):
            return None
        uses = set(self.uses)
        for qualifier, use in self.made:
            around = filled(qualifier, filling)
            name = filled(use, filling)
            for part in (name,) if name.isidentifier() else names_in(name):
                uses.update(_with_qualified(part, around))
        return _Said(names, frozenset(uses), ())


class Macros:
    """What `#define`s say, by name and in the project's order."""

    def __init__(self, ordered: Ordered) -> None:
        self._ordered = ordered
        self._project = ordered.project
        self._values = self._read()
        self.pasting = self._find_pasting()
        self._pastes: dict[tuple[str, str], tuple[Paste, ...] | None] = {}
        self._without_body = Answers(_read_call, self._project.defines)
        self._with_body = Answers(_read_call_with_body, self._project.defines)
        self._made = Answers(self._read_made, self._project.defines)
        self._at_end: dict[str, Table] = {}  # of each file, the macros as they are at its end
        self._expanded: dict[tuple[str, str], frozenset[str]] = {}

    def value(self, name: str, i: int, seen: int) -> Macro | None:
        """What a macro stands for at item `i`: its last definition before, in files of `seen`."""
        best: Macro | None = None
        bits = self._ordered.bits
        for j, macro in self._values.get(name, ()):
            if seen >> bits[j] & 1:
                if j > i and best is not None:
                    break
                best = macro
        return best

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
        names, uses = said.names, said.uses
        if bodied:  # names made of the call's arguments: others are not this call's alone
            words = set(names_in(code.partition("(")[2]))
            names = tuple(name for name in names if any(word in name for word in words))
            if not names:
                return item
        return replace(
            item, names=tuple(dict.fromkeys(names)), owner="",
            uses=tuple(sorted(uses.union(item.uses))), members=(), flags=item.flags | {"expanded"},
        )  # fmt: skip

    def _said(self, i: int, seen: int, code: str, bodied: bool) -> _Said | None:
        """What a call at item `i` says; None where it is no macro's."""

        def lookup(name: str) -> Macro | None:
            return self.value(name, i, seen)

        answers = self._with_body if bodied else self._without_body
        said, filling = answers.ask(code, lookup)
        if said is None or not filling:
            return said
        return said.filled(filling) or answers.exactly(code, lookup)

    def pasted(self, i: int, name: str) -> set[str]:
        """The names that calls of the pasting macro `name` within item `i` make."""
        item, path = self._ordered.items[i], self._ordered.paths[i]
        if item.kind == "define":
            return set()
        seen = self._project.context(path)
        macro = self.value(name, i, seen)
        if macro is None:
            return set()
        key = (name, path)
        if key not in self._pastes:
            last = self._ordered.by_path[path][-1]
            self._pastes[key] = self._find_pastes(name, last, seen, frozenset())
        pastes = self._pastes[key]
        if pastes is None:
            made: set[str] = set()
            for call in self._calls(i, name):
                made |= self._by_expansion(path, call)
            return made
        names = {"".join(map(str, paste)) for paste in pastes if _is_constant(paste)}
        open_ones = [paste for paste in pastes if not _is_constant(paste)]
        if open_ones:
            for call in self._calls(i, name):
                arguments = _split(call)
                for paste in open_ones:
                    names.add("".join(_filled(paste, arguments)))
        return {made for made in names if _WORD.match(made)}

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

    def _find_pastes(
        self, name: str, i: int, seen: int, within: frozenset[str]
    ) -> tuple[Paste, ...] | None:
        """The names that calls of a macro make; None where only expansion can tell."""
        macro = self.value(name, i, seen)
        if macro is None or macro.params is None or name in within:
            return ()
        tokens = [token for token in tokens_of(macro.body) if not token.isspace()]
        places = {param: k for k, param in enumerate(macro.params)}
        found: dict[Paste, None] = {}
        at = 0
        while at < len(tokens):
            token = tokens[at]
            if at + 1 < len(tokens) and tokens[at + 1] == "##":
                made = [*_scope_before(tokens, at, places), places.get(token, token)]
                while at + 2 < len(tokens) and tokens[at + 1] == "##":
                    made.append(places.get(tokens[at + 2], tokens[at + 2]))
                    at += 2
                if tokens[at + 1 : at + 2] == ["("] or "__VA_ARGS__" in places:
                    return None
                found[tuple(made)] = None
            elif token in self.pasting and tokens[at + 1 : at + 2] == ["("]:
                inner = self._find_pastes(token, i, seen, within | {name})
                if inner is None:
                    return None
                arguments = arguments_at(tokens, at + 1)[0] or ()
                scope = _scope_before(tokens, at, places)
                for paste in inner:
                    filled = self._within(paste, arguments, places, i, seen)
                    if filled is None:
                        return None
                    found[(*scope, *filled)] = None
            at += 1
        return tuple(found)

    def _within(
        self,
        paste: Paste,
        arguments: Sequence[Sequence[str]],
        places: dict[str, int],
        i: int,
        seen: int,
    ) -> Paste | None:
        """A paste of an inner macro in terms of the outer one's parameters."""
        made: list[str | int] = []
        for part in paste:
            if isinstance(part, str):
                made.append(part)
                continue
            argument = arguments[part] if part < len(arguments) else ()
            if len(argument) > 1:
                return None
            for token in argument:
                macro = self.value(token, i, seen) if token not in places else None
                if macro is not None and macro.params is None:
                    token = macro.body.strip()
                made.append(places.get(token, token))
        return tuple(made)

    def _by_expansion(self, path: str, call: str) -> frozenset[str]:
        """The names in the expansion of a call in a file, macros that paste nothing left alone."""
        found = self._expanded.get((path, call))
        if found is not None:
            return found
        at_end = self._at_end.get(path)
        if at_end is None:
            last, seen = self._ordered.by_path[path][-1], self._project.context(path)
            at_end = self._at_end[path] = Table(lambda word: self.value(word, last, seen))
        names, filling = self._made.ask(call, at_end.__getitem__)
        if filling:
            made = {name for name in names if has_stand_in(name)}
            names = names - made
            for name in made:
                names = names.union(names_in(blank_literals(filled(name, filling))))
        self._expanded[path, call] = names
        return names

    def _read_made(self, call: str, lookup: Lookup) -> frozenset[str]:
        """The names in the expansion of a call, and its macros that paste nothing."""
        names: set[str] = set()

        def pasting(word: str) -> Macro | None:
            macro = lookup(word)
            if macro is None:
                return None
            names.add(word)
            return macro if macro.params is None or word in self.pasting else None

        names.update(names_in(blank_literals(expand(call, Table(pasting)))))
        return frozenset(names)

    def _calls(self, i: int, name: str) -> list[str]:
        """The different calls of a macro within an item."""
        item = self._ordered.items[i]
        code = self._project.text(self._ordered.paths[i])[item.begin : item.end]
        calls: dict[str, None] = {}
        if name not in code:
            return []
        for found in re.finditer(rf"\b{name}\s*\(", code):
            depth = 0
            for end in re.finditer(r"[()]", code[found.start() : found.start() + _MAX_CALL]):
                depth += 1 if end.group() == "(" else -1
                if depth == 0:
                    calls[code[found.start() : found.start() + end.end()]] = None
                    break
            if len(calls) >= _MAX_CALLS:
                break
        return list(calls)


def _read_call(code: str, lookup: Lookup) -> _Said | None:
    """What a call says, by its expansion; None where it is no macro's."""
    expanded = expand(code, Table(lookup))
    return _read(expanded, lookup) if expanded != code else None


def _read_call_with_body(code: str, lookup: Lookup) -> _Said | None:
    expanded = expand(code, Table(lookup))
    return _read(expanded + "{}", lookup) if expanded != code else None


def _read(code: str, lookup: Lookup) -> _Said:
    names: list[str] = []
    uses: set[str] = set()
    made: set[tuple[str, str]] = set()
    for part in parse(code, code, lookup).items:
        qualifier = part.qualifier
        if not part.owner:
            names += (f"{qualifier}::{name}" if qualifier else name for name in part.names)
        open_qualifier = has_stand_in(qualifier)
        for piece in (part, *part.members):
            for use in (*piece.uses, *piece.body_uses):
                if open_qualifier or has_stand_in(use):
                    made.add((qualifier, use))
                else:
                    uses.update(_with_qualified(use, qualifier))
    return _Said(tuple(names), frozenset(uses), tuple(made))


def _with_qualified(name: str, qualifier: str) -> Iterable[str]:
    """A name used in a namespace, and with the namespace where it may be of it."""
    yield name
    if qualifier and "::" not in name and name[0] != ".":
        yield f"{qualifier}::{name}"


def chain_of(item: Item) -> str:
    """The name that a macro stands for, where it is one: `#define NAMESPACE rocksdb`."""
    if "function" in item.flags or len(item.uses) != 1:
        return ""
    return item.uses[0]


def _scope_before(tokens: Sequence[str], at: int, places: dict[str, int]) -> Paste:
    """The `a::b::` that stands before a token."""
    start = at
    while start >= 3 and tokens[start - 1] == tokens[start - 2] == ":":
        if not _WORD.match(tokens[start - 3]):
            break
        start -= 3
    return tuple(places.get(token, token) for token in tokens[start:at])


def _is_constant(paste: Paste) -> bool:
    return all(isinstance(part, str) for part in paste)


def _filled(paste: Paste, arguments: Sequence[str]) -> Iterable[str]:
    for part in paste:
        if isinstance(part, str):
            yield part
        elif part < len(arguments):
            yield arguments[part]


def _split(call: str) -> list[str]:
    """The arguments of a call, at commas outside of parentheses."""
    arguments = arguments_at(tokens_of(call), 1)[0] or ()
    return ["".join(trimmed(argument)) for argument in arguments]
