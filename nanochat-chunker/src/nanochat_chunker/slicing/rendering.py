"""Writing the items of a document as one file."""

import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

from nanochat_chunker.slicing.closure import FULL
from nanochat_chunker.slicing.configuration import STANDARD_HEADERS
from nanochat_chunker.slicing.graph import Graph
from nanochat_chunker.slicing.items import Item, Scope
from nanochat_chunker.slicing.preprocess import is_c
from nanochat_chunker.slicing.system_headers import may_need, needs, words_of

# What code that needs a header says, where it is not the header's name.
_SPEAKS = {
    "gtest": r"testing::|TEST(?:_[FP])?\(|EXPECT_|ASSERT_|GTEST_",
    "gmock": r"testing::|MOCK_METHOD|EXPECT_CALL|ON_CALL",
    "gflags": r"gflags::|DEFINE_|DECLARE_|FLAGS_",
    "benchmark": r"benchmark::|BENCHMARK",
    "glog": r"google::|LOG\(|CHECK\(",
    "catch": r"TEST_CASE|REQUIRE|CHECK\(",
    "doctest": r"TEST_CASE|CHECK\(",
    "cppunit": r"CppUnit|CPPUNIT",
    "windows": "DWORD|HANDLE|HMODULE|LPCTSTR",
}
_LIBRARIES = frozenset(
    "zlib.h bzlib.h lz4.h lz4hc.h snappy.h zstd.h zdict.h sqlite3.h expat.h pcre.h curl/curl.h "
    "openssl/ssl.h gtest/gtest.h gmock/gmock.h benchmark/benchmark.h gflags/gflags.h".split()
)
_MAX_KEPT = 64_000_000  # characters of items' texts


class Renderer:
    """Writes documents; the texts of items are kept, for they return in many documents."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._texts: dict[tuple[int, str], str] = {}
        self._kept = 0
        self._external = {path: _external(graph, path) for path in graph.project.files}
        self._folders = _folders(graph.project.files)

    def render(self, level: Mapping[int, str], roots: Iterable[int]) -> str:
        """System includes, then the items in the order given, in their scopes."""
        items = self._graph.items
        ids = [i for i in level if items[i].kind != "include"]
        out: list[str] = []
        roots = list(roots)
        in_c = bool(roots) and all(is_c(self._graph.paths[i]) for i in roots)
        scope: Scope = ()
        defined: set[str] = set()
        opened = {""}  # namespaces
        last = -2
        for i in ids:
            item = items[i]
            if item.kind == "define" or item.kind == "undef":
                name = item.names[0]
                if item.kind == "define":
                    if name in defined:
                        out.append(f"#undef {name}\n")
                    defined.add(name)
                else:
                    defined.discard(name)
            elif (here := () if in_c else item.scope) != scope:
                _switch(out, scope, here)
                scope = here
                opened.update(_prefixes(self._graph.qualifiers[i]))
            elif i != last + 1 and out:
                out.append("\n")
            if item.kind in ("namespace", "directive"):
                out.append(self._declare_namespace(i, opened))
            out.append(self.text_of(i, level[i]))
            last = i
        _switch(out, scope, ())
        text = "".join(out)
        return "".join(self._includes(ids, roots, text)) + text

    def _third_party(
        self, target: str, angle: bool, gives: bool, text: str, begins: frozenset[str]
    ) -> bool:
        """Whether an include of a file that is no root's, and `gives` items or not, is needed."""
        folder = target.rpartition("/")[0]
        if folder and folder in self._folders:
            return False  # a file of the project itself, generated
        if gives and (angle or target in _LIBRARIES):
            return True
        return bool(folder) and _mentions(text, begins, target)

    def _declare_namespace(self, i: int, opened: set[str]) -> str:
        """The namespace that an alias or a directive names, where nothing of it came before."""
        graph, item = self._graph, self._graph.items[i]
        names = item.names if item.kind == "directive" else item.uses
        for name in names:
            if item.kind == "namespace" and name == item.names[0]:
                continue
            target = graph.namespace_named(name, graph.qualifiers[i])
            if not target or target in opened or graph.qualifiers[i] or target == "std":
                continue
            opened.update(_prefixes(target))
            parts = target.split("::")
            opening = " ".join(f"namespace {part} {{" for part in parts)
            return f"{opening} {'}' * len(parts)}\n"
        return ""

    def text_of(self, i: int, level: str) -> str:
        """An item as it stands in a document, with its line's end."""
        text = self._texts.get((i, level))
        if text is None:
            text = _text(self._graph, i, level).strip("\n") + "\n"
            if self._kept > _MAX_KEPT:
                self._texts.clear()
                self._kept = 0
            self._texts[i, level] = text
            self._kept += len(text)
        return text

    def _includes(self, ids: Sequence[int], roots: Iterable[int], text: str) -> list[str]:
        """The includes that stay: those of no file of the project."""
        graph = self._graph
        project = graph.project
        paths = dict.fromkeys(graph.paths[i] for i in ids)
        root_paths = {graph.paths[i] for i in roots}
        seen = around = 0
        for path in paths:
            seen |= project.closure[path]
            around |= graph.context(path)
        c_only = all(path.endswith((".c", ".h")) for path in paths) and any(
            path.endswith(".c") for path in root_paths
        )
        words = words_of(text)
        begins = _begins(words)
        lines: dict[str, None] = {}
        for path, found in self._external.items():
            bit = project.bit[path]
            if not found or not around >> bit & 1:
                continue
            wanted = may_need if seen >> bit & 1 else needs
            for target, angle in found:
                if target in STANDARD_HEADERS:
                    if (not c_only or target.endswith(".h")) and wanted(words, target):
                        lines[f"#include <{target}>\n"] = None
                elif path in root_paths or self._third_party(
                    target, angle, path in paths, text, begins
                ):
                    lines[f"#include <{target}>\n" if angle else f'#include "{target}"\n'] = None
        return [*lines, "\n"] if lines else []


