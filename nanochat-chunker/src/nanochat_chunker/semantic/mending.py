"""Documents that libclang has seen: what it misses is brought along, what it refuses left out."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import cast

from nanochat_chunker.semantic.checking import Checker, Complaint
from nanochat_chunker.semantic.lean import LEAN, LeanGraph
from nanochat_chunker.slicing.closure import DECLARED, FULL, Closure
from nanochat_chunker.slicing.graph import Graph
from nanochat_chunker.slicing.ladder import Ladder
from nanochat_chunker.slicing.model import Slice, SliceOptions
from nanochat_chunker.slicing.preprocess import is_c
from nanochat_chunker.slicing.system_headers import headers_of

_ROUNDS = 8  # of mending; most documents that can be mended are so after two
_QUOTED = re.compile(r"'([^']+)'")
_LAST_NAME = re.compile(r"(?:operator\s*(?:\(\)|\[\]|[^\s\w(]+)|~?[A-Za-z_]\w*)$")
_ARGUMENTS = re.compile(r"<[^<>]*>|\([^()]*\)")
_MISSING_HEADER = re.compile(r"file not found")
_UNDEFINED = re.compile(r"is used but not defined|undefined inline|has no definition")
_TWICE = re.compile(r"^(?:redefinition|ambiguous)")
_UNKNOWN = (
    "undeclared", "unknown type", "namespace 'std'", "no template named", "no type named",
    "incomplete type", "undefined template",
)  # fmt: skip
_USELESS = 3  # rounds in a row that make nothing better, until it is given up
_MAX_UNSEEN = 2
_MAX_OF_ONE_NAME = 12  # items that one complaint brings along


class CheckedLadder(Ladder):
    """A ladder whose documents are given to libclang before they are given out.

    What it says is missing, and the file sees, comes along. A body that it still refuses becomes a
    declaration, unless it is a root's. `notes` counts what became of the documents.
    """

    def __init__(
        self,
        graph: Graph,
        options: SliceOptions,
        measure: Callable[[str], int],
        checker: Checker,
    ) -> None:
        super().__init__(graph, options, measure)
        self._checker = checker
        self._by_name: dict[str, list[int]] = defaultdict(list)
        for i, item in enumerate(graph.items):
            if item.kind != "include":
                for name in item.names:
                    self._by_name[name].append(i)

    def _write(self, closure: Closure, roots: Sequence[int], rung: str) -> Slice | None:
        slice_ = super()._write(closure, roots, rung)
        if slice_ is None or closure.detail.includes:  # needs headers that clang is not given
            return slice_
        in_c = all(is_c(self._graph.paths[i]) for i in roots)
        found = self._checker.complaints(slice_.text, in_c)
        if not found:
            self.notes["documents_not_checked"] += found is None
            return slice_
        best, fewest, first = slice_, found, slice_.text
        useless = 0
        includes: dict[str, None] = {}
        for number in range(_ROUNDS):
            if (
                not found
                or useless == _USELESS
                or any(_MISSING_HEADER.search(each.said) for each in found)
            ):
                break
            if not self._mend(closure, slice_, found, set(roots), includes, number):
                break
            written = super()._write(closure, roots, rung)
            if written is None:
                break
            slice_ = _with_includes(written, includes)
            found = self._look(slice_, in_c)
            if found is None:
                break
            useless = 0 if len(found) < len(fewest) else useless + 1
            if len(found) < len(fewest):
                fewest, best = found, slice_
        if fewest and best.text != first:  # a quick look may have been too strict
            fewest = self._checker.complaints(best.text, in_c) or ()
        self.notes["documents_with_errors" if fewest else "documents_mended"] += 1
        return best

    def _look(self, slice_: Slice, in_c: bool) -> Sequence[Complaint] | None:
        """What a quick look finds, or else a whole one."""
        found = self._checker.complaints(slice_.text, in_c, quick=True)
        return found if found != [] else self._checker.complaints(slice_.text, in_c)

    def _too_large(self, path: str, root: int, limit: float, made: list[tuple[int, Slice]]) -> bool:
        closure = Closure(cast(Graph, LeanGraph(self._graph)), path, LEAN, limit)
        closure.add([root])
        if closure.size <= limit:
            slice_ = self._write(closure, [root], "part, " + LEAN.name)
            if slice_ is not None:
                made.append((root, slice_))
                return True
        return False

    def _mend(
        self,
        closure: Closure,
        slice_: Slice,
        found: Sequence[Complaint],
        roots: set[int],
        includes: dict[str, None],
        number: int,
    ) -> bool:
        """Changes the closure after what clang says; whether there was anything to change."""
        places = self._places(closure, slice_.text)
        changed = False
        for complaint in found:
            i = places.get(complaint.line, -1)
            wanted = list(self._wanted(closure, complaint, i))
            if wanted:
                closure.need(wanted, whole=_UNDEFINED.search(complaint.said) is not None)
                changed = True
                continue
            headers = [name for name in _system_names(complaint.said) if name not in includes]
            if headers:
                includes.update(dict.fromkeys(headers))
                changed = True
            elif number and i >= 0 and i not in roots and self._declares(closure, i):
                changed = True
        return changed

    def _places(self, closure: Closure, text: str) -> Mapping[int, int]:
        """The item on each line of a document."""
        lines: dict[int, int] = {}
        at, line = 0, 1
        for i, level in closure.finished().items():
            if self._graph.items[i].kind == "include":
                continue
            part = self._renderer.text_of(i, level)
            start = text.find(part, at)
            if start < 0:
                continue
            line += text.count("\n", at, start)
            count = part.count("\n")
            for n in range(count + (not part.endswith("\n"))):
                lines[line + n] = i
            line += count
            at = start + len(part)
        return lines

    def _wanted(self, closure: Closure, complaint: Complaint, i: int) -> Iterator[int]:
        """Items that a complaint names, visible where it is, and not there."""
        if _UNDEFINED.search(complaint.said):
            if i >= 0 and closure.level.get(i) != FULL:
                yield i
            return
        items = self._graph.items
        for name in _names(complaint.said):
            last = name.rpartition("::")[2]
            everywhere = [
                j
                for j in self._by_name.get(last, ())
                if j != i
                and (j not in closure.level or items[j].kind == "class")
                and closure.level.get(j) != FULL
            ]
            # A header that cannot stand alone means what any of its includers has.
            ids = [j for j in everywhere if closure.sees(j)] or everywhere[:_MAX_UNSEEN]
            exact = [j for j in ids if name.endswith(_qualified(self._graph, j, last))]
            ids = exact or ids
            before = [j for j in ids if j < i] or ids
            yield from before[-_MAX_OF_ONE_NAME:]

    def _declares(self, closure: Closure, i: int) -> bool:
        """Leaves the bodies of an item away, where it can do without."""
        item = self._graph.items[i]
        if closure.level.get(i) != FULL or item.kind not in ("function", "class"):
            return False
        if item.kind == "function" and (item.owner or item.needs_body or item.tail < 0):
            return False
        closure.level[i] = DECLARED
        return True


def _qualified(graph: Graph, j: int, last: str) -> str:
    parts = [part for part in (graph.qualifiers[j], graph.items[j].owner, last) if part]
    return "::".join(parts)


def _names(said: str) -> Iterator[str]:
    """The names in a complaint, qualified where it tells the scope, without template arguments."""
    quoted = []
    for name in _QUOTED.findall(said):
        while (shorter := _ARGUMENTS.sub("", name)) != name:
            name = shorter
        quoted.append(name.strip(" *&"))
    if len(quoted) > 1 and re.search(r"in (?:namespace|class|struct) ", said):
        yield f"{quoted[1]}::{quoted[0]}"
    for name in quoted:
        for word in re.findall(r"[A-Za-z_][\w:]*|operator\S+", name):
            if word not in ("class", "struct", "const", "enum", "std"):
                yield word.removeprefix("::")


def _system_names(said: str) -> Iterator[str]:
    """Headers of the standard library that speak of a name in a complaint."""
    if any(words in said for words in _UNKNOWN):
        for name in _names(said):
            yield from headers_of(name.rpartition("::")[2])


def _with_includes(slice_: Slice, includes: Iterable[str]) -> Slice:
    lines = "".join(f"#include <{name}>\n" for name in includes)
    return Slice(lines + slice_.text, slice_.roots, slice_.paths, slice_.rung)
