"""What a file is made of: items, with what they define and what they name."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

# Kinds of items that define something: what documents are built around.
DEFINITIONS = frozenset(("function", "class", "enum", "variable", "alias", "call"))


class Frame(NamedTuple):
    """One scope around items: how it opens, and the name it adds; '' where it adds none."""

    opener: str
    name: str


Scope = tuple[Frame, ...]

DECLARED, FULL = 1, 2  # how much of an item a document holds

_WITH_BODY = frozenset(("constexpr", "auto", "attributed"))


@dataclass(slots=True)
class Item:
    """A declaration, a directive, or a member of a class.

    `kind` is one of: function (with its body), prototype, class, forward, enum, variable, extern,
    alias, using, directive (`using namespace`), namespace (an alias of one), assert,
    instantiation, call (of a macro that stands for declarations), define, undef, include, access,
    friend, other.

    `start` takes the comment before it along, `begin` does not. `tail` is where the body of a
    function begins, its initialisers included, or -1: text[begin:tail] + ";" declares it.
    `names` are unqualified. `owner` is the class or namespace written before the name of
    an out-of-line member. `uses` are the names in text[begin:tail], `body_uses` those of the rest;
    names of members begin with a dot. Of a class, `uses` are those outside its members.
    """

    kind: str
    start: int
    begin: int
    end: int
    scope: Scope = ()
    names: tuple[str, ...] = ()
    owner: str = ""
    tail: int = -1
    uses: tuple[str, ...] = ()
    body_uses: tuple[str, ...] = ()
    members: tuple["Item", ...] = ()
    # Words that matter: template, special (a specialisation), constexpr, auto (a deduced return
    # type), attributed (a friend with attributes), local (static or in an unnamed namespace),
    # inner (an #include within)
    flags: frozenset[str] = frozenset()

    @property
    def needs_body(self) -> bool:
        """A function that cannot be used before its body is seen."""
        return not self.flags.isdisjoint(_WITH_BODY)

    @property
    def qualifier(self) -> str:
        """The scope as it is written before a name, unnamed and inline namespaces left out."""
        return _qualifier(self.scope)

    def size(self, declared: bool) -> int:
        """The length of its text, with or without bodies; what a configuration cuts counts too."""
        if not declared:
            return self.end - self.start
        if self.kind == "function" and self.tail >= 0:
            return self.tail - self.start + 1
        return self.end - self.start - _bodies(self.members)


@lru_cache(maxsize=1 << 12)
def _qualifier(scope: Scope) -> str:
    return "::".join(frame.name for frame in scope if frame.name)


def flatten(members: tuple[Item, ...]) -> Iterable[Item]:
    """Members, and those of nested classes."""
    for member in members:
        yield member
        if member.members:
            yield from flatten(member.members)


def _bodies(members: tuple[Item, ...]) -> int:
    total = 0
    for member in members:
        if member.members:
            total += _bodies(member.members)
        elif member.kind == "function" and member.tail >= 0 and not member.needs_body:
            total += member.end - member.tail - 1
    return total
