"""Splitting preprocessed code into items.

Not a grammar of C++: braces, parentheses and semicolons bound the declarations, and their heads
tell what they are. That survives the macros that a grammar stumbles over.
"""

import re
from dataclasses import dataclass, field

from nanochat_chunker.slicing import declarations
from nanochat_chunker.slicing.declarations import Declared, Head
from nanochat_chunker.slicing.items import Frame, Item, Scope
from nanochat_chunker.slicing.macros import Lookup, expand
from nanochat_chunker.slicing.names import KEYWORDS, names_in

_STRUCTURE = re.compile(r"[{}()\[\];]")
_SPACES = re.compile(r"\s*")
_CALL = re.compile(r"\s*([A-Za-z_]\w*)\s*$")
_ACCESS = re.compile(r"\s*(?:(?:public|protected|private|signals|Q_SIGNALS)(?:\s+\w+)?\s*:(?!:))")
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
_BARE = re.compile(r"([A-Za-z_]\w*)[ \t]*(?=\n|\Z)")
_AFTER_BODY = re.compile(r"\s*(?:catch\b|,)")
_SCOPE_TEXT = re.compile(
    r'\s*(?:(inline\s+)?namespace(\s+[\w:]+)?\s*\{|extern\s*"C(?:\+\+)?"\s*\{|(\}))'
)
_SCOPE_NAME = re.compile(r"BEGIN|END|OPEN|CLOSE|PUSH|POP|DISABLE|ENABLE|RESTORE|IGNORE|NAMESPACE")
_SCOPED_ENUM = re.compile(r"\benum\s+(?:class|struct)\b")
_MAX_DEPTH = 24  # classes within classes; deeper ones are taken whole


@dataclass
class Parsed:
    """`unknown` are names in the place of macros that the file does not define itself."""

    items: list[Item] = field(default_factory=list)
    unknown: set[str] = field(default_factory=set)
    scopes: list[tuple[int, Scope]] = field(default_factory=list)  # from a position on


def parse(text: str, clean: str, lookup: Lookup) -> Parsed:
    """The items of a file, those of namespaces flattened. `lookup` gives the macros known."""
    parser = _Parser(text, clean, lookup)
    parser.scope_items()
    return parser.parsed


