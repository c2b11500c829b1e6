"""What a preprocessor does before parsing, in place: one configuration, nothing moved.

The result has the length of the text: comments, literals, directives and what the configuration
leaves out are blank, so that positions hold.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from nanochat_chunker.slicing.configuration import (
    evaluate,
    from_build_system,
    is_defined,
    predefined,
)
from nanochat_chunker.slicing.macros import Lookup, Macro, parse_define

# Alternatives that open a literal or comment also match when it is never closed: nothing is looked
# at twice, whatever the text.
# Each begins with a letter of its own, which lets the search skip what lies between.
_TOKEN = re.compile(
    r"//[^\n\\]*(?:\\.[^\n\\]*)*"
    r"|/\*(?:.*?\*/|.*)"
    r'|"[^"\\\n]*(?:\\.[^"\\\n]*)*"?'
    r"|'[^'\\\n]*(?:\\.[^'\\\n]*)*'"
    r"|\#[^\n]*(?:(?<=\\)\n[^\n]*)*",
    re.DOTALL,
)
_RAW = re.compile(r'"([^()\\\s"]{0,16})\((?:.*?\)\1"|.*)', re.DOTALL)
_RAW_PREFIX = re.compile(r"(?<![A-Za-z0-9_])(?:u8|[uUL])?R$")
_CHAR_PREFIX = re.compile(r"(?<![A-Za-z0-9_])(?:u8|[uUL])$")
_DIRECTIVE = re.compile(r"\s*#\s*([A-Za-z_]+)(.*)", re.DOTALL)
_COMMENT = re.compile(r'("(?:\\.|[^"\\\n])*")|//[^\n]*|/\*.*?(?:\*/|\Z)', re.DOTALL)
_WORD = re.compile(r"\s*([A-Za-z_]\w*)")
_INCLUDE = re.compile(r'\s*(?:"([^"\n]+)"|<([^>\n]+)>)')
_DEFINE = re.compile(r"\s*#[ \t]*define[ \t]+([A-Za-z_]\w*)([^\n]*)")
_NOT_DEFINED = re.compile(r"\s*!\s*defined\s*\(?\s*([A-Za-z_]\w*)\s*\)?\s*$")

_C_ABSENT = frozenset("__cplusplus __GNUG__ __GXX_RTTI __EXCEPTIONS __DEPRECATED".split())
_C_MACROS = {"__STDC_VERSION__": Macro("__STDC_VERSION__", None, "201710L")}


class Event(NamedTuple):
    """One directive of the configuration, in source order.

    kind      value                      extra
    define    Macro
    undef     name
    include   the path named             True in angle brackets
    if        the expression             whether it was taken
    """

    kind: str
    start: int
    end: int
    value: str | Macro
    extra: bool = False


@dataclass
class Prepared:
    """`cuts` are the spans that the configuration leaves out of the text."""

    clean: str
    cuts: list[tuple[int, int]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    guard: str = ""
    pragma_once: bool = False
    off: list[str] = field(default_factory=list)  # quoted includes that are left out


def is_c(path: str) -> bool:
    """Whether a file is C by its name, and not C++."""
    return path.endswith(".c")


def _predefined(name: str) -> Macro | None:
    return predefined().get(name) or (from_build_system(name) if "_" in name else None)


def predefined_for(path: str) -> Lookup:
    """The macros that the compiler itself defines for a file of this name."""
    if not is_c(path):
        return _predefined

    def look(name: str) -> Macro | None:
        if name in _C_ABSENT or name.startswith("__cpp_"):
            return None
        return _C_MACROS.get(name) or _predefined(name)

    return look


@dataclass
class _Frame:
    outer: bool  # whether the block around is taken
    taken: bool  # whether a branch has been
    start: int


def within(spans: Sequence[tuple[int, int]], position: int) -> bool:
    """Whether a position lies in one of the spans, which are in order and may be nested."""
    return any(start <= position < end for start, end in spans)


def preprocess(
    path: str,
    text: str,
    known: Lookup | None = None,
    left_out: Sequence[tuple[int, int]] | None = None,
) -> Prepared:
    """`text` under the stated configuration; `known` are the macros of what was included before.

    `left_out` are the spans that a compiler skips: they decide, where they are given.
    """
    local: dict[str, Macro | None] = {}
    predefined = predefined_for(path)

    def lookup(name: str) -> Macro | None:
        if name in local:
            return local[name]
        if known is not None:
            found = known(name)
            if found is not None:
                return found
        return predefined(name)

    return _Scanner(text, local, lookup, left_out).run()


class _Scanner:
    def __init__(
        self,
        text: str,
        local: dict[str, Macro | None],
        lookup: Lookup,
        left_out: Sequence[tuple[int, int]] | None,
    ) -> None:
        self._left_out = left_out
        self._text = text
        self._local = local
        self._lookup = lookup
        self._frames: list[_Frame] = []
        self._active = True
        self._off_since = 0
        self._seen_directive = False
        self._result = Prepared("")

    def run(self) -> Prepared:
        text = self._text
        out: list[str] = []
        at = position = 0
        while position >= 0:
            # A token that ends elsewhere than its pattern says begins the search anew.
            resume = -1
            for found in _TOKEN.finditer(text, position):
                start, end = found.span()
                first = text[start]
                if first == "#":
                    line = text.rfind("\n", 0, start) + 1
                    if text[line:start].strip(" \t"):
                        resume = start + 1
                        break
                    end, resume = self._directive_end(start, end)
                    out.append(text[at:start] if self._active else " " * (start - at))
                    self._directive(line, end)
                    out.append(" " * (end - start))
                    at = end
                    if resume >= 0:
                        break
                    continue
                if first == '"' and text[start - 1 : start] == "R":
                    raw = _RAW.match(text, start)
                    if raw is not None and _RAW_PREFIX.search(text, max(0, start - 4), start):
                        end = resume = raw.end()
                elif self._separates(first, start):
                    resume = start + 1
                    break
                if self._active:
                    out.append(text[at:start])
                    if first == "/" or end - start < 2:
                        out.append(" " * (end - start))
                    else:
                        out.append('"' + " " * (end - start - 2) + '"')
                    at = end
                if resume >= 0:
                    break
            position = resume
        rest = text[at:]
        out.append(rest if self._active else " " * len(rest))
        if not self._active:
            self._result.cuts.append((self._off_since, len(text)))
        self._result.clean = "".join(out)
        return self._result

    def _separates(self, first: str, start: int) -> bool:
        """Whether a quote stands between digits: 1'000."""
        if first != "'" or not self._text[start - 1 : start].isalnum():
            return False
        return not _CHAR_PREFIX.search(self._text, max(0, start - 3), start)

    def _directive_end(self, start: int, end: int) -> tuple[int, int]:
        """(end, where to go on) of a directive; a comment that begins in it belongs to it."""
        text = self._text
        opened = text.rfind("/*", start, end)
        if opened < 0 or text.find("*/", opened, end) >= 0:
            return end, -1
        before = text[start:opened]
        if '"' in before or "//" in before:
            return end, -1
        close = text.find("*/", end)
        line = text.find("\n", close) if close >= 0 else -1
        end = line if line >= 0 else len(text)
        return end, end

    def _directive(self, start: int, end: int) -> None:
        found = _DIRECTIVE.match(self._text[start:end])
        if found is None:
            return
        word, rest = found.groups()
        if word in ("if", "ifdef", "ifndef"):
            rest = _plain(rest)
            first = not self._seen_directive
            self._seen_directive = True
            taken = self._active and self._condition(word, rest, start, end, first)
            self._frames.append(_Frame(self._active, taken or not self._active, start))
            self._switch(start, end, taken)
            return
        if word in ("elif", "else", "elifdef", "elifndef", "endif"):
            if not self._frames:
                self._result.cuts.append((start, self._line_end(end)))
                return
            frame = self._frames[-1]
            if word == "endif":
                self._frames.pop()
                self._switch(start, end, frame.outer)
                return
            taken = False
            if frame.outer and not frame.taken:
                if word == "else":
                    taken = True
                else:
                    kind = {"elif": "if", "elifdef": "ifdef", "elifndef": "ifndef"}[word]
                    taken = self._condition(kind, _plain(rest), start, end, first=False)
            frame.taken = frame.taken or taken
            self._switch(start, end, taken)
            return
        if not self._active:
            if word == "include":
                target = _INCLUDE.match(rest)
                if target is not None and target[1]:
                    self._result.off.append(target[1])
            return
        self._seen_directive = True
        self._other(word, rest, start, end)

    def _other(self, word: str, rest: str, start: int, end: int) -> None:
        events = self._result.events
        if word == "define":
            macro = parse_define(_plain(rest))
            if macro is not None and macro.name != self._result.guard:
                self._local[macro.name] = macro
                events.append(Event("define", start, end, macro))
            elif macro is not None:
                self._local[macro.name] = macro
        elif word == "undef":
            name = _WORD.match(rest)
            if name is not None:
                self._local[name[1]] = None
                events.append(Event("undef", start, end, name[1]))
        elif word in ("include", "include_next", "import"):
            target = _INCLUDE.match(rest)
            if target is None:  # `#include MACRO`
                name = _WORD.match(_plain(rest))
                macro = self._lookup(name[1]) if name is not None else None
                target = _INCLUDE.match(macro.body) if macro is not None else None
            if target is not None:
                quoted, angled = target.groups()
                events.append(Event("include", start, end, quoted or angled, not quoted))
        elif word == "pragma" and rest.strip() == "once":
            self._result.pragma_once = True
            self._result.cuts.append((start, self._line_end(end)))
        elif word in ("pragma", "error", "warning", "line", "ident"):
            self._result.cuts.append((start, self._line_end(end)))

    def _condition(self, word: str, rest: str, start: int, end: int, first: bool) -> bool:
        name = ""
        if word in ("ifdef", "ifndef"):
            match = _WORD.match(rest)
            name = match[1] if match else ""
            expression = ("" if word == "ifdef" else "!") + f"defined({name})"
        else:
            expression = rest.strip()
            match = _NOT_DEFINED.match(rest)
            name = match[1] if match else ""
        negative = bool(name) and word != "ifdef"
        if negative and name not in self._local:
            # An include guard, or a switch of the same make, is not yet set, whoever came before.
            follow = self._defined_next(name, end)
            if follow is not None and not follow:
                if first:
                    self._result.guard = name
                return True
        if self._left_out is not None:
            value = not within(self._left_out, end)
        elif word == "if":
            value = evaluate(expression, self._lookup)
        else:
            value = is_defined(name, self._lookup) == (word == "ifdef")
        self._result.events.append(Event("if", start, end, expression, value))
        return value

    def _defined_next(self, name: str, at: int) -> str | None:
        """The body of `#define name` where that is the next line, else None."""
        found = _DEFINE.match(self._text, at)
        return _plain(found[2]).strip() if found is not None and found[1] == name else None

    def _switch(self, start: int, end: int, active: bool) -> None:
        since = start if self._active else self._off_since
        if active:
            self._result.cuts.append((since, self._line_end(end)))
        else:
            self._off_since = since
        self._active = active

    def _line_end(self, end: int) -> int:
        return end + 1 if self._text[end : end + 1] == "\n" else end


def _plain(text: str) -> str:
    """A directive's line without comments and splices."""
    if "\\\n" in text:
        text = text.replace("\\\n", " ")
    if "/" in text:
        text = _COMMENT.sub(lambda found: found[1] or " ", text)
    return text
