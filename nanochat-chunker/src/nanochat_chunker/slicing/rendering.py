"""Writing the items of a document as one file."""

from bisect import bisect_left
from collections.abc import Iterable

from nanochat_chunker.slicing.closure import FULL, Closure
from nanochat_chunker.slicing.configuration import STANDARD_HEADERS
from nanochat_chunker.slicing.graph import Graph
from nanochat_chunker.slicing.items import Item, Scope

_DIRECTIVES = frozenset(("define", "undef", "include"))
_FUNCTION_TYPES = ("function", "prototype")


def render(graph: Graph, closure: Closure) -> str:
    """The document of `closure`: system includes, then its items in the project's order."""
    ids = sorted(i for i in closure.level if graph.items[i].kind != "include")
    out = list(includes(graph, ids, closure))
    scope: Scope = ()
    defined: set[str] = set()
    last = -2
    for i in ids:
        item = graph.items[i]
        if item.kind in _DIRECTIVES:
            name = item.names[0]
            if item.kind == "define":
                if name in defined:
                    out.append(f"#undef {name}\n")
                defined.add(name)
            else:
                defined.discard(name)
            out.append(_text(graph, i, FULL).strip("\n") + "\n")
            continue
        if item.scope != scope:
            _switch(out, scope, item.scope)
            scope = item.scope
        elif out and i != last + 1:
            out.append("\n")
        text = _text(graph, i, closure.level[i])
        out.append(text.strip("\n") + "\n")
        last = i
    _switch(out, scope, ())
    return "".join(out)


def paths_of(graph: Graph, closure: Closure) -> tuple[str, ...]:
    """The files that gave items, in order of appearance."""
    return tuple(dict.fromkeys(graph.paths[i] for i in sorted(closure.level)))


def includes(graph: Graph, ids: Iterable[int], closure: Closure) -> Iterable[str]:
    """The includes that stay: those of no file of the project."""
    project = graph.project
    paths = dict.fromkeys(graph.paths[i] for i in ids)
    roots = {graph.paths[i] for i in closure.roots}
    seen = 0
    for path in paths:
        seen |= graph.context(path)
    lines: dict[str, None] = {}
    for path in project.files:
        if not seen >> project.bit[path] & 1:
            continue
        for item in project.files[path].items:
            if item.kind != "include":
                continue
            target = item.names[0]
            angle = "angle" in item.flags
            if project.resolve(path, target, angle) is not None or target.startswith("/"):
                continue
            if target in STANDARD_HEADERS:
                lines[f"#include <{target}>\n"] = None
            elif path in roots or (path in paths and angle):
                lines[f"#include <{target}>\n" if angle else f'#include "{target}"\n'] = None
    if lines:
        yield from lines
        yield "\n"


def _switch(out: list[str], old: Scope, new: Scope) -> None:
    common = 0
    while common < len(old) and common < len(new) and old[common] == new[common]:
        common += 1
    for frame in reversed(old[common:]):
        comment = f"  // {frame.opener}" if frame.opener else ""
        out.append(f"}}{comment}\n")
    if out and (old or new):
        out.append("\n")
    for frame in new[common:]:
        out.append(f"{frame.opener} {{\n")


def _text(graph: Graph, i: int, level: str) -> str:
    item = graph.items[i]
    path = graph.paths[i]
    drops: list[tuple[int, int, str]] = []
    end = item.end
    suffix = ""
    if level != FULL:
        if item.kind == "function" and item.tail >= 0:
            end = item.tail
            suffix = ";"
        else:
            _drop_bodies(item.members, drops)
    if "inner" in item.flags:
        _inline(graph, path, item, drops)
    text = cut(graph, path, item.start, end, drops)
    return text.rstrip() + suffix if suffix else text


def _drop_bodies(members: tuple[Item, ...], drops: list[tuple[int, int, str]]) -> None:
    for member in members:
        if member.members:
            _drop_bodies(member.members, drops)
        elif member.kind == "function" and member.tail >= 0 and not member.needs_body:
            drops.append((member.tail, member.end, ";"))


def _inline(graph: Graph, path: str, item: Item, drops: list[tuple[int, int, str]]) -> None:
    """Lists for macros that the item includes, in the place of their #include."""
    project = graph.project
    for event in project.files[path].events:
        if event.kind == "include" and item.begin < event.start < item.end:
            target = project.resolve(path, str(event.value), event.extra)
            if target is not None:
                whole = cut(graph, target, 0, project.files[target].size, [])
                drops.append((event.start, event.end, whole.strip("\n")))


def cut(
    graph: Graph, path: str, start: int, end: int, drops: list[tuple[int, int, str]]
) -> str:
    """text[start:end] without what the configuration leaves out, with `drops` replaced."""
    text = graph.project.text(path)
    cuts = graph.project.files[path].cuts
    first = bisect_left(cuts, (start, 0))
    if first and cuts[first - 1][1] > start:
        first -= 1
    changes = list(drops)
    for left, right in cuts[first:]:
        if left >= end:
            break
        changes.append((max(left, start), min(right, end), ""))
    if not changes:
        return text[start:end]
    out = []
    at = start
    for left, right, new in sorted(changes):
        if left < at:
            at = max(at, right)
            continue
        out.append(text[at:left])
        out.append(new)
        at = right
    out.append(text[at:end])
    return "".join(out)
