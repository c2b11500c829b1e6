"""The includes that a document keeps: those of the system and of other libraries."""

import re
from collections.abc import Collection, Iterable, Sequence, Set
from functools import cached_property

from nanochat_chunker.slicing.configuration import STANDARD_HEADERS
from nanochat_chunker.slicing.graph import Graph
from nanochat_chunker.slicing.pieces import Piece
from nanochat_chunker.slicing.system_headers import may_need, needs, needs_unasked

# How words begin in code that needs a header, where that is not the header's name.
_SPEAKS = {
    "gtest": ("testing::", "TEST(", "TEST_F(", "TEST_P(", "EXPECT_", "ASSERT_", "GTEST_"),
    "gmock": ("testing::", "MOCK_METHOD", "EXPECT_CALL", "ON_CALL"),
    "gflags": ("gflags::", "DEFINE_", "DECLARE_", "FLAGS_"),
    "benchmark": ("benchmark::", "BENCHMARK"),
    "glog": ("google::", "LOG(", "CHECK("),
    "catch": ("TEST_CASE", "REQUIRE", "CHECK("),
    "doctest": ("TEST_CASE", "CHECK("),
    "cppunit": ("CppUnit", "CPPUNIT"),
    "windows": ("DWORD", "HANDLE", "HMODULE", "LPCTSTR"),
}
_LIBRARIES = frozenset(
    "zlib.h bzlib.h lz4.h lz4hc.h snappy.h zstd.h zdict.h sqlite3.h expat.h pcre.h curl/curl.h "
    "openssl/ssl.h gtest/gtest.h gmock/gmock.h benchmark/benchmark.h gflags/gflags.h".split()
)


class ExternalIncludes:
    """The includes of a project that mean none of its files, each with the files it is in."""

    def __init__(self, graph: Graph) -> None:
        self._project = graph.project
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
        self, paths: Collection[str], root_paths: Set[str], pieces: Sequence[Piece]
    ) -> list[str]:
        """The lines for a document of these pieces from these files."""
        project = self._project
        of_roots = own = seen = around = words = 0
        for path in root_paths:
            of_roots |= 1 << project.bit[path]
        for path in paths:
            own |= 1 << project.bit[path]
            seen |= project.closure[path]
            around |= project.context(path)
        for piece in pieces:
            words |= piece.words
        in_c = any(path.endswith(".c") for path in root_paths) and all(
            path.endswith((".c", ".h")) for path in paths
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
                for header in needs_unasked(words)
                if not self._standard.get(header, 0) & around
            ]
        code = _Code(pieces)
        for (target, angle), files in self._others.items():
            if files & around and (
                files & of_roots or self._needs(target, angle, bool(files & own), code)
            ):
                lines.append(f"#include <{target}>\n" if angle else f'#include "{target}"\n')
        return [*dict.fromkeys(lines), "\n"] if lines else []

    def _needs(self, target: str, angle: bool, gives: bool, code: "_Code") -> bool:
        """Whether an include of a file that is no root's, and `gives` items or not, is needed."""
        folder = target.rpartition("/")[0]
        if folder and folder in self._folders:
            return False  # a file of the project itself, generated
        if gives and (angle or target in _LIBRARIES):
            return True
        return bool(folder) and code.speaks_of(target)


def _folders(paths: Iterable[str]) -> frozenset[str]:
    """The folders of a project, by every end of their paths: what is missing there is generated."""
    found = {""}
    for folder in {path.rpartition("/")[0] for path in paths}:
        parts = folder.split("/")
        found.update("/".join(parts[i:]) for i in range(len(parts)))
    return frozenset(found)


class _Code:
    """The code of one document, to be asked for headers neither the project's nor the system's."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = pieces
        self._asked: dict[str, bool] = {}

    def speaks_of(self, target: str) -> bool:
        """Whether it has a word of the folders or the name of a header, or one that means it."""
        return any(self._speaks(word) for word in re.split(r"[/.]", target)[:-1])

    def _speaks(self, word: str) -> bool:
        if word not in self._asked:
            if word in _SPEAKS:
                found = any(_stands(begin, "", self._text) for begin in _SPEAKS[word])
            else:
                found = len(word) > 2 and _stands(word.lower(), r"(?:_|\b)", self._lower)
            self._asked[word] = found
        return self._asked[word]

    @cached_property
    def _text(self) -> str:
        return "".join([piece.text for piece in self._pieces])

    @cached_property
    def _lower(self) -> str:
        return self._text.lower()


def _stands(begin: str, end: str, text: str) -> bool:
    """Whether a word in a text begins so, with `end`, an expression, after it."""
    word = re.compile(rf"\b{re.escape(begin)}{end}")
    at = text.find(begin)
    while at >= 0 and not word.match(text, at):
        at = text.find(begin, at + 1)
    return at >= 0


def _external(graph: Graph, path: str) -> Iterable[tuple[str, bool]]:
    """The includes of a file that mean none of the project."""
    project = graph.project
    for item in project.files[path].items:
        if item.kind == "include" and not item.names[0].startswith("/"):
            target, angle = item.names[0], "angle" in item.flags
            if project.resolve(path, target, angle) is None and not project.is_own(path, target):
                yield target, angle
