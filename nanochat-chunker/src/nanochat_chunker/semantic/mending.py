"""Documents that libclang has seen: what it misses is brought along, what it refuses left out."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import cast

from nanochat_chunker.semantic.checking import Checker, Complaint
from nanochat_chunker.semantic.lean import LEAN, LeanGraph, LeanRenderer
from nanochat_chunker.slicing.closure import DECLARED, FULL, Closure
from nanochat_chunker.slicing.graph import Graph
from nanochat_chunker.slicing.ladder import Ladder
from nanochat_chunker.slicing.model import Slice, SliceOptions
from nanochat_chunker.slicing.preprocess import is_c
from nanochat_chunker.slicing.system_headers import headers_of

_WORD = re.compile(r"[A-Za-z_]\w*")
_QUOTED = re.compile(r"'([^']+)'")
_LAST_NAME = re.compile(r"(?:operator\s*(?:\(\)|\[\]|[^\s\w(]+)|~?[A-Za-z_]\w*)$")
_ARGUMENTS = re.compile(r"<[^<>]*>|\([^()]*\)")
_MISSING_HEADER = re.compile(r"^'([^']+)' file not found")
_UNDEFINED = re.compile(r"is used but not defined|undefined inline|has no definition")
_NONE_IN = re.compile(r"^no (?:\w+ )+named '[^']*' in ")
_BASE = "base class has incomplete type"  # of which it does not tell the name
_MEMBERS = frozenset(("function", "prototype", "variable"))
_UNKNOWN = (
    "undeclared", "unknown type", "namespace 'std'", "no template named", "no type named",
    "incomplete type", "undefined template",
)  # fmt: skip
_MAX_UNSEEN = 2
_MAX_OF_ONE_NAME = 12  # items that one complaint brings along


class CheckedLadder(Ladder):
    """A ladder whose documents are given to libclang before they are given out.

    What it says is missing, and the file sees, comes along. A body that it still refuses becomes a
    declaration, unless it is a root's. `notes` counts what became of the documents.
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
    ) -> None:
        super().__init__(graph, options, measure)
        self._options = options
        self._checker = checker
        self._by_name = _by_name(graph) if by_name is None else by_name

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
        if found and not _misses_header(found):
            lean = self._lean.document(closure.path, roots, closure.limit, rung)
            if lean is not None:
                slice_, found = lean, []
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
        useless = 0
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
            useless = 0 if len(found) < len(fewest) else useless + 1
            if len(found) < len(fewest):
                fewest, best = found, slice_
        if fewest and best.text != first and self._sure:  # a quick look may be too strict
            fewest = self._checker.complaints(best.text, in_c) or ()
        return best, fewest

    def _look(self, slice_: Slice, in_c: bool) -> Sequence[Complaint] | None:
        """What a quick look finds, or else a whole one."""
        found = self._checker.complaints(slice_.text, in_c, quick=True)
        return found if found != [] else self._checker.complaints(slice_.text, in_c)

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
        for complaint in found:
            if missing := _MISSING_HEADER.search(complaint.said):
                includes[missing[1]] = False  # it may be there for what is not in the document
                continue
            if complaint.said.startswith(_BASE) and complaint.line:
                bases = _WORD.findall(lines[complaint.line - 1].partition(":")[2])
                named = " ".join(f"'{base}'" for base in bases)
                complaint = complaint._replace(said=f"{_BASE}: {named}")
            i = places.get(complaint.line, -1)
            wanted = list(self._wanted(closure, complaint, i))
            if wanted:
                whole = _UNDEFINED.search(complaint.said) is not None
                closure.need(wanted, whole=whole)
                continue
            headers = [name for name in _system_names(complaint.said) if name not in includes]
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
                and not (items[j].kind in _MEMBERS and items[j].owner)  # in its class
            ]
            # A header that cannot stand alone means what any of its includers has.
            ids = [j for j in everywhere if closure.sees(j)]
            if not ids and any(words in complaint.said for words in _UNKNOWN):
                ids = everywhere[:_MAX_UNSEEN]
            exact = [j for j in ids if name.endswith(_qualified(self._graph, j, last))]
            ids = self._specialised(exact or ids, complaint.said, last)
            before = [j for j in ids if j < i] or ids
            yield from before[-_MAX_OF_ONE_NAME:]

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
        return None if found else slice_


def _misses_header(found: Iterable[Complaint]) -> bool:
    return any(_MISSING_HEADER.search(each.said) for each in found)


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


def _names(said: str) -> Iterator[str]:
    """The names in a complaint, qualified where it tells the scope, without template arguments."""
    quoted = []
    for name in _QUOTED.findall(said):
        while (shorter := _ARGUMENTS.sub("", name)) != name:
            name = shorter
        quoted.append(name.strip(" *&"))
    if len(quoted) > 1 and _NONE_IN.search(said):
        yield f"{quoted[1]}::{quoted[0]}"
        quoted = quoted[1:2]
    for name in quoted:
        for word in re.findall(r"[A-Za-z_][\w:]*|operator\S+", name):
            if word not in ("class", "struct", "const", "enum", "std"):
                yield word.removeprefix("::")


def _system_names(said: str) -> Iterator[str]:
    """Headers of the standard library that speak of a name in a complaint."""
    if any(words in said for words in _UNKNOWN):
        for name in _names(said):
            yield from headers_of(name.rpartition("::")[2])


def _with_includes(slice_: Slice, includes: Mapping[str, bool]) -> Slice:
    """A document with some headers of the system more, and without some."""
    text = "".join(f"#include <{name}>\n" for name, comes in includes.items() if comes)
    text += slice_.text
    for name, comes in includes.items():
        if not comes:
            text = re.sub(rf'^#include [<"]{re.escape(name)}[>"]\n', "", text, flags=re.M)
    return Slice(text, slice_.roots, slice_.paths, slice_.rung)
