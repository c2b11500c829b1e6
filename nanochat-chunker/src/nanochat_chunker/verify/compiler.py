"""Compiling one document, within limits."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nanochat_chunker.errors import UsageError

_CANDIDATES = ("clang++", "g++", "c++")
_SHELL = 'ulimit -t "$0"; ulimit -v "$1"; shift; exec "$@"'


@dataclass(frozen=True)
class Outcome:
    """Whether a document compiles; `diagnostics` are the compiler's first errors."""

    compiles: bool
    diagnostics: tuple[str, ...] = ()


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler found on this machine, and how it is run."""

    path: str
    version: str
    timeout_s: float = 60.0
    memory_mb: int = 4096

    def compile(
        self,
        text: str,
        *,
        c: bool = False,
        include_dirs: Sequence[str | Path] = (),
        defines: Sequence[str] = (),
    ) -> Outcome:
        """Checks the syntax and types of `text`; makes no object file. `c`: it is C, not C++."""
        language = ["-x", "c", "-std=c17"] if c else ["-x", "c++", "-std=c++20"]
        flags = [f"-I{folder}" for folder in include_dirs] + [f"-D{name}" for name in defines]
        command = [self.path, *language, "-fsyntax-only", "-w", *flags, "-"]
        limits = [str(int(self.timeout_s) + 1), str(self.memory_mb * 1024)]
        try:
            done = subprocess.run(
                ["/bin/sh", "-c", _SHELL, *limits, *command],
                input=text.encode("utf-8", "surrogateescape"),
                capture_output=True,
                timeout=self.timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Outcome(False, (f"<stdin>: error: no result after {self.timeout_s:g} s",))
        if done.returncode == 0:
            return Outcome(True)
        lines = done.stderr.decode("utf-8", "replace").splitlines()
        errors = [line for line in lines if " error: " in line][:5]
        if not errors:
            ended = f"<stdin>: error: the compiler ended with status {done.returncode}"
            errors = [ended]
        return Outcome(False, tuple(errors))


def find_compiler(
    name: str | None = None, timeout_s: float = 60.0, memory_mb: int = 4096
) -> Compiler:
    """The compiler `name`, or clang++, or g++. Raises `UsageError` where there is none."""
    for candidate in (name,) if name else _CANDIDATES:
        path = shutil.which(candidate)
        if path is not None:
            said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
            version = (said.stdout.splitlines() or [candidate])[0]
            return Compiler(path, version, timeout_s, memory_mb)
    if name:
        raise UsageError(f"no compiler {name!r}", "Give the name or path of clang++ or g++")
    raise UsageError(
        "verify needs a C++ compiler, and neither clang++ nor g++ is there",
        "Install one (Debian: apt install clang), or name it with --compiler",
    )
