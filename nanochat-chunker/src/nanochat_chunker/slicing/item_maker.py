"""Making an item of what a stretch of code declares: its names, its comment, its parts."""

from dataclasses import replace

from nanochat_chunker.slicing.declarations import Declared
from nanochat_chunker.slicing.items import Item, Scope
from nanochat_chunker.slicing.names import names_in


class ItemMaker:
    """Items of one text; `clean` is the text as the preprocessor leaves it."""

    def __init__(self, text: str, clean: str) -> None:
        self.text = text
        self.clean = clean

    def item(
        self,
        declared: Declared,
        previous: int,
        begin: int,
        end: int,
        tail: int,
        scope: Scope,
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
        if _is_unnamed(scope):
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

    def again(self, item: Item, previous: int, scope: Scope) -> Item | None:
        """An item whose code is as it was, after what comes before it now; None if unknown."""
        flags = item.flags
        if scope != item.scope and _is_unnamed(scope) != _is_unnamed(item.scope):
            if "local" in flags:  # static, or of the unnamed namespace: nobody remembers
                return None
            flags |= {"local"}
        start = self._comment(previous, item.begin)
        if start == item.start and scope == item.scope:
            return item
        return replace(item, start=start, scope=scope, flags=flags)

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


def _is_unnamed(scope: Scope) -> bool:
    return any(frame.opener == "namespace" for frame in scope)


def _used(code: str) -> tuple[str, ...]:
    """The names that a using-declaration names, operators too."""
    code = "".join(code.split()).rstrip(";").removeprefix("using").removeprefix("enum")
    return tuple(part for part in code.replace("typename", "").split(",") if part)
