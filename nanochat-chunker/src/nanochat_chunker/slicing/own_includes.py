"""The includes of a document that needs its project's headers."""

import re

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


def platform_macros(project: Configured, path: str) -> list[str]:
    """Macros for the platform that conditions of the file and its headers ask for."""
    seen = project.closure[path]
    words: set[str] = set()
    for other, file in project.files.items():
        if seen >> project.bit[other] & 1:
            for event in file.events:
                if event.kind == "if":
                    words.update(_WORD.findall(str(event.value)))
    return sorted(word for word in words if names_platform(word) and not project.defines(word))
