"""Fitting documents to the budget: less detail, then fewer roots."""

from collections.abc import Callable, Iterator, Sequence

from nanochat_chunker.slicing.closure import Closure, Detail, close
from nanochat_chunker.slicing.graph import Graph
from nanochat_chunker.slicing.items import DEFINITIONS
from nanochat_chunker.slicing.model import Root, Slice, SliceOptions
from nanochat_chunker.slicing.rendering import paths_of, render

_TAKEN_ALONG = frozenset("include define undef using directive namespace access other".split())


def rungs(options: SliceOptions) -> list[Detail]:
    found = [Detail(f"bodies {options.cross_depth} calls deep", options.cross_depth, "full")]
    if options.cross_depth > 1:
        found.append(Detail("bodies of direct callees", 1, "full"))
    if options.cross_depth > 0:
        found.append(Detail("callees declared", 0, "full"))
    found.append(Detail("members declared", 0, "declared"))
    return found


def documents(
    graph: Graph, path: str, options: SliceOptions, measure: Callable[[str], int]
) -> Iterator[Slice]:
    """The documents whose roots are the definitions of one file."""
    ids = [i for i in graph.by_path.get(path, ()) if graph.items[i].kind != "include"]
    roots = [i for i in ids if graph.items[i].kind not in _TAKEN_ALONG]
    if not roots:
        return
    ladder = rungs(options)
    for detail in ladder:
        closure = close(graph, ids, path, detail)
        text = render(graph, closure)
        if measure(text) <= options.budget:
            yield _slice(graph, roots, closure, text, "file, " + detail.name)
            return
    yield from _parts(graph, path, roots, options, measure, ladder)


def _parts(
    graph: Graph,
    path: str,
    roots: Sequence[int],
    options: SliceOptions,
    measure: Callable[[str], int],
    ladder: list[Detail],
) -> Iterator[Slice]:
    """Documents of as many neighbouring roots as fit, by halving."""
    todo = [list(roots)]
    while todo:
        group = todo.pop()
        if not any(graph.items[i].kind in DEFINITIONS for i in group) and len(group) < len(roots):
            continue
        for detail in ladder if len(group) == 1 else ladder[-1:]:
            closure = close(graph, group, path, detail)
            text = render(graph, closure)
            if measure(text) <= options.budget:
                yield _slice(graph, group, closure, text, "part, " + detail.name)
                break
        else:
            if len(group) > 1:
                half = len(group) // 2
                todo.append(group[half:])
                todo.append(group[:half])


def _slice(
    graph: Graph, roots: Sequence[int], closure: Closure, text: str, rung: str
) -> Slice:
    found = []
    for i in roots:
        item = graph.items[i]
        if item.kind in DEFINITIONS:
            found.append(root_of(graph, i))
    if not found:
        found = [root_of(graph, i) for i in roots[:1]]
    return Slice(text, tuple(found), paths_of(graph, closure), rung)


def root_of(graph: Graph, i: int) -> Root:
    item, path = graph.items[i], graph.paths[i]
    name = item.names[0] if item.names else ""
    parts = [part for part in (item.qualifier, item.owner, name) if part]
    line = graph.project.text(path).count("\n", 0, item.begin) + 1
    return Root(path, line, "::".join(parts), item.kind)
