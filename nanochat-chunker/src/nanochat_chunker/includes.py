"""The order of a project's files: what is included comes before what includes it."""

import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

Node = TypeVar("Node", bound=Hashable)

_INCLUDE = re.compile(
    r"""^[ \t]*\#[ \t]*(?:include|include_next|import)[ \t]*(?:"([^"\n]+)"|<([^>\n]+)>)""",
    re.MULTILINE,
)

# `<string.h>` means the system's, even in a project with a string.h of its own.
_C_HEADERS = frozenset(
    f"{name}.h"
    for name in (
        "assert complex ctype errno fenv float inttypes iso646 limits locale math setjmp signal "
        "stdalign stdarg stdatomic stdbool stddef stdint stdio stdlib stdnoreturn string tgmath "
        "threads time uchar wchar wctype unistd fcntl pthread semaphore sched poll dirent"
    ).split()
)


class Include(NamedTuple):
    """One `#include`: what it names, and whether in angle brackets."""

    target: str
    angle: bool


def find_includes(text: str) -> tuple[Include, ...]:
    """The includes of a file in source order, each once.

    Those inside comments and inactive `#if` blocks count as well: they can only refine the order.
    """
    found = (Include(quoted or angled, not quoted) for quoted, angled in _INCLUDE.findall(text))
    return tuple(dict.fromkeys(found))


class Resolver:
    """Says which file of a project an include means, without knowing the compiler's -I.

    A quoted include is looked up beside its file first. Otherwise every file whose path ends with
    the included path is a candidate (the project's own name counts as the first folder of its
    paths), and the one that shares most folders with the includer wins; then the shortest path,
    then the first by name.
    """

    def __init__(self, paths: Sequence[str], project_name: str) -> None:
        self._paths = frozenset(paths)
        self._prefix = project_name.rsplit("/", 1)[-1] + "/"
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for path in paths:
            self._by_name[path.rsplit("/", 1)[-1]].append(path)
        self._known: dict[tuple[str, Include], str | None] = {}

    def resolve(self, includer: str, include: Include) -> str | None:
        folder = posixpath.dirname(includer)
        key = (folder, include)
        if key not in self._known:
            self._known[key] = self._search(folder, include)
        return self._known[key]

    def _search(self, folder: str, include: Include) -> str | None:
        if include.angle and include.target in _C_HEADERS:
            return None
        if not include.angle:
            beside = posixpath.normpath(posixpath.join(folder, include.target))
            if beside in self._paths:
                return beside
        target = posixpath.normpath(include.target.lstrip("/"))
        while target.startswith("../"):
            target = target[3:]
        candidates = [
            path
            for path in self._by_name.get(target.rsplit("/", 1)[-1], ())
            if f"/{self._prefix}{path}".endswith(f"/{target}")
        ]
        if not candidates:
            return None
        here = folder.split("/") if folder else []
        return min(candidates, key=lambda path: (-_shared_folders(here, path), len(path), path))


def _shared_folders(here: Sequence[str], path: str) -> int:
    shared = 0
    for mine, theirs in zip(here, path.split("/")[:-1], strict=False):
        if mine != theirs:
            break
        shared += 1
    return shared


def include_order(includes: Mapping[str, Sequence[Include]], project_name: str) -> list[str]:
    """The files of `includes` (path to what it includes), each after the files it includes.

    Depth first: files are taken by path, each preceded by what it includes and is not placed yet,
    by path as well; so a header stands near its first user. A cycle is broken where it closes.
    """
    resolver = Resolver(sorted(includes), project_name)
    return depth_first(sorted(includes), lambda path: _needed(path, includes, resolver))


def depth_first(nodes: Iterable[Node], needed: Callable[[Node], Iterable[Node]]) -> list[Node]:
    """The nodes in their order, each after what it needs. A cycle is broken where it closes."""
    placed: set[Node] = set()  # placed, or begun: the second closes cycles
    order: list[Node] = []
    for root in nodes:
        if root in placed:
            continue
        placed.add(root)
        # By hand rather than by recursion: chains of includes can be deeper than Python's stack.
        stack = [(root, iter(needed(root)))]
        while stack:
            node, others = stack[-1]
            for other in others:
                if other not in placed:
                    placed.add(other)
                    stack.append((other, iter(needed(other))))
                    break
            else:
                order.append(node)
                stack.pop()
    return order


def _needed(path: str, includes: Mapping[str, Sequence[Include]], resolver: Resolver) -> list[str]:
    found = {resolver.resolve(path, include) for include in includes[path]}
    return sorted(other for other in found if other is not None)
