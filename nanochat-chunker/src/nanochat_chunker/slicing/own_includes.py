"""The includes of a document that needs its project's headers, and what stands before them."""

import re
from collections.abc import Iterable, Sequence

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


class Preamble:
    """What stands before a document with parts of some files that includes others.

    Macros for the platform, as a build has them. The include guards of the files, so that what they
    include does not bring them once more. The standard library before a macro such as `min`, for
    the library of a later standard includes more of itself than the project knew.
    """

    def __init__(self, project: Configured) -> None:
        self._project = project
        self._lines: dict[int, tuple[str, str]] = {}  # by the files seen
        # Files as sets of bits, of all files once the first document asks:
        self._read = False
        self._platform: dict[str, int] = {}  # by macro of a condition that names a platform
        self._headers: dict[str, int] = {}  # by header of the standard library
        self._hiding = 0  # where a macro has a name of the library

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
        if not self._read:
            self._read_all()
        macros = sorted(name for name, files in self._platform.items() if files & seen)
        headers: list[str] = []
        if self._hiding & seen:
            named = (name for name, files in self._headers.items() if files & seen)
            headers = sorted({*_LARGE, *named})
        return (
            "".join(f"#define {name} 1\n" for name in macros),
            "".join(f"#include <{name}>\n" for name in headers),
        )

    def _read_all(self) -> None:
        """Goes over the directives of all files."""
        project, self._read = self._project, True
        for path, file in project.files.items():
            bit = 1 << project.bit[path]
            for event in file.events:
                if event.kind == "if":
                    for word in _WORD.findall(str(event.value)):
                        if names_platform(word) and not project.defines(word):
                            self._platform[word] = self._platform.get(word, 0) | bit
                elif event.kind == "include":
                    name = str(event.value)
                    if name in STANDARD_HEADERS and "." not in name:
                        self._headers[name] = self._headers.get(name, 0) | bit
                elif isinstance(event.value, Macro) and _hides(event.value):
                    self._hiding |= bit


def _hides(macro: Macro) -> bool:
    """Whether a macro has a name of the library, and takes arguments as that does."""
    return macro.params is not None and bool(headers_of(macro.name))