class _Parser:
    def __init__(self, text: str, clean: str, lookup: Lookup) -> None:
        self.text = text
        self.clean = clean
        self.lookup = lookup
        self.parsed = Parsed()
        self.at = [found.start() for found in _STRUCTURE.finditer(clean)]
        self.kind = "".join([clean[position] for position in self.at])
        self.partner = _partners(self.kind)

    def scope_items(self) -> None:
        items = self._run(0, len(self.at), 0, len(self.clean), None, 0)
        self.parsed.items = items

    def _run(
        self, i: int, stop: int, start: int, end: int, owner: str | None, depth: int
    ) -> list[Item]:
        """The items between two positions; `owner` is the name of the class around, if any."""
        clean, at, kind, partner = self.clean, self.at, self.kind, self.partner
        items: list[Item] = []
        frames: list[Frame] = []
        scope: Scope = ()
        previous = start  # where the item before ended
        begin = start
        collapsed: list[str] = []  # the head up to `seen`, parentheses empty
        seen = start
        initialised = -1  # where the `:` of a constructor's initialisers may begin

        def rescope(position: int) -> None:
            nonlocal scope
            scope = tuple(frames)
            if owner is None:
                self.parsed.scopes.append((position, scope))

        def reset(position: int) -> None:
            nonlocal begin, collapsed, seen, previous, initialised
            begin = seen = previous = position
            collapsed = []
            initialised = -1

        def add(
            declared: Declared, stop_at: int, tail: int = -1, members: list[Item] | None = None
        ) -> None:
            nonlocal begin
            item = self._item(declared, previous, begin, stop_at, tail, scope, owner, members)
            items.append(item)
            reset(stop_at)

        def enter(opened: "list[Frame | None]", position: int) -> None:
            for frame in opened:
                if frame is not None:
                    frames.append(frame)
                elif frames:
                    frames.pop()
            rescope(position)
            reset(position)

        def leading(position: int) -> None:
            """At the start of an item: access labels and macros that stand alone."""
            nonlocal begin, seen
            begin = seen = _after_spaces(clean, begin)
            while owner is not None:
                label = _ACCESS.match(clean, begin, position)
                if label is None:
                    break
                add(Declared("access", ()), label.end())
                begin = seen = _after_spaces(clean, begin)
            while begin < position:
                bare = _BARE.match(clean, begin, position)
                what = self._bare(bare[1]) if bare is not None else None
                if bare is None or what is None:
                    break
                if isinstance(what, list):
                    enter(what, bare.end())
                elif what == "call":
                    add(Declared("call", (), flags=("bare",)), bare.end())
                else:
                    reset(bare.end())
                begin = seen = _after_spaces(clean, begin)

        while i < stop:
            char = kind[i]
            position = at[i]
            if not collapsed and begin == seen:
                leading(position)
            if char == "(" or char == "[":
                close = partner[i]
                if close < 0 or close >= stop:
                    i += 1
                    continue
                collapsed.append(clean[seen:position])
                collapsed.append("()" if char == "(" else "[]")
                seen = at[close] + 1
                if char == "(" and len(collapsed) == 2:
                    ends = self._macro_call(collapsed[0], at[close] + 1, owner)
                    if isinstance(ends, list):
                        enter(ends, at[close] + 1)
                    elif ends:
                        add(Declared("call", ()), at[close] + 1)
                i = close + 1
                continue
            if char == ";":
                if clean[begin:position].strip():
                    collapsed.append(clean[seen:position])
                    head = "".join(collapsed)
                    declared = self._simple(head, begin, position, owner)
                    add(declared, position + 1)
                else:
                    reset(position + 1)
                i += 1
                continue
            if char == "}":
                if clean[begin:position].strip():
                    add(Declared("other", ()), position)
                if frames:
                    frames.pop()
                    rescope(position)
                reset(position + 1)
                i += 1
                continue
            if char != "{":  # an unmatched closing bracket
                i += 1
                continue
            # A brace opens.
            close = partner[i]
            collapsed.append(clean[seen:position])
            seen = position
            head = "".join(collapsed)
            if owner is None:
                opened = declarations.namespace_of(head)
                if opened is not None:
                    if frames is not None:
                        frames.append(Frame(*opened))
                        rescope(position)
                    reset(position + 1)
                    i += 1
                    continue
            if close < 0 or close >= stop:
                # Never closed: the rest is one broken item.
                add(Declared("other", ()), end)
                break
            parts = declarations.simplify(head)
            closing = at[close]
            declared = None
            operator = "operator" in head[-24:]
            if (head.rstrip().endswith("=") and not operator) or (
                declarations.assigns(parts) and declarations.function_of(parts) is None
            ):
                collapsed.append("{}")
                seen = closing + 1
                i = close + 1
                continue
            declared = declarations.class_of(parts)
            if declared is not None:
                name = declared.names[0] if declared.names else ""
                members: list[Item] = []
                if declared.kind == "class" and depth < _MAX_DEPTH:
                    members = self._run(i + 1, close, position + 1, closing, name, depth + 1)
                i, finish = self._after_class(close, stop)
                after = clean[closing + 1 : max(closing + 1, finish - 1)]
                extra = declarations.declarators(after) if after.strip() else ()
                flags = _flags(parts)
                if name and "<" in head and _is_specialised(head, name):
                    flags = ("template", "special")
                typedef = parts.plain.lstrip().startswith("typedef")
                names = declared.names + extra
                if declared.kind == "enum" and not _SCOPED_ENUM.search(parts.plain):
                    names += _enumerators(clean[position + 1 : closing])
                if after.strip() and not typedef and not declared.names:
                    flags = (*flags, "object")
                add(
                    Declared(declared.kind, names, declared.owner, flags),
                    finish,
                    position,
                    members,
                )
                continue
            function = declarations.function_of(parts)
            if function is not None:
                if initialised < 0:
                    initialised = self._initialisers(begin, position, i)
                if initialised >= 0 and clean[begin:position].rstrip()[-1:] not in ")}":
                    # `: member{value}`; a body follows `)` or `}`.
                    collapsed.append("()")
                    seen = closing + 1
                    i = close + 1
                    if self._next_is_body(closing + 1):
                        continue
                    continue
                if declarations.is_requires(head):
                    collapsed.append("()")
                    seen = closing + 1
                    i = close + 1
                    continue
                tail = initialised if initialised >= 0 else position
                finish = closing + 1
                i = close + 1
                while True:  # function-try-blocks
                    more = _AFTER_BODY.match(clean, finish)
                    if more is None or "catch" not in more.group():
                        break
                    while i < stop and kind[i] != "{":
                        i = partner[i] + 1 if kind[i] == "(" and partner[i] > 0 else i + 1
                    if i >= stop or partner[i] < 0:
                        break
                    finish = at[partner[i]] + 1
                    i = partner[i] + 1
                call = len(collapsed) == 3 and _CALL.match(collapsed[0]) and owner is None
                if call and "@" not in parts.plain and function.names[0] != "main":
                    add(Declared("call", function.names, "", ("body",)), finish, tail)
                    continue
                add(
                    function._replace(flags=function.flags + _flags(parts)),
                    finish,
                    tail,
                )
                continue
            # Neither: `int x{3};`, or a block that belongs to a macro.
            collapsed.append("{}")
            seen = closing + 1
            i = close + 1
            following = clean[closing + 1 : closing + 200].lstrip()[:1]
            if following not in (";", ",", "=", "[", ".", "-", "{", ":", "(") or not head.strip():
                add(Declared("other", ()), closing + 1)
        if not collapsed:
            leading(end)
        if clean[begin:end].strip():
            add(Declared("other", ()), end)
        return items

    def _item(
        self,
        declared: Declared,
        previous: int,
        begin: int,
        end: int,
        tail: int,
        scope: Scope,
        owner: str | None,
        members: list[Item] | None,
    ) -> Item:
        clean = self.clean
        kind = declared.kind
        if kind == "function" and tail >= 0:
            tail = self._code_end(begin, tail)
        body_uses: tuple[str, ...] = ()
        if members is not None and members:
            outside = [clean[begin : tail + 1]]
            last = members[-1].end
            outside.append(clean[last:end])
            uses = names_in(" ".join(outside))
        elif kind == "using":
            uses = _used(clean[begin:end])
        elif tail >= 0:
            uses = names_in(clean[begin:tail])
            body_uses = names_in(clean[tail:end])
        elif kind == "access":
            uses = ()
        else:
            uses = names_in(clean[begin:end])
        flags = frozenset(declared.flags)
        if any(frame.opener == "namespace" for frame in scope):
            flags |= {"local"}
        return Item(
            kind,
            self._comment(previous, begin),
            begin,
            end,
            scope,
            declared.names,
            declared.owner,
            tail,
            uses,
            body_uses,
            tuple(members or ()),
            flags,
        )

    def _code_end(self, begin: int, tail: int) -> int:
        """Where a function's head ends, before comments, `try` and blanks."""
        head = self.clean[begin:tail].rstrip()
        if head.endswith("try") and not head[:-3].endswith(tuple("_abcdefghijklmnopqrstuvwxyz")):
            head = head[:-3].rstrip()
        return begin + len(head)

    def _comment(self, previous: int, begin: int) -> int:
        """Where the comment that stands right before `begin` starts."""
        text = self.text
        first = text.rfind("\n", previous, begin) + 1
        if first <= previous or text[first:begin].strip():
            return begin
        line = first
        while line > previous:
            above = text.rfind("\n", previous, line - 1) + 1
            if above <= previous:
                break
            content = text[above : line - 1].strip()
            if content.startswith("//"):
                line = above
                continue
            if content.endswith("*/"):
                opened = text.rfind("/*", previous, line)
                if opened < 0:
                    break
                top = text.rfind("\n", previous, opened) + 1
                if top <= previous or text[top:opened].strip():
                    break
                line = top
                continue
            break
        return line if line < first else begin

    def _simple(self, head: str, begin: int, position: int, owner: str | None) -> Declared:
        raw = self.clean[begin:position] if "(" in head else head
        if owner is None and declarations.is_statement(head):
            word = _IDENTIFIER.match(head)
            if word is None or (self.lookup(word[0]) is None and not word[0].isupper()):
                return Declared("statement", ())
        declared = declarations.simple(head, raw)
        if (
            declared.kind == "prototype"
            and "@" not in head
            and _CALL.match(head.partition("(")[0])
            and declared.owner == ""
            and "->" not in head
        ):
            word = head.partition("(")[0].strip()
            if declared.names[0] == word and word != owner:
                return Declared("call", ())
        return declared

    def _bare(self, word: str) -> "list[Frame | None] | str | None":
        """What a word alone on its line is: scopes, "drop", "call", or None for no macro."""
        macro = self.lookup(word)
        if macro is None:
            if word.isupper() and len(word) > 3 and "_" in word:
                self.parsed.unknown.add(word)
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

    def _macro_call(self, before: str, end: int, owner: str | None) -> "list[Frame | None] | bool":
        """Whether `NAME(...)` at the start of an item ends it here, with no `;` to come."""
        found = _CALL.match(before)
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
            self.parsed.unknown.add(name)
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

    def _after_class(self, close: int, stop: int) -> tuple[int, int]:
        """The index after a class body's `;`, and where it ends."""
        at, kind, partner = self.at, self.kind, self.partner
        i = close + 1
        while i < stop:
            if kind[i] == ";":
                return i + 1, at[i] + 1
            if kind[i] in "([{" and partner[i] >= 0:
                between = self.clean[at[close] + 1 : at[i]]
                if (
                    kind[i] == "{"
                    and "=" not in between
                    and not re.fullmatch(r"\s*\w*\s*", between)
                ):
                    break
                i = partner[i] + 1
                continue
            break
        return close + 1, at[close] + 1

    def _initialisers(self, begin: int, position: int, i: int) -> int:
        """Where `: a(1), b(2)` begins in a constructor's head that ends at `position`, or -1."""
        clean = self.clean
        segment = clean[begin:position]
        if ":" not in segment:
            return -1
        for found in re.finditer(
            r"\)\s*(?:noexcept\s*(?:\([^()]*\))?\s*|try\s*)*(:)(?!:)", segment
        ):
            place = begin + found.start(1)
            # Outside of parentheses: count is cheap, heads are short.
            before = clean[begin:place]
            if before.count("(") == before.count(")"):
                return place
        found = re.search(r"\)[\w\s()]*[^:]:(?!:)", segment)
        if found is not None:
            place = begin + found.end() - 1
            before = clean[begin:place]
            if before.count("(") == before.count(")") and "?" not in before:
                return place
        return -1

    def _next_is_body(self, position: int) -> bool:
        return self.clean[position : position + 50].lstrip()[:1] == "{"


