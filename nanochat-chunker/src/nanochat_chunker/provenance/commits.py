"""The commit of a project that is a Git checkout, read from its files: git need not be there."""

import re
from pathlib import Path

_HASH = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_FEW_BYTES = 4096


def commit_of(root: Path) -> str | None:
    """The hash that HEAD names; None where there is none or it cannot be read."""
    try:
        folder = root / ".git"
        if folder.is_file():  # a worktree or a submodule
            folder = root / _read(folder).removeprefix("gitdir:").strip()
        head = _read(folder / "HEAD").strip()
        common = folder
        if (folder / "commondir").is_file():
            common = folder / _read(folder / "commondir").strip()
        if head.startswith("ref:"):
            head = _reference(common, head.removeprefix("ref:").strip())
    except (OSError, ValueError):
        return None
    return head if _HASH.fullmatch(head) else None


def _reference(folder: Path, name: str) -> str:
    loose = folder / name
    if loose.is_file():
        return _read(loose).strip()
    for line in (folder / "packed-refs").read_text(encoding="utf-8").splitlines():
        value, _, of = line.partition(" ")
        if of == name:
            return value
    return ""


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_FEW_BYTES).decode()
