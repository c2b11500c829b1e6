"""What a graph says of an item: as a whole, or of a class member by member."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from nanochat_chunker.slicing.items import Item, flatten

_ALWAYS = frozenset("variable access using other call assert".split())  # members that stay
# Members that templates of the standard library ask for.
_ASKED_FOR = frozenset(
    "char_type int_type off_type pos_type state_type comparison_category value_type size_type "
    "difference_type pointer const_pointer reference const_reference iterator const_iterator "
    "iterator_category key_type mapped_type allocator_type argument_type result_type "
    "first_argument_type second_argument_type is_transparent is_always_equal rebind type "
    "promise_type".split()
)

Ids = tuple[int, ...]


class Part(NamedTuple):
    """An item, whole or declared: the length of its text, about, and the items it needs."""

    size: int
    needs: frozenset[int]


class Follower(NamedTuple):
    """An item that comes along unasked once all these types are there."""

    item: int
    types: frozenset[int]


class View(dict[int, Sequence[Follower]]):
    """The followers of each item that lie in files which some file sees."""

    def __init__(
        self, followers: Mapping[int, Sequence[Follower]], bits: Sequence[int], seen: int
    ) -> None:
        super().__init__()
        self.seen = seen
        self._followers = followers
        self._bits = bits

    def __missing__(self, i: int) -> Sequence[Follower]:
        bits, seen = self._bits, self.seen
        found = [each for each in self._followers.get(i, ()) if seen >> bits[each.item] & 1]
        self[i] = found
        return found


class Member(NamedTuple):
    """A member of a class: its size, the words in it, the items it needs."""

    size: int
    words: frozenset[str]
    needs: Ids


class Slots(NamedTuple):
    """What always stays of a class, and the places of its other members by their names."""

    size: int
    words: frozenset[str]
    needs: frozenset[int]
    always: Ids
    named: Mapping[str, list[int]]


def declared_names(members: tuple[Item, ...]) -> set[str]:
    """The names in members, bodies of functions aside."""
    names: set[str] = set()
    for member in flatten(members):
        names.update(member.uses)
        if member.kind != "function" or member.needs_body:
            names.update(member.body_uses)
    return names


def words_in(names: Iterable[str]) -> frozenset[str]:
    """Qualified names in parts, those of members without their dots."""
    return frozenset(part for name in names for part in name.lstrip(".").split("::"))


def names_of(item: Item, member: Item) -> tuple[str, ...] | None:
    """The names for which a member stays in its class; None where it always does."""
    if member.kind in _ALWAYS or not (member.names or member.kind == "friend"):
        return None
    if member.kind == "friend":
        return tuple(use.rpartition("::")[2] for use in member.uses)
    name = member.names[0]
    if name in item.names or name in _ASKED_FOR or name.startswith(("operator", "~")):
        return None
    return member.names
