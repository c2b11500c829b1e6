"""Names that macros make with `##`."""

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import NamedTuple

from nanochat_chunker.slicing.macros import Lookup, arguments_at, tokens_of, trimmed

_WORD = re.compile(r"[A-Za-z_][\w:]*$")

# The parts of a name made with ##: words, and places of parameters.
_Paste = tuple[str | int, ...]


class Pastes(NamedTuple):
    """The names that calls of a macro make: the same in all, and made of arguments."""

    fixed: frozenset[str]
    open: tuple[_Paste, ...]

    def made_by(self, calls: Iterable[str]) -> set[str]:
        """The names that some calls make."""
        names: set[str] = set()
        for call in calls:
            arguments = arguments_at(tokens_of(call), 1)[0] or ()
            texts = ["".join(trimmed(argument)) for argument in arguments]
            names.update("".join(_filled(paste, texts)) for paste in self.open)
        return {name for name in names if _WORD.match(name)}.union(self.fixed)


def find_pastes(pasting: Set[str], name: str, lookup: Lookup) -> Pastes | None:
    """What calls of a macro paste; None where only expansion can tell.

    `pasting` are the macros that paste, themselves or through another.
    """
    found = _Finder(lookup, pasting).find(name, frozenset())
    if found is None:
        return None
    fixed = ("".join(map(str, paste)) for paste in found if _is_fixed(paste))
    return Pastes(
        frozenset(name for name in fixed if _WORD.match(name)),
        tuple(paste for paste in found if not _is_fixed(paste)),
    )


class _Finder:
    """The pastes of macros by their bodies, one within another."""

    def __init__(self, lookup: Lookup, pasting: Set[str]) -> None:
        self._lookup = lookup
        self._pasting = pasting

    def find(self, name: str, within: frozenset[str]) -> tuple[_Paste, ...] | None:
        macro = self._lookup(name)
        if macro is None or macro.params is None or name in within:
            return ()
        tokens = [token for token in tokens_of(macro.body) if not token.isspace()]
        places = {param: k for k, param in enumerate(macro.params)}
        found: dict[_Paste, None] = {}
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
            elif token in self._pasting and tokens[at + 1 : at + 2] == ["("]:
                inner = self.find(token, within | {name})
                if inner is None:
                    return None
                arguments = arguments_at(tokens, at + 1)[0] or ()
                scope = _scope_before(tokens, at, places)
                for paste in inner:
                    outer = self._in_terms_of(places, paste, arguments)
                    if outer is None:
                        return None
                    found[(*scope, *outer)] = None
            at += 1
        return tuple(found)

    def _in_terms_of(
        self, places: Mapping[str, int], paste: _Paste, arguments: Sequence[Sequence[str]]
    ) -> _Paste | None:
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
                macro = self._lookup(token) if token not in places else None
                if macro is not None and macro.params is None:
                    token = macro.body.strip()
                made.append(places.get(token, token))
        return tuple(made)


def _scope_before(tokens: Sequence[str], at: int, places: Mapping[str, int]) -> _Paste:
    """The `a::b::` that stands before a token."""
    start = at
    while start >= 3 and tokens[start - 1] == tokens[start - 2] == ":":
        if not _WORD.match(tokens[start - 3]):
            break
        start -= 3
    return tuple(places.get(token, token) for token in tokens[start:at])


def _is_fixed(paste: _Paste) -> bool:
    return all(isinstance(part, str) for part in paste)


def _filled(paste: _Paste, arguments: Sequence[str]) -> Iterable[str]:
    for part in paste:
        if isinstance(part, str):
            yield part
        elif part < len(arguments):
            yield arguments[part]
