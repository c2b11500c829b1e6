"""The includes of a document that needs its project's headers."""

import re

from nanochat_chunker.slicing.configuration import from_build_system
from nanochat_chunker.slicing.project import Configured

_WORD = re.compile(r"[A-Za-z_]\w*")


def own_includes(project: Configured, path: str) -> list[str]:
    """What the build would define for a file, then its includes, for a compiler given -I.

    A header beside the file is named from the project's root, since a document lies nowhere.
    """
    lines = [f"#define {name} 1\n" for name in _build_macros(project, path)]
    for event in project.files[path].events:
        if event.kind != "include":
            continue
        target = str(event.value)
        found = project.resolve(path, target, event.extra)
        if found is None and project.is_own(path, target):
            continue
        if found is not None and (not event.extra or not f"/{found}".endswith(f"/{target}")):
            folder = path.rpartition("/")[0]
            beside = f"{folder}/{target}" if folder else target
            if found == beside or not f"/{found}".endswith(f"/{target}"):
                target = found
        lines.append(f"#include <{target}>\n" if event.extra else f'#include "{target}"\n')
    return [*dict.fromkeys(lines), "\n"] if lines else []


def _build_macros(project: Configured, path: str) -> list[str]:
    """Macros that conditions of the file and its headers ask for, and a build on Linux gives."""
    seen = project.closure[path]
    words: set[str] = set()
    for other, file in project.files.items():
        if seen >> project.bit[other] & 1:
            for event in file.events:
                if event.kind == "if":
                    words.update(_WORD.findall(str(event.value)))
    return sorted(
        word for word in words if not project.defines(word) and from_build_system(word) is not None
    )
