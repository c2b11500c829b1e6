"""The includes of a document that needs its project's headers, and what stands before them."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from nanochat_chunker.slicing.configuration import STANDARD_HEADERS, names_platform
from nanochat_chunker.slicing.items import Item
from nanochat_chunker.slicing.macros import Macro
from nanochat_chunker.slicing.project import Configured
from nanochat_chunker.slicing.system_headers import headers_of

_WORD = re.compile(r"[A-Za-z_]\w*")

# Headers of the library that include most of the others, which conditions of a file may ask for.
_LARGE = ("future", "memory")


def include_line(project: Configured, path: str, item: Item) -> str:
    """An include for a compiler that is given the project's include folders.

    A header beside the file is named from the project's root, since a document lies nowhere.
    """
    target, angle = item.names[0], "angle" in item.flags
    found = project.resolve(path, target, angle)
    if found is None and project.is_own(path, target):
        return ""
    if angle:
        return f"#include <{target}>\n"
    folder = path.rpartition("/")[0]
    beside = f"{folder}/{target}" if folder else target
    if found is not None and (found == beside or not f"/{found}".endswith(f"/{target}")):
        target = found
    return f'#include "{target}"\n'


class _Asked(NamedTuple):
    """What one file asks for: by its bit."""

    bit: int
    platform: frozenset[str]  # macros in its conditions that name a platform
    headers: frozenset[str]  # of the standard library
    hides: bool  # whether a macro of it has a name of the library


class Preamble:
    """What stands before a document with parts of some files that includes others.

    Macros for the platform, as a build has them. The include guards of the files, so that what they
    include does not bring them once more. The standard library before a macro such as `min`, for
    the library of a later standard includes more of itself than the project knew.
    """

    def __init__(self, project: Configured) -> None:
        self._project = project
        self._asked: list[_Asked] | None = None
        self._lines: dict[int, tuple[str, str]] = {}  # by the files seen

    def of(self, files: Sequence[str], includes: Iterable[str | None]) -> str:
        """That of a document with parts of `files` which includes `includes`."""
        project = self._project
        seen = 0
        for path in includes:
            seen |= project.closure[path] if path is not None else 0
        guards = [
            f"#define {file.guard}\n"
            for path in files
            if (file := project.files[path]).guard and seen >> project.bit[path] & 1
        ]
        for path in files:
            seen |= 1 << project.bit[path]
        if seen not in self._lines:
            self._lines[seen] = self._of_seen(seen)
        macros, headers = self._lines[seen]
        return macros + "".join(guards) + headers

    def _of_seen(self, seen: int) -> tuple[str, str]:
        if self._asked is None:
            asked = map(self._read, self._project.files)
            self._asked = [each for each in asked if each.platform or each.headers or each.hides]
        asked = [each for each in self._asked if seen >> each.bit & 1]
        macros = sorted(frozenset().union(*(each.platform for each in asked)))
        headers: list[str] = []
        if any(each.hides for each in asked):
            headers = sorted(frozenset(_LARGE).union(*(each.headers for each in asked)))
        return (
            "".join(f"#define {name} 1\n" for name in macros),
            "".join(f"#include <{name}>\n" for name in headers),
        )

    def _read(self, path: str) -> _Asked:
        project = self._project
        platform: set[str] = set()
        headers: set[str] = set()
        hides = False
        for event in project.files[path].events:
            if event.kind == "if":
                platform.update(
                    word
                    for word in _WORD.findall(str(event.value))
                    if names_platform(word) and not project.defines(word)
                )
            elif event.kind == "include" and event.value in STANDARD_HEADERS:
                if "." not in str(event.value):
                    headers.add(str(event.value))
            elif isinstance(event.value, Macro) and event.value.params is not None:
                hides = hides or bool(headers_of(event.value.name))
        return _Asked(project.bit[path], frozenset(platform), frozenset(headers), hides)
