"""Indexing one file: preprocess, parse, and put directives among the items."""

import re
from bisect import bisect_right
from collections.abc import Sequence

from nanochat_chunker.slicing.items import Item
from nanochat_chunker.slicing.macros import Lookup, Macro
from nanochat_chunker.slicing.model import FileIndex
from nanochat_chunker.slicing.names import names_in
from nanochat_chunker.slicing.parsing import Parsed, parse
from nanochat_chunker.slicing.preprocess import Event, is_c, predefined_for, preprocess

_OBJECTIVE_C = re.compile(
    r"^[ \t]*@(?:interface|implementation|protocol|class|import)\b", re.MULTILINE
)


def build(
    path: str,
    text: str,
    known: Lookup | None = None,
    shapes: Lookup | None = None,
    left_out: Sequence[tuple[int, int]] | None = None,
) -> FileIndex:
    """The index of a file.

    `known` are the macros of what was included before it, where that is known; `shapes` those that
    may be in force anywhere in it, undefined again or not: they tell where items begin and end.
    `left_out` are the spans that a compiler skips, where one was asked.
    """
    if "@" in text and _OBJECTIVE_C.search(text):
        return FileIndex(path, len(text), skipped="objective_c")
    prepared = preprocess(path, text, known, left_out)
    local: dict[str, Macro] = {}
    for event in prepared.events:
        if event.kind == "define" and isinstance(event.value, Macro):
            local[event.value.name] = event.value
    predefined = predefined_for(path)

    def lookup(name: str) -> Macro | None:
        found = local.get(name)
        if found is None and shapes is not None:
            found = shapes(name)
        return found if found is not None else predefined(name)

    parsed = parse(text, prepared.clean, lookup)
    return FileIndex(
        path,
        len(text),
        is_c=is_c(path),
        items=tuple(_merge(parsed, prepared.events)),
        cuts=tuple(prepared.cuts),
        events=tuple(prepared.events),
        guesses=tuple(
            (name, tuple(guesses)) for name, guesses in parsed.guesses.items() if name not in local
        ),
        off=tuple(dict.fromkeys(prepared.off)),
        fragment=any(item.kind == "statement" for item in parsed.items),
        once=bool(prepared.guard) or prepared.pragma_once,
        guard=prepared.guard,
    )


def _merge(parsed: Parsed, events: list[Event]) -> list[Item]:
    """Directives outside of items become items of their own."""
    items = parsed.items
    places = [position for position, _ in parsed.scopes]
    merged: list[Item] = []
    i = 0
    for event in events:
        if event.kind == "if":
            continue
        while i < len(items) and items[i].end <= event.start:
            merged.append(items[i])
            i += 1
        if i < len(items) and items[i].begin < event.start:
            if event.kind == "include":
                items[i].flags |= {"inner"}
            elif isinstance(event.value, Macro):
                items[i].body_uses += names_in(blank_literals(event.value.body))
            continue
        directive = _directive(event)
        if event.kind == "include":
            place = bisect_right(places, event.start)
            directive.scope = parsed.scopes[place - 1][1] if place else ()
        merged.append(directive)
    merged.extend(items[i:])
    return merged


def _directive(event: Event) -> Item:
    value = event.value
    if isinstance(value, Macro):
        uses = tuple(
            name
            for name in names_in(blank_literals(value.body))
            if name not in (value.params or ())
        )
        flags = frozenset(
            (["function"] if value.params is not None else [])
            + (["pastes"] if "##" in value.body else [])
        )
        return Item(
            "define",
            event.start,
            event.start,
            event.end,
            names=(value.name,),
            uses=uses,
            flags=flags,
        )
    angle = event.kind == "include" and event.extra
    return Item(
        event.kind, event.start, event.start, event.end, names=(value,),
        flags=frozenset(("angle",) if angle else ()),
    )  # fmt: skip


def blank_literals(body: str) -> str:
    """Code with its literals empty."""
    return re.sub(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'', '""', body)
