"""The compiler's own headers (stddef.h, immintrin.h), which the wheel of libclang lacks."""

import shutil
import subprocess
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from nanochat_chunker.errors import UsageError
from nanochat_chunker.semantic.bindings import version


class BuiltinHeaders(NamedTuple):
    """A folder of headers, and whose they are. `resource`: it is clang's, with `include` in it."""

    folder: Path
    origin: str
    resource: bool = True

    def arguments(self) -> list[str]:
        if self.resource:
            return ["-resource-dir", str(self.folder)]
        return ["-nobuiltininc", "-isystem", str(self.folder)]


@cache
def builtin_headers() -> BuiltinHeaders:
    """The best there are, in this order:

    1. those of an installed clang of libclang's own major version, or of the package clang-tidy;
    2. those of any other clang: the few intrinsics that changed since are errors in its headers,
       not in ours;
    3. those of gcc, whose intrinsics clang does not know, so that files which need them fall back.

    Raises `UsageError` where there are none: hardly any file compiles without stddef.h.
    """
    major = _major()
    found = [*_of_clang_tidy(major), *_of_clangs(major)]
    for headers, its_major in found:
        if its_major == major:
            return headers
    if found:
        return found[0][0]
    for compiler in ("gcc", "cc", "g++"):
        headers_of_gcc = _of_gcc(compiler)
        if headers_of_gcc is not None:
            return headers_of_gcc
    raise UsageError(
        "--semantic needs a compiler's own headers, such as stddef.h, and finds no clang or gcc",
        f"Install one (Debian: apt install clang), or type: pip install 'clang-tidy=={major}.*'",
    )


def _major() -> int:
    words = version().split()
    return next(int(word.split(".")[0]) for word in words if word[0].isdigit())


def _of_clang_tidy(major: int) -> list[tuple[BuiltinHeaders, int]]:
    """The wheel of clang-tidy brings the headers of its clang."""
    spec = find_spec("clang_tidy")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for resource in sorted(Path(folder).glob("data/lib/clang/*")):
            if (resource / "include" / "stddef.h").is_file() and resource.name.isdigit():
                headers = BuiltinHeaders(resource, f"clang-tidy {resource.name}, the package")
                return [(headers, int(resource.name))]
    return []


def _of_clangs(major: int) -> list[tuple[BuiltinHeaders, int]]:
    """Those of the compilers on PATH, libclang's own version first."""
    found = []
    for name in (f"clang-{major}", "clang", "clang++", *(f"clang-{n}" for n in range(30, 10, -1))):
        path = shutil.which(name)
        said = _ask([path, "-print-resource-dir"]) if path is not None else ""
        folder = Path(said)
        if said and (folder / "include" / "stddef.h").is_file():
            number = folder.name.split(".")[0]
            if number.isdigit():
                found.append((BuiltinHeaders(folder, f"clang {folder.name}"), int(number)))
    return found


def _of_gcc(compiler: str) -> BuiltinHeaders | None:
    path = shutil.which(compiler)
    if path is None:
        return None
    folder = Path(_ask([path, "-print-file-name=include"]))
    if not (folder / "stddef.h").is_file():
        return None
    return BuiltinHeaders(folder, f"gcc {folder.parent.name}", resource=False)


def _ask(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
