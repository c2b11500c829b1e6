"""Writing the items of a document as one file."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence, Set
from types import MappingProxyType

from nanochat_chunker.slicing.graph import Graph
from nanochat_chunker.slicing.includes_kept import ExternalIncludes
from nanochat_chunker.slicing.items import FULL, Item, Scope
from nanochat_chunker.slicing.own_includes import Preamble, include_line
from nanochat_chunker.slicing.pieces import Piece
from nanochat_chunker.slicing.preprocess import is_c

_Key = tuple[int, int, frozenset[int] | None]

_MAX_KEPT = 16_000_000  # characters of items' texts


class Renderer:
    """Writes documents; the texts of items are kept, for they return in many documents."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._pieces: dict[_Key, Piece] = {}
        self._kept = 0
        self._includes = ExternalIncludes(graph)
        self._preamble = Preamble(graph.project)

    def render(
        self,
        level: Mapping[int, int],
        roots: Iterable[int],
        members: Mapping[int, frozenset[int]] = MappingProxyType({}),
        own: Sequence[str] = (),
    ) -> str:
        """Includes, then the items in the order given, in their scopes.

        `members` are for some classes the only members that stay. With `own`, the files that
        the document has parts of, the includes among the items stay in their place, else those of
        the system stand before all.
        """
        graph, items = self._graph, self._graph.items
        ids = [i for i in level if own or items[i].kind != "include"]
        out: list[str] = []
        root_paths = {graph.paths[i] for i in roots}
        in_c = bool(root_paths) and all(map(is_c, root_paths))
        scope: Scope = ()
        defined: set[str] = set()
        opened: set[str] = set()  # namespaces
        pieces: list[Piece] = []
        included: list[str | None] = []  # files of the project
        last = -2
        for i in ids:
            item = items[i]
            kind = item.kind
            if kind == "define" or kind == "undef":
                name = item.names[0]
                if kind == "define":
                    if name in defined:
                        out.append(f"#undef {name}\n")
                    defined.add(name)
                else:
                    defined.discard(name)
            elif (here := () if in_c else item.scope) != scope:
                _switch(out, scope, here)
                scope = here
                opened.add(graph.qualifiers[i])
            elif i != last + 1 and out:
                out.append("\n")
            if kind in ("namespace", "directive"):
                out.append(self._declare_namespace(i, opened))
            if kind == "include":
                path = graph.paths[i]
                out.append(include_line(graph.project, path, item))
                included.append(graph.project.resolve(path, item.names[0], "angle" in item.flags))
            else:
                piece = self._piece(i, level[i], members.get(i))
                pieces.append(piece)
                out.append(piece.text)
            last = i
        _switch(out, scope, ())
        if own:
            before = [self._preamble.of(own, included)]
        else:
            paths = dict.fromkeys(map(graph.paths.__getitem__, ids))
            before = self._includes.of(paths, root_paths, pieces)
        return "".join([*before, *out])

    def _declare_namespace(self, i: int, opened: set[str]) -> str:
        """The namespace that an alias or a directive names, where nothing of it came before."""
        graph, item = self._graph, self._graph.items[i]
        names = item.names if item.kind == "directive" else item.uses
        for name in names:
            if item.kind == "namespace" and name in item.names[:1]:
                continue
            target = graph.lookup.namespace_named(name, graph.qualifiers[i])
            if not target or graph.qualifiers[i] or target == "std":
                continue
            if any(f"{other}::".startswith(f"{target}::") for other in opened):
                continue
            opened.add(target)
            parts = target.split("::")
            opening = " ".join(f"namespace {part} {{" for part in parts)
            return f"{opening} {'}' * len(parts)}\n"
        return ""

    def text_of(self, i: int, level: int, members: frozenset[int] | None = None) -> str:
        """An item as it stands in a document, with its line's end.

        `members` are the only ones of a class that stay, where not all do.
        """
        return self._piece(i, level, members).text

    def _piece(self, i: int, level: int, members: frozenset[int] | None) -> Piece:
        key = (i, level, members)
        found = self._pieces.get(key)
        if found is None:
            found = Piece(self._cut(i, level, members))
            if self._kept > _MAX_KEPT:
                self._pieces.clear()
                self._kept = 0
            self._pieces[key] = found
            self._kept += len(found.text)
        return found

    def _cut(self, i: int, level: int, members: Set[int] | None = None) -> str:
        return _text(self._graph, i, level, members).strip("\n") + "\n"


def paths_of(graph: Graph, level: Mapping[int, int]) -> tuple[str, ...]:
    """The files that gave items, in order of appearance."""
    return tuple(dict.fromkeys(map(graph.paths.__getitem__, level)))


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


def _text(graph: Graph, i: int, level: int, members: Set[int] | None = None) -> str:
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
            if members is not None:
                for place, member in enumerate(item.members):
                    if place not in members:
                        drops.append((member.start, member.end, ""))
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
    for event in graph.project.files[path].events:
        if event.kind == "include" and item.begin < event.start < item.end:
            target = graph.project.resolve(path, str(event.value), event.extra)
            if target is not None:
                drops.append((event.start, event.end, _whole(graph, target, (path,))))


def _whole(graph: Graph, path: str, around: tuple[str, ...]) -> str:
    """A file with the files that it includes in their place, those aside that it is in already."""
    drops = []
    around = (*around, path)
    for event in graph.project.files[path].events:
        if event.kind == "include":
            target = graph.project.resolve(path, str(event.value), event.extra)
            if target is not None and target not in around:
                inner = _whole(graph, target, around)
                drops.append((event.start, event.end, inner))
            elif target is not None or graph.project.is_own(path, str(event.value)):
                drops.append((event.start, event.end, ""))
    return cut(graph, path, 0, graph.project.files[path].size, drops).strip("\n")


def cut(graph: Graph, path: str, start: int, end: int, drops: list[tuple[int, int, str]]) -> str:
    """text[start:end] without what the configuration leaves out, with `drops` replaced."""
    text = graph.project.text(path)
    cuts = graph.project.files[path].cuts
    first = bisect_left(cuts, (start, 0))
    if first and cuts[first - 1][1] > start:
        first -= 1
    changes = list(drops)
    while first < len(cuts) and cuts[first][0] < end:
        left, right = cuts[first]
        changes.append((max(left, start), min(right, end), ""))
        first += 1
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
