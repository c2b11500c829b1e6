"""Documents that libclang has seen: what it misses is brought along, what it refuses left out."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import cast

from nanochat_chunker.semantic.by_names import ByNames
from nanochat_chunker.semantic.checking import Checker, Complaint
from nanochat_chunker.semantic.complaints import (
    is_of_unknown,
    missing_header,
    names_in,
    system_headers,
    wants_body,
    with_bases,
)
from nanochat_chunker.semantic.lean import LEAN, LeanGraph, LeanRenderer
from nanochat_chunker.slicing.closure import Closure
from nanochat_chunker.slicing.graph import Graph
from nanochat_chunker.slicing.items import DECLARED, FULL
from nanochat_chunker.slicing.ladder import Ladder
from nanochat_chunker.slicing.model import Slice, SliceOptions
from nanochat_chunker.slicing.preprocess import is_c

_WORD = re.compile(r"[A-Za-z_]\w*")
_MEMBERS = frozenset(("function", "prototype", "variable"))
_MAX_UNSEEN = 2
_MAX_OF_ONE_NAME = 12  # items that one complaint brings along


class CheckedLadder(Ladder):
    """A ladder whose documents are given to libclang before they are given out.

    What it says is missing, and the file sees, comes along. A body that it still refuses becomes a
    declaration, unless it is a root's. Where that does not help, the document begins with the least
    that may do, or is made by names alone. `notes` counts what became of the documents.
    """

    _rounds = 8  # of mending; most documents that can be mended are so after two
    _patience = 3  # rounds in a row that make nothing better, until it is given up
    _sure = True  # whether the last word on a document is that of a whole look

    def __init__(
        self,
        graph: Graph,
        options: SliceOptions,
        measure: Callable[[str], int],
        checker: Checker,
        by_name: Mapping[str, list[int]] | None = None,
        without_facts: Callable[[], Graph] | None = None,
    ) -> None:
        """`without_facts` makes the graph of the same project by names alone."""
        super().__init__(graph, options, measure)
        self._options = options
        self._checker = checker
        self._without_facts = without_facts
        self._by_name = _by_name(graph) if by_name is None else by_name

    def documents(self, path: str, left_out: Counter[str] | None = None) -> Iterator[Slice]:
        self._checker.next_file()
        yield from super().documents(path, left_out)

    def _write(self, closure: Closure, roots: Sequence[int], rung: str) -> Slice | None:
        slice_ = super()._write(closure, roots, rung)
        if slice_ is None or closure.detail.includes:  # needs headers that clang is not given
            return slice_
        in_c = all(is_c(self._graph.paths[i]) for i in roots)
        found = self._checker.complaints(slice_.text, in_c)
        if not found:
            self.notes["documents_not_checked"] += found is None
            return slice_
        slice_, found = self._mended(closure, roots, slice_, found, in_c)
        if found and not any(missing_header(each.said) for each in found):
            lean = self._lean.document(closure.path, roots, closure.limit, rung)
            if lean is not None:
                slice_, found = lean, []
            elif (plain := self._by_names(closure, roots, slice_, in_c)) is not None:
                self.notes["documents_by_names"] += 1
                return plain
        self.notes["documents_with_errors" if found else "documents_mended"] += 1
        return slice_

    def _mended(
        self,
        closure: Closure,
        roots: Sequence[int],
        slice_: Slice,
        found: Sequence[Complaint],
        in_c: bool,
    ) -> tuple[Slice, Sequence[Complaint]]:
        """The document with the fewest errors on the way, and these."""
        best, fewest, first = slice_, found, slice_.text
        useless, least = 0, len(found)
        includes: dict[str, bool] = {}  # whether they come or go
        for number in range(self._rounds):
            if not found or useless == self._patience:
                break
            if not self._mend(closure, slice_, found, set(roots), includes, number):
                break
            written = super()._write(closure, roots, slice_.rung)
            if written is None:
                break
            slice_ = _with_includes(written, includes)
            again = self._look(slice_, in_c)
            if again is None:
                break
            found = again
            useless = 0 if len(found) < least else useless + 1
            least = min(least, len(found))
            # A header that is not here may be elsewhere: it stays in what is broken without it.
            if len(found) < len(fewest) and (not found or all(includes.values())):
                fewest, best = found, slice_
        if fewest and best.text != first and self._sure:  # a quick look may be too strict
            again = self._checker.complaints(best.text, in_c)
            fewest = fewest if again is None else again
        return best, fewest

    def _look(self, slice_: Slice, in_c: bool) -> Sequence[Complaint] | None:
        """What a quick look finds, or else a whole one."""
        found = self._checker.complaints(slice_.text, in_c, quick=True)
        return found if found != [] else self._checker.complaints(slice_.text, in_c)

    def _by_names(
        self, closure: Closure, roots: Sequence[int], refused: Slice, in_c: bool
    ) -> Slice | None:
        """The first document without errors as it is without facts."""
        if self._plain is None:
            return None
        looked_at = {refused.text}
        for slice_ in self._plain.documents_like(self._graph, closure, roots, refused.rung):
            if slice_.text not in looked_at and self._checker.complaints(slice_.text, in_c) == []:
                return slice_
            looked_at.add(slice_.text)
        return None

    @cached_property
    def _plain(self) -> ByNames | None:
        if self._without_facts is None:
            return None
        return ByNames(self._without_facts(), self._options, self._measure)

    @cached_property
    def _lean(self) -> "_LeanLadder":
        return _LeanLadder(self._graph, self._options, self._measure, self._checker, self._by_name)

    def _too_large(self, path: str, root: int, limit: float, made: list[tuple[int, Slice]]) -> bool:
        slice_ = self._lean.document(path, [root], limit, "part")
        if slice_ is None:
            return False
        self.notes["documents_mended"] += 1
        made.append((root, slice_))
        return True

    def _mend(
        self,
        closure: Closure,
        slice_: Slice,
        found: Sequence[Complaint],
        roots: set[int],
        includes: dict[str, bool],
        number: int,
    ) -> bool:
        """Changes the closure after what clang says; whether there was anything to change."""
        places = self._places(closure, slice_.text)
        lines = slice_.text.split("\n")
        before = dict(closure.level), len(includes)
        missing = [name for each in found if (name := missing_header(each.said))]
        if missing:  # they may be there for what is not in the document
            includes.update(dict.fromkeys(missing, False))
            return True
        for complaint in found:
            complaint = with_bases(complaint, lines)
            i = places.get(complaint.line, -1)
            wanted = list(self._wanted(closure, complaint, i))
            if wanted:
                closure.need(wanted, whole=wants_body(complaint.said))
                continue
            headers = [name for name in system_headers(complaint.said) if name not in includes]
            if headers:
                includes.update(dict.fromkeys(headers, True))
            elif number and i >= 0 and i not in roots:
                self._declare(closure, i)
        return before != (closure.level, len(includes))

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
        if wants_body(complaint.said):
            if i >= 0 and closure.level.get(i) != FULL:
                yield i
            return
        items = self._graph.items
        for name in names_in(complaint.said):
            last = name.rpartition("::")[2]
            everywhere = [
                j
                for j in self._by_name.get(last, ())
                if j != i
                and (j not in closure.level or items[j].kind == "class")
                and closure.level.get(j) != FULL
                and not (items[j].kind in _MEMBERS and items[j].owner)  # in its class
            ]
            # A header that cannot stand alone means what any of its includers has.
            ids = [j for j in everywhere if closure.sees(j)]
            if not ids and is_of_unknown(complaint.said):
                ids = [j for j in everywhere if self._includes(j, closure.path)][:_MAX_UNSEEN]
            exact = [j for j in ids if name.endswith(_qualified(self._graph, j, last))]
            ids = self._specialised(exact or ids, complaint.said, last)
            before = [j for j in ids if j < i] or ids
            yield from before[-_MAX_OF_ONE_NAME:]

    def _includes(self, j: int, path: str) -> bool:
        """Whether the file of an item includes another."""
        project = self._graph.project
        return bool(project.closure[self._graph.paths[j]] >> project.bit[path] & 1)

    def _specialised(self, ids: list[int], said: str, name: str) -> list[int]:
        """Of a template and its specialisations those that may be the one spoken of."""
        special = {j for j in ids if "special" in self._graph.items[j].flags}
        words = set(_WORD.findall(said.partition(f"{name}<")[2]))
        if not special or not words:
            return ids
        return [j for j in ids if j not in special or self._may_be(j, name, words)]

    def _may_be(self, j: int, name: str, words: set[str]) -> bool:
        """Whether the first argument of a specialisation has one of the words, or is open."""
        item = self._graph.items[j]
        text = self._graph.project.text(self._graph.paths[j])
        head = text[item.begin : item.tail if item.tail > 0 else item.end].partition("{")[0]
        parameters, _, arguments = head.partition(f"{name}<")
        first = set(_WORD.findall(arguments.partition(",")[0]))
        return not words.isdisjoint(first) or first <= set(_WORD.findall(parameters))

    def _declare(self, closure: Closure, i: int) -> None:
        """Leaves the bodies of an item away, where it can do without."""
        item = self._graph.items[i]
        if closure.level.get(i) != FULL or item.kind not in ("function", "class"):
            return
        if item.kind == "class" or not (item.owner or item.needs_body or item.tail < 0):
            closure.level[i] = DECLARED


class _LeanLadder(CheckedLadder):
    """Begins with the least and takes what clang asks for, as long as there is room."""

    _rounds = 24
    _patience = 8  # errors come and go: what lacks one class hides what lacks in it
    _sure = False

    def __init__(
        self,
        graph: Graph,
        options: SliceOptions,
        measure: Callable[[str], int],
        checker: Checker,
        by_name: Mapping[str, list[int]],
    ) -> None:
        renderer = LeanRenderer(graph)
        lean = cast(Graph, LeanGraph(graph, renderer))
        super().__init__(lean, options, measure, checker, by_name)
        self._renderer = renderer

    def document(self, path: str, roots: Sequence[int], limit: float, rung: str) -> Slice | None:
        """One without errors, or none."""
        closure = Closure(self._graph, path, LEAN, limit)
        closure.add(roots)
        if closure.size > limit:
            return None
        slice_ = Ladder._write(self, closure, roots, f"{rung.partition(',')[0]}, {LEAN.name}")
        if slice_ is None:
            return None
        in_c = all(is_c(self._graph.paths[i]) for i in roots)
        found = self._look(slice_, in_c)
        if found:
            slice_, found = self._mended(closure, roots, slice_, found, in_c)
        return slice_ if found is not None and not found else None


def _by_name(graph: Graph) -> Mapping[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for i, item in enumerate(graph.items):
        if item.kind != "include":
            for name in item.names:
                found[name].append(i)
    return found


def _qualified(graph: Graph, j: int, last: str) -> str:
    parts = [part for part in (graph.qualifiers[j], graph.items[j].owner, last) if part]
    return "::".join(parts)


def _with_includes(slice_: Slice, includes: Mapping[str, bool]) -> Slice:
    """A document with some headers of the system more, and without some."""
    text = "".join(f"#include <{name}>\n" for name, comes in includes.items() if comes)
    text += slice_.text
    for name, comes in includes.items():
        if not comes:
            text = re.sub(rf'^#include [<"]{re.escape(name)}[>"]\n', "", text, flags=re.M)
    return Slice(text, slice_.roots, slice_.paths, slice_.rung)
