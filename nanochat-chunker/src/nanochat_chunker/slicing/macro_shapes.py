"""What macros mean to the splitting of code: scopes, declarations, or nothing."""

import re
from typing import NamedTuple

from nanochat_chunker.slicing.items import Frame
from nanochat_chunker.slicing.macros import Lookup, Table, arguments_at, expand, tokens_of
from nanochat_chunker.slicing.names import KEYWORDS

CALL = re.compile(r"\s*([A-Za-z_]\w*)\s*$")
_SCOPE_TEXT = re.compile(
    r'\s*(?:(inline\s+)?namespace(\s+[\w:]+)?\s*\{|extern\s*"C(?:\+\+)?"\s*\{|(\}))'
)
_SCOPE_NAME = re.compile(r"BEGIN|END|OPEN|CLOSE|PUSH|POP|DISABLE|ENABLE|RESTORE|IGNORE|NAMESPACE")


_STAND_IN = "an_argument"


class _Shape(NamedTuple):
    """What a call expands to, as `_meaning` says, and its last character."""

    what: "list[Frame | None] | str | None"
    last: str


class MacroShapes:
    """The macros of one file by what they do; names that may be macros go to `unknown`."""

    def __init__(self, clean: str, lookup: Lookup, unknown: set[str]) -> None:
        self.clean = clean
        self.unknown = unknown
        self._macros = Table(lookup)
        self._calls: dict[tuple[str, ...], _Shape | None] = {}

    def bare(self, word: str) -> "list[Frame | None] | str | None":
        """What a word alone on its line is: scopes, "drop", "call", or None for no macro."""
        macro = self._macros[word]
        if macro is None:
            if word.isupper() and len(word) > 3 and "_" in word:
                self.unknown.add(word)
                if _SCOPE_NAME.search(word):
                    return "drop"
            return None
        if macro.params is not None:
            return None
        return _meaning(expand(word, self._macros))

    def call(self, before: str, end: int, owner: str | None) -> "list[Frame | None] | bool":
        """Whether `NAME(...)` at the start of an item ends it here, with no `;` to come."""
        found = CALL.match(before)
        if found is None:
            return False
        name = found[1]
        if name == owner or name in (
            "static_assert",
            "alignas",
            "decltype",
            "__attribute__",
            "asm",
        ):
            return False
        macro = self._macros[name]
        shape = None
        if macro is not None and macro.params is not None:
            shape = self._shape(name, end)
            if isinstance(shape.what, list):
                return shape.what
        following = self.clean[end : end + 400]
        stripped = following.lstrip()
        first = stripped[:1]
        if shape is not None and shape.what == "call" and first != ";":
            return True
        if first in (";", "{", "-", ".", "=", ",", ")", ":", "[", "<", "@"):
            return False
        if macro is None:
            if name in KEYWORDS:
                return False
            self.unknown.add(name)
            if not name.isupper() and "_" not in name:
                return False
            newline = following.find("\n")
            return first == "" or (newline >= 0 and not following[:newline].strip())
        if shape is None:
            return False
        if not shape.last:
            newline = following.find("\n")
            return first == "" or (newline >= 0 and not following[:newline].strip())
        return shape.last in ";}"

    def _shape(self, name: str, end: int) -> _Shape:
        """What a call expands to; asked once for all calls that differ in their arguments only."""
        begin = self.clean.rfind(name, 0, end)
        call = name + self.clean[self.clean.find("(", begin) : end]
        arguments, _ = arguments_at(tokens_of(call), 1)
        if arguments is None or any(self._calls_macro(argument) for argument in arguments):
            return _shape_of(expand(call, self._macros))
        firsts = ("".join(argument).strip()[:1] for argument in arguments)
        kinds = tuple(_STAND_IN if first not in ("", "(") else first for first in firsts)
        key = (name, *kinds)
        if key not in self._calls:
            standing = ", ".join(f"({_STAND_IN})" if kind == "(" else kind for kind in kinds)
            text = expand(f"{name}({standing})", self._macros).rstrip()
            shape = _shape_of(text)
            open_ones = isinstance(shape.what, list) or text.endswith((_STAND_IN, f"{_STAND_IN})"))
            self._calls[key] = None if open_ones else shape
        return self._calls[key] or _shape_of(expand(call, self._macros))

    def _calls_macro(self, argument: list[str]) -> bool:
        """Whether an argument is, for a list of macros, what is called for each."""
        found = [self._macros[token] for token in argument if token[0].isalpha() or token[0] == "_"]
        return any(macro is not None and macro.params is not None for macro in found)


def _meaning(text: str) -> "list[Frame | None] | str | None":
    frames: list[Frame | None] = []
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