def _used(code: str) -> tuple[str, ...]:
    """The names that a using-declaration names, operators too."""
    code = "".join(code.split()).rstrip(";").removeprefix("using").removeprefix("enum")
    return tuple(part for part in code.replace("typename", "").split(",") if part)


def _after_spaces(code: str, position: int) -> int:
    found = _SPACES.match(code, position)
    return found.end() if found is not None else position


def _is_specialised(head: str, name: str) -> bool:
    """Whether a class head gives `name` template arguments."""
    key = max(head.rfind("class "), head.rfind("struct "), head.rfind("union "))
    colon = head.find(" : ", key)
    return re.search(rf"\b{name}\s*<", head[key : colon if colon > 0 else None]) is not None


def _flags(parts: Head) -> tuple[str, ...]:
    if parts.is_special:
        return ("template", "special")
    return ("template",) if parts.is_template else ()


def _enumerators(body: str) -> tuple[str, ...]:
    names = []
    depth = 0
    expect = True
    for found in re.finditer(r"[A-Za-z_]\w*|[(){}\[\],=]", body):
        token = found.group()
        if token in ("(", "{", "["):
            depth += 1
        elif token in (")", "}", "]"):
            depth -= 1
        elif token == ",":
            expect = depth == 0 or expect
        elif token == "=":
            expect = False
        elif expect and depth == 0:
            names.append(token)
            expect = False
    return tuple(names)


def _partners(kinds: str) -> list[int]:
    """For each bracket the index of the one that closes or opens it, -1 where there is none."""
    partner = [-1] * len(kinds)
    stack: list[int] = []
    for i, char in enumerate(kinds):
        if char in "{([":
            stack.append(i)
        elif char == ";":
            continue
        elif char == "}":
            # A brace closes its brace, whatever parentheses were left open.
            back = len(stack) - 1
            while back >= 0 and kinds[stack[back]] != "{":
                back -= 1
            if back >= 0:
                partner[stack[back]] = i
                partner[i] = stack[back]
                del stack[back:]
        else:
            opening = "(" if char == ")" else "["
            if stack and kinds[stack[-1]] == opening:
                j = stack.pop()
                partner[j] = i
                partner[i] = j
    return partner