def _folders(paths: Iterable[str]) -> frozenset[str]:
    """The folders of a project, by every end of their paths: what is missing there is generated."""
    found = {""}
    for folder in {path.rpartition("/")[0] for path in paths}:
        parts = folder.split("/")
        found.update("/".join(parts[i:]) for i in range(len(parts)))
    return frozenset(found)


def _mentions(text: str, begins: frozenset[str], target: str) -> bool:
    """Whether code speaks of a header that is neither the project's nor the system's."""
    for word in re.split(r"[/.]", target)[:-1]:
        speaks = _SPEAKS.get(word)
        if speaks is not None:
            if re.search(rf"\b(?:{speaks})", text):
                return True
        elif len(word) > 2 and word.lower() in begins:
            return True
    return False


def _begins(words: Iterable[str]) -> frozenset[str]:
    """What the words of a text begin with, up to a `_`, in small letters."""
    return frozenset(word.partition("_")[0].lower() for word in words)


def paths_of(graph: Graph, level: Mapping[int, str]) -> tuple[str, ...]:
    """The files that gave items, in order of appearance."""
    return tuple(dict.fromkeys(graph.paths[i] for i in level))


def _external(graph: Graph, path: str) -> tuple[tuple[str, bool], ...]:
    """The includes of a file that mean none of the project."""
    found = []
    for item in graph.project.files[path].items:
        if item.kind == "include" and not item.names[0].startswith("/"):
            angle = "angle" in item.flags
            if graph.project.resolve(path, item.names[0], angle) is None:
                found.append((item.names[0], angle))
    return tuple(found)


def _prefixes(qualifier: str) -> Iterable[str]:
    while qualifier:
        yield qualifier
        qualifier = qualifier.rpartition("::")[0]


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


def cut(graph: Graph, path: str, start: int, end: int, drops: list[tuple[int, int, str]]) -> str:
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
