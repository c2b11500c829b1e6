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
    classes = _Classes(graph)
    for i in functions:
        for use in [use for use in graph.items[i].body_uses if last[use] in named]:
            callees = [j for j in _meant(graph, classes, i, use, named[last[use]]) if j != i]
            if callees:
                found.setdefault(i, []).extend(callees)
    return found


def _constructs(item: Item) -> bool:
    return item.owner.rpartition("::")[2] == item.names[0]


class _Classes(dict[int, str]):
    """By function the qualified class of a member that is defined out of line, or ''."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph

    def __missing__(self, i: int) -> str:
        item, symbols = self._graph.items[i], self._graph.symbols
        owner = symbols.owner_of(item) if item.owner else ""
        found = self[i] = "" if owner in symbols.namespaces else owner
        return found


def _meant(
    graph: Graph, classes: Mapping[int, str], i: int, use: str, ids: Iterable[int]
) -> list[int]:
    """Of functions of one name those that a use of it in the body of `i` means."""
    items = graph.items
    if use[0] != "." and "::" not in use:
        return [j for j in ids if not classes[j] or classes[j] == classes[i]]
    if use[0] != ".":
        scope = use.rpartition("::")[0].rpartition("::")[2]
        return [
            j
            for j in ids
            if scope
            in (items[j].owner.rpartition("::")[2], graph.qualifiers[j].rpartition("::")[2])
        ]
    members = [j for j in ids if items[j].owner]
    own = [j for j in members if classes[j] == classes[i]]
    return own or (members if len({classes[j] for j in members}) == 1 else [])


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
