"""The includes of a document that needs its project's headers, and what stands before them."""

import re
from collections.abc import Iterable, Iterator, Sequence

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


def preamble(project: Configured, files: Sequence[str], includes: Iterable[str | None]) -> str:
    """What stands before a document with parts of `files` that includes other files.

    Macros for the platform, as a build has them. The include guards of `files`, so that what they
    include does not bring them once more. The standard library before a macro such as `min`, for
    the library of a later standard includes more of itself than the project knew.
    """
    seen = 0
    for path in includes:
        seen |= project.closure[path] if path is not None else 0
    guards = [
        file.guard
        for path in files
        if (file := project.files[path]).guard and seen >> project.bit[path] & 1
    ]
    for path in files:
        seen |= 1 << project.bit[path]
    lines = [f"#define {name} 1\n" for name in _platform_macros(project, seen)]
    lines += [f"#define {name}\n" for name in guards]
    lines += [f"#include <{name}>\n" for name in _hidden_headers(project, seen)]
    return "".join(lines)


def _of(project: Configured, seen: int) -> Iterator[str]:
    return (path for path in project.files if seen >> project.bit[path] & 1)


def _platform_macros(project: Configured, seen: int) -> list[str]:
    """Macros for the platform that conditions of the files ask for."""
    words: set[str] = set()
    for path in _of(project, seen):
        for event in project.files[path].events:
            if event.kind == "if":
                words.update(_WORD.findall(str(event.value)))
    return sorted(word for word in words if names_platform(word) and not project.defines(word))


def _hidden_headers(project: Configured, seen: int) -> list[str]:
    """The standard headers of the files, where a macro of theirs has a name of the library."""
    hides = False
    found: dict[str, None] = {}
    for path in _of(project, seen):
        for event in project.files[path].events:
            if event.kind == "include" and event.value in STANDARD_HEADERS:
                if "." not in str(event.value):
                    found[str(event.value)] = None
            elif isinstance(event.value, Macro) and event.value.params is not None:
                hides = hides or bool(headers_of(event.value.name))
    return sorted({*found, *_LARGE}) if hides else []
