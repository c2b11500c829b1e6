"""The includes of a document that needs its project's headers."""

import re
from collections.abc import Iterator

from nanochat_chunker.slicing.configuration import names_platform
from nanochat_chunker.slicing.items import Item
from nanochat_chunker.slicing.project import Configured

_WORD = re.compile(r"[A-Za-z_]\w*")


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


class PlatformMacros:
    """Macros for the platform that conditions of a file and its headers ask for."""

    def __init__(self, project: Configured) -> None:
        self._project = project
        self._asked: list[tuple[int, frozenset[str]]] | None = None  # by the bit of each file
        self._of: dict[str, list[str]] = {}

    def of(self, path: str) -> list[str]:
        """Those for one file."""
        found = self._of.get(path)
        if found is None:
            if self._asked is None:
                self._asked = list(self._read())
            seen = self._project.closure[path]
            words = [names for bit, names in self._asked if seen >> bit & 1]
            found = self._of[path] = sorted(frozenset().union(*words))
        return found

    def _read(self) -> Iterator[tuple[int, frozenset[str]]]:
        project = self._project
        for path, file in project.files.items():
            asked = {
                word
                for event in file.events
                if event.kind == "if"
                for word in _WORD.findall(str(event.value))
                if names_platform(word) and not project.defines(word)
            }
            if asked:
                yield project.bit[path], frozenset(asked)
