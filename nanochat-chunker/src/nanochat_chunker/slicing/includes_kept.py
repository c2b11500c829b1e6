"""The includes that a document keeps: those of the system and of other libraries."""

import re
from collections.abc import Iterable, Sequence, Set

from nanochat_chunker.slicing.configuration import STANDARD_HEADERS
from nanochat_chunker.slicing.graph import Graph
from nanochat_chunker.slicing.system_headers import OF_WORDS, may_need, needs

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


class ExternalIncludes:
    """The includes of a project that mean none of its files, each with the files it is in."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._folders = _folders(graph.project.files)
        self._standard: dict[str, int] = {}  # files as sets of bits
        self._others: dict[tuple[str, bool], int] = {}
        for path in graph.project.files:
            bit = 1 << graph.project.bit[path]
            for target, angle in _external(graph, path):
                if target in STANDARD_HEADERS:
                    self._standard[target] = self._standard.get(target, 0) | bit
                else:
                    key = (target, angle)
                    self._others[key] = self._others.get(key, 0) | bit

    def of(
        self, ids: Sequence[int], roots: Iterable[int], words: Set[str], pieces: Sequence[str]
    ) -> list[str]:
        """The lines for a document of these items, with their text and its words of `words_of`."""
        graph, project = self._graph, self._graph.project
        paths = dict.fromkeys(graph.paths[i] for i in ids)
        root_paths = {graph.paths[i] for i in roots}
        of_roots = own = seen = around = 0
        for path in root_paths:
            of_roots |= 1 << project.bit[path]
        for path in paths:
            own |= 1 << project.bit[path]
            seen |= project.closure[path]
            around |= project.context(path)
        in_c = all(path.endswith((".c", ".h")) for path in paths) and any(
            path.endswith(".c") for path in root_paths
        )
        lines = []
        for target, files in self._standard.items():
            if files & around and (not in_c or target.endswith(".h")):
                wanted = may_need if files & seen else needs
                if wanted(words, target):
                    lines.append(f"#include <{target}>\n")
        if not in_c:
            lines += [
                f"#include <{header}>\n"
                for header, means in OF_WORDS.items()
                if not self._standard.get(header, 0) & around and not words.isdisjoint(means)
            ]
        for (target, angle), files in self._others.items():
            if files & of_roots or (
                files & around and self._needs(target, angle, bool(files & own), pieces)
            ):
                lines.append(f"#include <{target}>\n" if angle else f'#include "{target}"\n')
        return [*dict.fromkeys(lines), "\n"] if lines else []

    def _needs(self, target: str, angle: bool, gives: bool, pieces: Sequence[str]) -> bool:
        """Whether an include of a file that is no root's, and `gives` items or not, is needed."""
        folder = target.rpartition("/")[0]
        if folder and folder in self._folders:
            return False  # a file of the project itself, generated
        if gives and (angle or target in _LIBRARIES):
            return True
        return bool(folder) and _mentions("".join(pieces), target)


def _folders(paths: Iterable[str]) -> frozenset[str]:
    """The folders of a project, by every end of their paths: what is missing there is generated."""
    found = {""}
    for folder in {path.rpartition("/")[0] for path in paths}:
        parts = folder.split("/")
        found.update("/".join(parts[i:]) for i in range(len(parts)))
    return frozenset(found)


def _mentions(text: str, target: str) -> bool:
    """Whether code speaks of a header that is neither the project's nor the system's."""
    for word in re.split(r"[/.]", target)[:-1]:
        speaks = _SPEAKS.get(word)
        if speaks is not None:
            if re.search(rf"\b(?:{speaks})", text):
                return True
        elif len(word) > 2:
            low, lower = word.lower(), text.lower()
            if low in lower and re.search(rf"\b{re.escape(low)}(?:_|\b)", lower):
                return True
    return False


def _external(graph: Graph, path: str) -> Iterable[tuple[str, bool]]:
    """The includes of a file that mean none of the project."""
    project = graph.project
    for item in project.files[path].items:
        if item.kind == "include" and not item.names[0].startswith("/"):
            target, angle = item.names[0], "angle" in item.flags
            if project.resolve(path, target, angle) is None and not project.is_own(path, target):
                yield target, angle
