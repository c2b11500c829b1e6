"""Whether a package is installed, answered from files: nothing of it is imported.

`importlib.util.find_spec("a.b")` imports `a`, which for FlashAttention loads torch and a CUDA
library, so only top-level names are given to it and the rest is looked up in the folders.
"""

from __future__ import annotations

import sys
from importlib import metadata
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path


def top_level(name: str) -> ModuleSpec | None:
    """The spec of a top-level module, or None. Something half removed counts as absent."""
    try:
        return find_spec(name)
    except (ImportError, ValueError):
        return None


def is_installed(name: str) -> bool:
    """True for a module or regular package; an empty namespace package is not one."""
    spec = top_level(name)
    return spec is not None and spec.origin is not None


def folders(package: str) -> list[Path]:
    """The folders that a package's submodules are found in, of a namespace package too."""
    spec = top_level(package)
    if spec is None or spec.submodule_search_locations is None:
        return []
    found = [Path(folder) for folder in spec.submodule_search_locations]
    if spec.origin is not None and _extends_path(Path(spec.origin)):
        found += [Path(entry or ".") / package for entry in sys.path]
    return list(dict.fromkeys(found))


def file_of(package: str, relative: str) -> Path | None:
    """A file below a package, by its path in there (`cute/interface.py`), or None."""
    return next((f for d in folders(package) if (f := d / relative).is_file()), None)


def has_extension(package: str, stem: str) -> bool:
    """Whether a package holds a compiled module of that name, whatever its platform's suffix."""
    return any(f.suffix in (".so", ".pyd") for d in folders(package) for f in d.glob(f"{stem}.*"))


def version_of(distribution: str) -> str | None:
    """An installed distribution's version, or None (a source tree on the path has none)."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _extends_path(init: Path) -> bool:
    """Whether importing a package would add the folders of its name along sys.path."""
    try:
        return "extend_path(" in init.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
