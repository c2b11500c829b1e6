"""What macros mean to the splitting of code: scopes, declarations, or nothing."""

import re

from nanochat_chunker.slicing.items import Frame
from nanochat_chunker.slicing.macros import Lookup, expand
from nanochat_chunker.slicing.names import KEYWORDS

CALL = re.compile(r"\s*([A-Za-z_]\w*)\s*$")
_SCOPE_TEXT = re.compile(
    r'\s*(?:(inline\s+)?namespace(\s+[\w:]+)?\s*\{|extern\s*"C(?:\+\+)?"\s*\{|(\}))'
)
_SCOPE_NAME = re.compile(r"BEGIN|END|OPEN|CLOSE|PUSH|POP|DISABLE|ENABLE|RESTORE|IGNORE|NAMESPACE")


class MacroShapes:
    """The macros of one file by what they do; names that may be macros go to `unknown`."""

    def __init__(self, clean: str, lookup: Lookup, unknown: set[str]) -> None:
        self.clean = clean
        self.lookup = lookup
        self.unknown = unknown

    def bare(self, word: str) -> "list[Frame | None] | str | None":
        """What a word alone on its line is: scopes, "drop", "call", or None for no macro."""
        macro = self.lookup(word)
        if macro is None:
            if word.isupper() and len(word) > 3 and "_" in word:
                self.unknown.add(word)
                if _SCOPE_NAME.search(word):
                    return "drop"
            return None
        if macro.params is not None:
            return None
        return self._macro_text(expand(word, self.lookup))

    def _macro_text(self, text: str) -> "list[Frame | None] | str | None":
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
        macro = self.lookup(name)
        what = None
        if macro is not None and macro.params is not None:
            what = self._macro_text(self._expand_at(name, end))
            if isinstance(what, list):
                return what
        following = self.clean[end : end + 400]
        stripped = following.lstrip()
        first = stripped[:1]
        if what == "call" and first != ";":
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
        if macro.params is None:
            return False
        expanded = self._expand_at(name, end).strip()
        if not expanded:
            newline = following.find("\n")
            return first == "" or (newline >= 0 and not following[:newline].strip())
        return expanded.endswith((";", "}"))

    def _expand_at(self, name: str, end: int) -> str:
        begin = self.clean.rfind(name, 0, end)
        opened = self.clean.find("(", begin)
        return expand(name + self.clean[opened:end], self.lookup)
