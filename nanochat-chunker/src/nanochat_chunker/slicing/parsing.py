"""Splitting preprocessed code into items.

Not a grammar of C++: braces, parentheses and semicolons bound the declarations, and their heads
tell what they are. That survives the macros that a grammar stumbles over.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from nanochat_chunker.slicing import declarations
from nanochat_chunker.slicing.brackets import Brackets
from nanochat_chunker.slicing.declarations import Declared, Head
from nanochat_chunker.slicing.initialisers import initialisers_at
from nanochat_chunker.slicing.item_maker import ItemMaker
from nanochat_chunker.slicing.items import Frame, Item, Scope
from nanochat_chunker.slicing.macro_shapes import CALL, Guesses, MacroShapes
from nanochat_chunker.slicing.macro_words import is_macro_word
from nanochat_chunker.slicing.macros import Lookup
from nanochat_chunker.slicing.unchanged import Earlier, Unchanged

_SPACES = re.compile(r"\s*")
_ACCESS = re.compile(r"\s*(?:(?:public|protected|private|signals|Q_SIGNALS)(?:\s+\w+)?\s*:(?!:))")
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
_BARE = re.compile(r"([A-Za-z_]\w*)[ \t]*(?=\n|\Z)")
_SCOPED_ENUM = re.compile(r"\benum\s+(?:class|struct)\b")
_INITIALISED = (")", "}", "...")  # ends of initialisers; what follows one is a body
_NAME_IN_PARENTHESES = re.compile(r"\(\s*([A-Za-z_]\w*)\s*\)\s*\(")
_LAST_WORD = re.compile(r"([A-Za-z_]\w*)[\s&*>]+\Z")
_MAX_DEPTH = 24  # classes within classes; deeper ones are taken whole


@dataclass
class Parsed:
    """`guesses` are at names in the place of macros that the file does not define itself.

    `asked` are the names that it mattered for whether they are macros; `kept` tells where items
    begin and end that were taken over.
    """

    items: list[Item] = field(default_factory=list)
    guesses: Guesses = field(default_factory=dict)
    scopes: list[tuple[int, Scope]] = field(default_factory=list)  # from a position on
    asked: tuple[str, ...] = ()
    kept: dict[int, int] = field(default_factory=dict)


def parse(text: str, clean: str, lookup: Lookup, earlier: Earlier | None = None) -> Parsed:
    """The items of a file, those of namespaces flattened. `lookup` gives the macros known.

    Items of an earlier index that would come out the same are taken over.
    """
    file = _File(text, clean, lookup, earlier)
    old = file.unchanged.items() if file.unchanged is not None else {}
    parsed = file.parsed
    parsed.items = _Run(file, 0, len(file.brackets.at), 0, len(clean), None, 0, old).items()
    parsed.guesses = file.shapes.guesses
    parsed.asked = file.shapes.asked()
    if file.unchanged is not None:
        for guess, place in file.unchanged.guesses(parsed.kept):
            parsed.guesses[guess].add(place)
    return parsed


class _File:
    """What all runs over one file share."""

    def __init__(self, text: str, clean: str, lookup: Lookup, earlier: Earlier | None) -> None:
        self.clean = clean
        self.parsed = Parsed()
        self.brackets = Brackets(clean)
        self.maker = ItemMaker(text, clean)
        self.shapes = MacroShapes(lookup, clean)
        self.unchanged = (
            Unchanged(earlier, self.shapes, self.brackets) if earlier is not None else None
        )


class _Run:
    """The items between two positions, those of a file or of a class.

    The head of the item at hand begins at `_begin`; up to `_seen` it lies in `_collapsed`, with its
    parentheses and brackets empty. `_i` is the next bracket to look at.
    """

    def __init__(
        self,
        file: _File,
        i: int,
        stop: int,
        start: int,
        end: int,
        owner: str | None,
        depth: int,
        old: Mapping[int, Item],
    ) -> None:
        self._file = file
        self._old = old  # items of an earlier index by where they begin
        self._clean = file.clean
        brackets = file.brackets
        self._at, self._kind, self._partner = brackets.at, brackets.kind, brackets.partner
        self._i, self._stop, self._end = i, stop, end
        self._owner = owner  # the name of the class around, if any
        self._depth = depth
        self._items: list[Item] = []
        self._frames: list[Frame] = []
        self._scope: Scope = ()
        self._bare: list[re.Match[str]] = []  # macros alone on lines before the next member
        self._reset(start)

    def items(self) -> list[Item]:
        """All of them, in order."""
        at, kind, stop, old = self._at, self._kind, self._stop, self._old
        while self._i < stop:
            char, position = kind[self._i], at[self._i]
            if not self._collapsed and self._begin == self._seen:
                self._leading(position)
                if self._begin in old and self._keep(old[self._begin]):
                    continue
            if char == "(" or char == "[":
                self._parenthesis(char, position)
            elif char == ";":
                self._semicolon(position)
            elif char == "}":
                self._closing_brace(position)
            elif char != "{":  # an unmatched closing bracket
                self._i += 1
            elif not self._opening_brace(position):
                break
        if not self._collapsed:
            self._leading(self._end)
        if self._clean[self._begin : self._end].strip():
            self._add(Declared("other", ()), self._end)
        return self._items

    def _reset(self, position: int) -> None:
        """A new item begins."""
        self._begin = self._seen = self._previous = position
        self._collapsed: list[str] = []
        self._initialised = -1  # where the `:` of a constructor's initialisers may begin

    def _add(
        self, declared: Declared, stop_at: int, tail: int = -1, members: list[Item] | None = None
    ) -> None:
        item = self._file.maker.item(
            declared, self._previous, self._begin, stop_at, tail, self._scope, members
        )
        if self._bare:
            item.start = self._bare[0].start()
            item.uses += tuple(bare[1] for bare in self._bare)
            self._bare.clear()
        self._items.append(item)
        self._reset(stop_at)

    def _keep(self, item: Item) -> bool:
        """Takes over an item of an earlier index that begins here, if it stays as it is."""
        file = self._file
        if file.unchanged is None or not file.unchanged.stays(item):
            return False
        if self._bare or self._clean[item.start : item.begin].strip():
            return False  # macros before it belong to it
        behind = file.brackets.behind(self._i, item.end)
        again = file.maker.again(item, self._previous, self._scope)
        if behind < 0 or again is None:
            return False
        self._items.append(again)
        file.parsed.kept[again.begin] = again.end
        self._i = behind
        self._reset(again.end)
        return True

    def _rescope(self, position: int) -> None:
        self._scope = tuple(self._frames)
        if self._owner is None:
            self._file.parsed.scopes.append((position, self._scope))

    def _enter(self, opened: list[Frame | None], position: int) -> None:
        """Scopes that a macro opens, or closes where there is None."""
        for frame in opened:
            if frame is not None:
                self._frames.append(frame)
            elif self._frames:
                self._frames.pop()
        self._rescope(position)
        self._reset(position)

    def _pass(self, closing: int, as_what: str) -> None:
        """Goes on after a closing bracket; the head has `as_what` in the place of the pair."""
        self._collapsed.append(as_what)
        self._seen = closing + 1

    def _leading(self, position: int) -> None:
        """At the start of an item: access labels and macros that stand alone."""
        clean = self._clean
        self._begin = self._seen = _after_spaces(clean, self._begin)
        while self._owner is not None:
            label = _ACCESS.match(clean, self._begin, position)
            if label is None:
                break
            self._add(Declared("access", ()), label.end())
            self._begin = self._seen = _after_spaces(clean, self._begin)
        while self._begin < position:
            bare = _BARE.match(clean, self._begin, position)
            what = self._file.shapes.bare(bare[1], bare.start()) if bare is not None else None
            if bare is None or what is None:
                break
            if isinstance(what, list):
                self._enter(what, bare.end())
            elif what == "call":
                self._add(Declared("call", (), flags=("bare",)), bare.end())
            else:
                if self._owner is not None:
                    self._bare.append(bare)
                self._reset(bare.end())
            self._begin = self._seen = _after_spaces(clean, self._begin)

    def _parenthesis(self, char: str, position: int) -> None:
        close = self._partner[self._i]
        if close < 0 or close >= self._stop:
            self._i += 1
            return
        end = self._at[close] + 1
        self._collapsed.append(self._clean[self._seen : position])
        as_what = "()" if char == "(" else "[]"
        if char == "(" and self._clean[end : end + 1] in ("(", " "):
            as_what = self._in_parentheses(position) or as_what
        self._pass(end - 1, as_what)
        if char == "(" and len(self._collapsed) == 2:
            ends = self._file.shapes.call(self._collapsed[0], end, self._owner)
            if isinstance(ends, list):
                self._enter(ends, end)
            elif ends:
                self._add(Declared("call", ()), end)
        self._i = close + 1

    def _in_parentheses(self, position: int) -> str:
        """The name in `T (min)(T a)`, which macros of that name do not touch; else ''."""
        clean = self._clean
        found = _NAME_IN_PARENTHESES.match(clean, position)
        if found is None:
            return ""
        before = _LAST_WORD.search(clean, max(self._begin, position - 80), position)
        if before is None or is_macro_word(before[1]):
            return ""
        macro = self._file.shapes.macro(before[1])
        return found[1] if macro is None or macro.params is None else ""

    def _semicolon(self, position: int) -> None:
        if self._clean[self._begin : position].strip():
            self._collapsed.append(self._clean[self._seen : position])
            head = "".join(self._collapsed)
            self._add(self._simple(head, self._begin, position), position + 1)
        else:
            self._reset(position + 1)
        self._i += 1

    def _closing_brace(self, position: int) -> None:
        if self._clean[self._begin : position].strip():
            self._add(Declared("other", ()), position)
        if self._frames:
            self._frames.pop()
            self._rescope(position)
        self._reset(position + 1)
        self._i += 1

    def _opening_brace(self, position: int) -> bool:
        """False where it is never closed: the rest is one broken item."""
        close = self._partner[self._i]
        self._collapsed.append(self._clean[self._seen : position])
        self._seen = position
        head = "".join(self._collapsed)
        if self._owner is None:
            opened = declarations.namespace_of(head)
            if opened is not None:
                self._frames.append(Frame(*opened))
                self._rescope(position)
                self._reset(position + 1)
                self._i += 1
                return True
        if close < 0 or close >= self._stop:
            self._add(Declared("other", ()), self._end)
            return False
        parts = declarations.simplify(head)
        function = declarations.function_of(parts)
        if (head.rstrip().endswith("=") and "operator" not in head[-24:]) or (
            declarations.assigns(parts) and function is None
        ):
            self._pass(self._at[close], "{}")
            self._i = close + 1
            return True
        declared = declarations.class_of(parts)
        if declared is not None:
            self._class(declared, head, parts, position, close)
        elif function is not None:
            self._function(function, head, parts, position, close)
        else:
            self._other_braces(head, close)
        return True

    def _class(self, declared: Declared, head: str, parts: Head, position: int, close: int) -> None:
        clean, closing = self._clean, self._at[close]
        name = declared.names[0] if declared.names else ""
        members: list[Item] = []
        if declared.kind == "class" and self._depth < _MAX_DEPTH:
            members = self._members(name, position, close).items()
        self._i, finish = self._file.brackets.after_class(close, self._stop)
        after = clean[closing + 1 : max(closing + 1, finish - 1)]
        extra = declarations.declarators(after) if after.strip() else ()
        flags = declarations.flags_of(parts)
        if name and "<" in head and declarations.is_specialised(head, name):
            flags = ("template", "special")
        names = declared.names + extra
        if declared.kind == "enum" and not _SCOPED_ENUM.search(parts.plain):
            names += declarations.enumerators(clean[position + 1 : closing])
        typedef = parts.plain.lstrip().startswith("typedef")
        if after.strip() and not typedef and not declared.names:
            flags = (*flags, "object")
        self._add(Declared(declared.kind, names, declared.owner, flags), finish, position, members)

    def _members(self, name: str, position: int, close: int) -> "_Run":
        file = self._file
        old: Mapping[int, Item] = {}
        if file.unchanged is not None:
            old = file.unchanged.members(self._old.get(self._begin), position)
        return _Run(
            file, self._i + 1, close, position + 1, self._at[close], name, self._depth + 1, old
        )

    def _function(
        self, function: Declared, head: str, parts: Head, position: int, close: int
    ) -> None:
        closing = self._at[close]
        if self._initialised < 0:
            self._initialised = initialisers_at(self._clean, self._begin, position)
        before = self._clean[self._begin : position].rstrip()
        if (
            self._initialised >= 0 and not before.endswith(_INITIALISED)
        ) or declarations.is_requires(head):
            # `: member{value}`; a body follows `)` or `}`.
            self._pass(closing, "()")
            self._i = close + 1
            return
        tail = self._initialised if self._initialised >= 0 else position
        self._i, finish = self._file.brackets.after_function(close, self._stop)
        called = len(self._collapsed) == 3 and CALL.match(self._collapsed[0])
        if called and self._owner is None and "@" not in parts.plain and (
            function.names[0] != "main"
        ):  # fmt: skip
            self._add(Declared("call", function.names, "", ("body",)), finish, tail)
        else:
            self._add(
                function._replace(flags=function.flags + declarations.flags_of(parts)), finish, tail
            )

    def _other_braces(self, head: str, close: int) -> None:
        """`int x{3};`, or a block that belongs to a macro."""
        closing = self._at[close]
        self._pass(closing, "{}")
        self._i = close + 1
        following = self._clean[closing + 1 : closing + 200].lstrip()[:1]
        if following not in (";", ",", "=", "[", ".", "-", "{", ":", "(") or not head.strip():
            self._add(Declared("other", ()), closing + 1)

    def _simple(self, head: str, begin: int, position: int) -> Declared:
        raw = self._clean[begin:position] if "(" in head else head
        if self._owner is None and declarations.is_statement(head):
            word = _IDENTIFIER.match(head)
            if word is None or (self._file.shapes.macro(word[0]) is None and not word[0].isupper()):
                return Declared("statement", ())
        declared = declarations.simple(head, raw)
        if (
            declared.kind == "prototype"
            and "@" not in head
            and CALL.match(head.partition("(")[0])
            and declared.owner == ""
            and "->" not in head
        ):
            called = head.partition("(")[0].strip()
            if declared.names[0] == called and called != self._owner:
                return Declared("call", ())
        if declared.kind == "prototype" and not declared.owner and self._owner is None:
            # `EXPORT DECLARE(x);`
            macro = self._file.shapes.macro(declared.names[0])
            if macro is not None and macro.params is not None:
                return Declared("call", ())
            if macro is None and declared.names[0].isupper():
                self._file.shapes.guess_declared(declared.names[0], position)
        return declared


def _after_spaces(code: str, position: int) -> int:
    found = _SPACES.match(code, position)
    return found.end() if found is not None else position
