"""What macros mean to the splitting of code: scopes, declarations, or nothing."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from nanochat_chunker.slicing.items import Frame
from nanochat_chunker.slicing.macros import (
    Lookup,
    Macro,
    Table,
    arguments_at,
    expand,
    is_name,
    tokens_of,
)
from nanochat_chunker.slicing.names import KEYWORDS

CALL = re.compile(r"\s*([A-Za-z_]\w*)\s*$")
_SCOPE_TEXT = re.compile(
    r'\s*(?:(inline\s+)?namespace(\s+[\w:]+)?\s*\{|extern\s*"C(?:\+\+)?"\s*\{|(\}))'
)
_SCOPE_NAME = re.compile(r"BEGIN|END|OPEN|CLOSE|PUSH|POP|DISABLE|ENABLE|RESTORE|IGNORE|NAMESPACE")
_STAND_IN = "an_argument"
_MAX_NAMES = 8  # in the arguments of a call that is taken for a guess
_NOT_CALLED = frozenset(("static_assert", "alignas", "decltype", "__attribute__", "asm"))
_GOES_ON = frozenset((";", "{", "-", ".", "=", ",", ")", ":", "[", "<", "@"))

Frames = list[Frame | None]


class Guess(NamedTuple):
    """What was taken for granted of a name that is no known macro.

    `how` it stands: alone on its line, called, or in a declaration. `result` is what `bare` or
    `call` said. `kinds` are the arguments of its call by what they begin with, or None where only
    the text tells; `names` the names in them. `first` is the character after the call, `alone`
    whether the line ends there.
    """

    name: str
    how: str  # bare, call or declared
    result: str | bool | None
    kinds: tuple[str, ...] | None = None
    names: tuple[str, ...] = ()
    first: str = ""
    alone: bool = False


Guesses = dict[Guess, set[int]]  # with the places in the text


class _Shape(NamedTuple):
    """What a call expands to, as `_meaning` says, and its last character."""

    what: Frames | str | None
    last: str


class MacroShapes:
    """The macros of one file by what they do, and the guesses at names that may be macros."""

    def __init__(self, lookup: Lookup, clean: str = "") -> None:
        self.clean = clean
        self.guesses: Guesses = defaultdict(set)
        self._macros = Table(lookup)
        self._standing: dict[tuple[str, ...], _Shape | None] = {}

    def macro(self, name: str) -> Macro | None:
        """What a name is defined as."""
        return self._macros[name]

    def is_function(self, name: str) -> bool:
        """Whether a name is a macro with parameters."""
        macro = self._macros[name]
        return macro is not None and macro.params is not None

    def asked(self) -> tuple[str, ...]:
        """The names that it mattered for whether they are macros."""
        return tuple(filter(is_name, self._macros))

    def bare(self, word: str, at: int) -> Frames | str | None:
        """What a word alone on its line is: scopes, "drop", "call", or None for no macro."""
        macro = self._macros[word]
        if macro is None:
            if word.isupper() and len(word) > 3 and "_" in word:
                result = "drop" if _SCOPE_NAME.search(word) else None
                self.guesses[Guess(word, "bare", result)].add(at)
                return result
            return None
        if macro.params is not None:
            return None
        return _meaning(expand(word, self._macros))

    def call(self, before: str, end: int, owner: str | None) -> Frames | bool:
        """Whether `NAME(...)` at the start of an item ends it here, with no `;` to come."""
        found = CALL.match(before)
        if found is None:
            return False
        name = found[1]
        if name == owner or name in _NOT_CALLED:
            return False
        following = self.clean[end : end + 400]
        first = following.lstrip()[:1]
        newline = following.find("\n")
        alone = first == "" or (newline >= 0 and not following[:newline].strip())
        macro = self._macros[name]
        if macro is not None:
            shape = self._shape(name, end) if macro.params is not None else None
            return _ends(shape, first, alone)
        if first in _GOES_ON or name in KEYWORDS:
            return False
        result = alone and (name.isupper() or "_" in name)
        _, arguments = self._arguments(name, end)
        words = [token for each in arguments or () for token in each if is_name(token)]
        few = arguments is not None and len(words) <= _MAX_NAMES
        kinds = _kinds(arguments) if arguments is not None and few else None
        names = tuple(words) if few else ()
        self.guesses[Guess(name, "call", result, kinds, names, first, alone)].add(end - 1)
        return result

    def guess_declared(self, name: str, at: int) -> None:
        """Notes that `NAME(...);` was taken for a declaration."""
        self.guesses[Guess(name, "declared", None)].add(at)

    def holds(self, guess: Guess) -> bool:
        """Whether a guess at a name is right by these macros."""
        name = guess.name
        macro = self._macros[name]
        if macro is None:
            return True
        if guess.how == "bare":
            return self.bare(name, 0) == guess.result
        if guess.how == "declared":
            return macro.params is None
        shape = None
        if macro.params is not None:
            if guess.kinds is None or any(map(self.is_function, guess.names)):
                return False
            shape = self._stands(name, guess.kinds)
            if shape is None:
                return False
        return _ends(shape, guess.first, guess.alone) == guess.result

    def _shape(self, name: str, end: int) -> _Shape:
        """What a call expands to; asked once for all calls that differ in their arguments only."""
        call, arguments = self._arguments(name, end)
        shape = None
        if arguments is not None and not any(
            self.is_function(token) for each in arguments for token in each
        ):
            shape = self._stands(name, _kinds(arguments))
        return shape or _shape_of(expand(call, self._macros))

    def _arguments(self, name: str, end: int) -> tuple[str, Sequence[Sequence[str]] | None]:
        """A call that ends at `end`, and its arguments."""
        begin = self.clean.rfind(name, 0, end)
        call = name + self.clean[self.clean.find("(", begin) : end]
        return call, arguments_at(tokens_of(call), 1)[0]

    def _stands(self, name: str, kinds: tuple[str, ...]) -> _Shape | None:
        """What all calls with arguments of these kinds expand to; None where that depends."""
        key = (name, *kinds)
        if key not in self._standing:
            standing = ", ".join(f"({_STAND_IN})" if kind == "(" else kind for kind in kinds)
            text = expand(f"{name}({standing})", self._macros).rstrip()
            shape = _shape_of(text)
            depends = isinstance(shape.what, list) or text.endswith((_STAND_IN, f"{_STAND_IN})"))
            self._standing[key] = None if depends else shape
        return self._standing[key]


def _kinds(arguments: Sequence[Sequence[str]]) -> tuple[str, ...]:
    firsts = ("".join(argument).strip()[:1] for argument in arguments)
    return tuple(_STAND_IN if first not in ("", "(") else first for first in firsts)


def _ends(shape: _Shape | None, first: str, alone: bool) -> Frames | bool:
    """Whether the call of a macro ends an item, by what it expands to and what comes after."""
    if shape is not None and isinstance(shape.what, list):
        return shape.what
    if shape is not None and shape.what == "call" and first != ";":
        return True
    if shape is None or first in _GOES_ON:
        return False
    return shape.last in ";}" if shape.last else alone


def _meaning(text: str) -> Frames | str | None:
    frames: Frames = []
    position = 0
    while True:
        found = _SCOPE_TEXT.match(text, position)
        if found is None:
            break
        inline, name, closes = found.groups()
        if closes:
            frames.append(None)
        elif "extern" in found.group():
            frames.append(Frame('extern "C"', ""))
        else:
            name = (name or "").strip()
            opener = f"{'inline ' if inline else ''}namespace {name}".strip()
            frames.append(Frame(opener, "" if inline else name))
        position = found.end()
    rest = text[position:].strip()
    if not rest or rest == ";":
        return frames or "drop"
    if frames and text.count("{") != text.count("}"):
        return frames
    if rest.startswith("_Pragma"):
        return "drop"
    if rest.endswith((";", "}")):
        return "call"
    return None


def _shape_of(expanded: str) -> _Shape:
    return _Shape(_meaning(expanded), expanded.rstrip()[-1:])
