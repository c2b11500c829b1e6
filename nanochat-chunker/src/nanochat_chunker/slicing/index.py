"""Indexing one file: preprocess, parse, and put directives among the items."""

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from nanochat_chunker.slicing.items import Item
from nanochat_chunker.slicing.macro_shapes import Guess, Guesses
from nanochat_chunker.slicing.macros import Lookup, Macro
from nanochat_chunker.slicing.model import FileIndex
from nanochat_chunker.slicing.names import names_in
from nanochat_chunker.slicing.parsing import Parsed, parse
from nanochat_chunker.slicing.preprocess import Event, is_c, predefined_for, preprocess
from nanochat_chunker.slicing.unchanged import Earlier

_OBJECTIVE_C = re.compile(r"@(?:interface|implementation|protocol|class|import)\b")


def build(
    path: str,
    text: str,
    known: Lookup | None = None,
    shapes: Lookup | None = None,
    left_out: Sequence[tuple[int, int]] | None = None,
    old: FileIndex | None = None,
) -> FileIndex:
    """The index of a file.

    `known` are the macros of what was included before it, where that is known; `shapes` those that
    may be in force anywhere in it, undefined again or not: they tell where items begin and end.
    `left_out` are the spans that a compiler skips, where one was asked. `old` is the index that
    was made when nothing of all that was known; the new one is the same with it as without.
    """
    if "@" in text and _is_objective_c(text):
        return FileIndex(path, len(text), skipped="objective_c")
    prepared = preprocess(path, text, known, left_out)
    lookup = _macros(path, prepared.events, shapes)
    earlier = Earlier(old, _macros(path, old.events), prepared) if old is not None else None
    parsed = parse(text, prepared.clean, lookup, earlier)
    return FileIndex(
        path,
        len(text),
        is_c=is_c(path),
        items=tuple(_merge(parsed, prepared.events)),
        cuts=tuple(prepared.cuts),
        events=tuple(prepared.events),
        guesses=_in_order(parsed.guesses),
        asked=parsed.asked if shapes is None else (),
        off=tuple(dict.fromkeys(prepared.off)),
        fragment=any(item.kind == "statement" for item in parsed.items),
        once=bool(prepared.guard) or prepared.pragma_once,
        guard=prepared.guard,
    )


def _is_objective_c(text: str) -> bool:
    """Whether a line begins with a directive of Objective-C."""
    for found in _OBJECTIVE_C.finditer(text):
        at = found.start()
        if not text[text.rfind("\n", 0, at) + 1 : at].strip(" \t"):
            return True
    return False


def _macros(path: str, events: Iterable[Event], others: Lookup | None = None) -> Lookup:
    """The macros of a file with these directives, then `others`, then those of the compiler."""
    local = {
        event.value.name: event.value
        for event in events
        if event.kind == "define" and isinstance(event.value, Macro)
    }
    predefined = predefined_for(path)

    def lookup(name: str) -> Macro | None:
        found = local.get(name)
        if found is None and others is not None:
            found = others(name)
        return found if found is not None else predefined(name)

    return lookup


def _in_order(guesses: Guesses) -> tuple[tuple[Guess, tuple[int, ...]], ...]:
    found = [(guess, tuple(sorted(places))) for guess, places in guesses.items()]
    return tuple(sorted(found, key=lambda each: (each[1], each[0].name, each[0].how)))


def _merge(parsed: Parsed, events: Iterable[Event]) -> list[Item]:
    """Directives outside of items become items of their own; those within leave their mark."""
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
            if items[i].begin in parsed.kept:
                pass  # it bears the mark
            elif event.kind == "include":
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
