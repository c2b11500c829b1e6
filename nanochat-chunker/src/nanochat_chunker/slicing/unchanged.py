"""What of a file's index stays as it is when the file is parsed anew.

The text is the same. What may differ is which parts of it the configuration leaves out, and which
names are macros. Parsing an item looks at nothing but its code, the next character of code behind
it, and what the names in it mean as macros: an item stays where none of these differs.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import NamedTuple

from nanochat_chunker.slicing.brackets import Brackets
from nanochat_chunker.slicing.items import Item
from nanochat_chunker.slicing.macro_shapes import Guess, MacroShapes
from nanochat_chunker.slicing.macros import Lookup
from nanochat_chunker.slicing.model import FileIndex
from nanochat_chunker.slicing.names import places_of
from nanochat_chunker.slicing.preprocess import Prepared

# Always made anew: parsing makes no directives, and a statement hangs on what its first word is.
_NEVER = frozenset(("define", "undef", "include", "statement"))
_ALONE = re.compile(r"[ \t]*(?=[\n{}()\[\];]|\Z)")
_CALLED = re.compile(r"\s*\(")
_BEFORE_PARENTHESES = re.compile(r"[\s&*>]+\(\s*[A-Za-z_]\w*\s*\)\s*\(")
_INITIALISERS = re.compile(r"\s*:")

Span = tuple[int, int]
Mention = tuple[int, str]  # where, and the name


class Earlier(NamedTuple):
    """An index, the macros it was made with, and the same file as it is to be parsed now."""

    index: FileIndex
    macros: Lookup
    prepared: Prepared


class Unchanged:
    """The items of an earlier index that a parse makes again as they are.

    Their scope and their comment hang on what comes before them, and may be others.
    """

    def __init__(self, earlier: Earlier, shapes: MacroShapes, brackets: Brackets) -> None:
        index, macros, prepared = earlier
        self._index = index
        self._clean = prepared.clean
        self._brackets = brackets
        self._before, self._now = MacroShapes(macros, prepared.clean), shapes
        self._others = {name for name in index.asked if macros(name) != shapes.macro(name)}
        self._mentions = self._find_mentions() if self._others else []
        self._same: dict[Mention, bool] = {}
        changes = sorted((*_cuts(index, prepared), *_directives(index, prepared)))
        self._starts = [start for start, _ in changes]
        self._ends = [0, *accumulate((end for _, end in changes), max)]  # of all up to each

    def items(self) -> Mapping[int, Item]:
        """Those outside of classes, by where they begin, whether they stay or not."""
        return {item.begin: item for item in self._index.items if item.kind not in _NEVER}

    def members(self, item: Item | None, body: int) -> Mapping[int, Item]:
        """Those of a class whose body begins at `body`, if its head stays as it is."""
        if item is None or item.tail != body or not self._is_same(item.begin, body + 1, body):
            return {}
        return {member.begin: member for member in item.members}

    def stays(self, item: Item) -> bool:
        """Whether an item comes out as it was."""
        return (
            self._is_same(item.begin, item.end, self._end_of_head(item))
            # Whether the `;` of a class is still to come is looked for far behind.
            and (item.kind not in ("class", "enum") or self._clean[item.end - 1] == ";")
            # `EXPORT DECLARE(x);`
            and (item.kind != "prototype" or self._others.isdisjoint(item.names))
        )

    def guesses(self, kept: Mapping[int, int]) -> Iterator[tuple[Guess, int]]:
        """The guesses in items that begin and end as `kept` says, at what is still no macro."""
        begins = list(kept)
        for guess, places in self._index.guesses:
            if guess.name not in self._others:
                for place in places:
                    i = bisect_right(begins, place)
                    if i and place < kept[begins[i - 1]]:
                        yield guess, place

    def _is_same(self, begin: int, end: int, head: int) -> bool:
        """Whether code up to `end` is what it was, and names before `head` mean the same."""
        if self._ends[bisect_left(self._starts, end)] > begin:
            return False
        first, last = (bisect_left(self._mentions, (place, "")) for place in (begin, head))
        return all(map(self._tells_same, self._mentions[first:last]))

    def _end_of_head(self, item: Item) -> int:
        """Behind all names of an item that parsing may ask for: not those in a function's body."""
        if item.kind not in ("function", "call") or item.tail < 0:
            return item.end
        return item.end if _INITIALISERS.match(self._clean, item.tail) else item.tail

    def _find_mentions(self) -> list[Mention]:
        """Where names are that do not mean what they did, and macros that may call such ones."""
        return sorted(
            (at, name)
            for name in self._index.asked
            if name in self._others or self._now.macro(name) is not None
            for at in places_of(name, self._clean)
        )

    def _tells_same(self, mention: Mention) -> bool:
        """Whether all that parsing may ask of a name at this place has the same answer."""
        if mention not in self._same:
            at, name = mention
            was_macro = name in self._others and self._before.macro(name) is not None
            self._same[mention] = not was_macro and self._asks_same(name, at)
        return self._same[mention]

    def _asks_same(self, name: str, at: int) -> bool:
        before, now = self._before, self._now
        end = at + len(name)
        if _ALONE.match(self._clean, end) and before.bare(name, at) != now.bare(name, at):
            return False
        called = _CALLED.match(self._clean, end)
        if called is not None:
            places, partner = self._brackets.at, self._brackets.partner
            close = partner[bisect_left(places, called.end() - 1)]
            after = places[close] + 1
            if close >= 0 and before.call(name, after, None) != now.call(name, after, None):
                return False
        return before.is_function(name) == now.is_function(name) or not (
            _BEFORE_PARENTHESES.match(self._clean, end)
        )


def _cuts(index: FileIndex, prepared: Prepared) -> Iterator[Span]:
    """What only one of both leaves out, each from the last code before it on."""
    last = 0
    for start, end in sorted(set(index.cuts) ^ set(prepared.cuts)):
        yield last + len(prepared.clean[last:start].rstrip()) - 1, end
        last = max(last, end)


def _directives(index: FileIndex, prepared: Prepared) -> Iterator[Span]:
    """What only one of both finds among the directives, conditions aside."""
    before, now = (
        {event for event in events if event.kind != "if"}
        for events in (index.events, prepared.events)
    )
    for event in before ^ now:
        yield event.start, event.end
