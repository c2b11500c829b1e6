"""Which functions of a document call which others of it, by name."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from nanochat_chunker.slicing.graph import Graph
from nanochat_chunker.slicing.items import Item

Calls = dict[int, list[int]]


def calls_among(graph: Graph, functions: Sequence[int]) -> Calls:
    """For each function those of `functions` that its body names, if any.

    A member counts as named by the other members of its class, by its qualified name, and through
    an object where no other class has a function of that name among these.
    """
    named: dict[str, list[int]] = defaultdict(list)
    for i in functions:
        item = graph.items[i]
        name = item.names[0] if item.names else ""
        # A constructor is named by whoever names the type; operators are not named.
        if name and not name.startswith(("~", "operator")) and not _constructs(item):
            named[name].append(i)
    found: Calls = {}
    if len(named) < 2:
        return found
    last = graph.last_names
    for i in functions:
        for use in graph.items[i].body_uses:
            name = last[use]
            if name in named:
                callees = [j for j in _meant(graph, i, use, named[name]) if j != i]
                if callees:
                    found.setdefault(i, []).extend(callees)
    return found


def _constructs(item: Item) -> bool:
    return item.owner.rpartition("::")[2] == item.names[0]


def _meant(graph: Graph, i: int, use: str, ids: Iterable[int]) -> list[int]:
    """Of functions of one name those that a use of it in the body of `i` means."""
    items = graph.items
    if use[0] != "." and "::" not in use:
        return [
            j for j in ids if not _class_of(graph, j) or _class_of(graph, j) == _class_of(graph, i)
        ]
    if use[0] != ".":
        scope = use.rpartition("::")[0].rpartition("::")[2]
        return [
            j
            for j in ids
            if scope
            in (items[j].owner.rpartition("::")[2], graph.qualifiers[j].rpartition("::")[2])
        ]
    members = [j for j in ids if items[j].owner]
    own = [j for j in members if _class_of(graph, j) == _class_of(graph, i)]
    return own or (members if len({_class_of(graph, j) for j in members}) == 1 else [])


def _class_of(graph: Graph, i: int) -> str:
    """The qualified class of a member defined out of line, or ''."""
    item = graph.items[i]
    if not item.owner:
        return ""
    owner = graph.symbols.owner_of(item)
    return "" if owner in graph.symbols.namespaces else owner


def components(calls: Mapping[int, Sequence[int]]) -> dict[int, int]:
    """Functions by number of the cycle of calls that they are in (Tarjan's algorithm)."""
    number: dict[int, int] = {}
    low: dict[int, int] = {}
    component: dict[int, int] = {}
    path: list[int] = []
    for root in calls:
        if root in number:
            continue
        stack = [(root, 0)]
        while stack:
            i, at = stack.pop()
            if not at:
                number[i] = low[i] = len(number)
                path.append(i)
            callees = calls.get(i, ())
            if at:
                low[i] = min(low[i], low[callees[at - 1]])
            while at < len(callees):
                j = callees[at]
                at += 1
                if j not in number:
                    stack += [(i, at), (j, 0)]
                    break
                if j not in component:
                    low[i] = min(low[i], number[j])
            else:
                if low[i] == number[i]:
                    while True:
                        j = path.pop()
                        component[j] = i
                        if j == i:
                            break
    return component
