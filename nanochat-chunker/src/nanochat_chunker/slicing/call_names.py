"""The names that calls of macros declare and use, by their expansion."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from nanochat_chunker.slicing.macros import Lookup, Table, expand
from nanochat_chunker.slicing.names import KEYWORDS, names_in
from nanochat_chunker.slicing.parsing import parse
from nanochat_chunker.slicing.stand_ins import Filling, filled, has_stand_in

_DECLARED = re.compile(r"[\w:~]+|[\w:]*operator.*", re.DOTALL)


class CallNames(NamedTuple):
    """The names that a call declares, and those that it uses.

    `made` are uses with stand-ins, each with the namespace around.
    """

    declared: tuple[str, ...]
    uses: frozenset[str]
    made: tuple[tuple[str, str], ...]

    def filled(self, filling: Filling) -> "CallNames | None":
        """The same with arguments in place of stand-ins; None where one is declared but no word."""
        declared = tuple(filled(name, filling) for name in self.declared)
        if not all(map(_DECLARED.fullmatch, declared)):
            return None
        uses = set(self.uses)
        for qualifier, use in self.made:
            around, name = filled(qualifier, filling), filled(use, filling)
            is_plain = name.isidentifier() and name not in KEYWORDS
            for part in (name,) if is_plain else names_in(name):
                uses.update(_with_qualified(part, around))
        return CallNames(declared, frozenset(uses), ())


def read_call(code: str, lookup: Lookup) -> CallNames | None:
    """What a call says; None where it is no macro's."""
    expanded = expand(code, Table(lookup))
    return _read(expanded, lookup) if expanded != code else None


def read_call_with_body(code: str, lookup: Lookup) -> CallNames | None:
    """What `NAME(...)` before a body says."""
    expanded = expand(code, Table(lookup))
    return _read(expanded + "{}", lookup) if expanded != code else None


def _read(code: str, lookup: Lookup) -> CallNames:
    declared: list[str] = []
    uses: set[str] = set()
    made: set[tuple[str, str]] = set()
    for part in parse(code, code, lookup).items:
        qualifier = part.qualifier
        if not part.owner:
            declared += (f"{qualifier}::{name}" if qualifier else name for name in part.names)
        made_around = has_stand_in(qualifier)
        for piece in (part, *part.members):
            for use in (*piece.uses, *piece.body_uses):
                if made_around or has_stand_in(use):
                    made.add((qualifier, use))
                else:
                    uses.update(_with_qualified(use, qualifier))
    return CallNames(tuple(declared), frozenset(uses), tuple(made))


def _with_qualified(name: str, qualifier: str) -> Iterable[str]:
    """A name used in a namespace, and with the namespace where it may be of it."""
    yield name
    if qualifier and "::" not in name and name[0] != ".":
        yield f"{qualifier}::{name}"
