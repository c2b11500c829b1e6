"""What the benchmarks share: the projects under a folder, as the chunker reads them."""

import os
import re
from pathlib import Path

from nanochat_chunker.files import Dropped, read_source
from nanochat_chunker.includes import find_includes
from nanochat_chunker.settings import DEFAULT_EXTENSIONS

MAX_FILE_BYTES = 2_000_000


def names(folder: Path, only: list[str]) -> list[str]:
    """The projects of a folder, those whose names begin with one of `only` where given."""
    found = sorted(path.name for path in folder.iterdir() if path.is_dir())
    return [name for name in found if not only or name.startswith(tuple(only))]


def short(name: str) -> str:
    """The name of a project without its version."""
    return re.sub(r"-[\d.]+.*", "", name)


def load(root: Path) -> dict[str, str]:
    """{path: text} of a project: files by extension, and those without one that others include."""
    texts: dict[str, str] = {}
    others: dict[str, Path] = {}
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(files):
            full = Path(folder) / name
            relative = full.relative_to(root).as_posix()
            if full.is_symlink():
                continue
            if name.endswith((*DEFAULT_EXTENSIONS, ".inc", ".def")):
                source = read_source(full, MAX_FILE_BYTES)
                if not isinstance(source, Dropped):
                    texts[relative] = source.text
            elif "." not in name:
                others[relative] = full
    wanted = {include.target for text in texts.values() for include in find_includes(text)}
    ends = {target.rsplit("/", 1)[-1] for target in wanted}
    while True:
        more = {path for path in others if path not in texts and path.rsplit("/", 1)[-1] in ends}
        if not more:
            return texts
        for path in sorted(more):
            source = read_source(others.pop(path), MAX_FILE_BYTES)
            if not isinstance(source, Dropped):
                texts[path] = source.text
                found = find_includes(source.text)
                ends |= {include.target.rsplit("/", 1)[-1] for include in found}
