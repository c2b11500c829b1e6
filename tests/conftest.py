"""Wheels built from the workspace, and a clean environment that has them and nothing editable."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MEMBERS = ("nanochat-core", "nanochat-chunker")

Result = subprocess.CompletedProcess[str]


def build(project: Path, destination: Path) -> None:
    """Build sdist and wheel of a project, as `hatch build` does, without network."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(destination)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@dataclass(frozen=True)
class CleanEnvironment:
    """A virtual environment with the workspace's wheels, in which commands are run."""

    path: Path
    cwd: Path

    @property
    def bin(self) -> Path:
        return self.path / ("Scripts" if os.name == "nt" else "bin")

    def run(self, *command: str, cwd: Path | None = None, **variables: str) -> Result:
        """Run a command as typed in a terminal, its own scripts first on the PATH."""
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "NANOCHAT"))}
        env["PATH"] = f"{self.bin}{os.pathsep}{env['PATH']}"
        env["OMP_NUM_THREADS"] = "1"
        return subprocess.run(
            [str(self.bin / command[0]), *command[1:]] if _ours(command[0]) else command,
            cwd=cwd or self.cwd,
            env=env | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    def install(self, wheels: Sequence[Path]) -> None:
        done = self.run(
            *("python", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"),
            *map(str, wheels),
        )
        assert done.returncode == 0, done.stderr


def _ours(program: str) -> bool:
    return program == "python" or program.startswith("nanochat-")


@pytest.fixture(scope="session")
def build_project() -> Callable[[Path, Path], None]:
    return build


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdists and wheels of all members."""
    folder = tmp_path_factory.mktemp("dist")
    for member in MEMBERS:
        build(ROOT / member, folder)
    return folder


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory, distributions: Path) -> CleanEnvironment:
    """An environment with our wheels. What they depend on is borrowed from the running one."""
    path = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(path, with_pip=True)
    environment = CleanEnvironment(path, tmp_path_factory.mktemp("elsewhere"))
    asked = environment.run(
        "python", "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    )
    # Paths named by a .pth file come last and their own .pth files are not read, so that the
    # editable installs of the workspace stay out of sight.
    borrowed = {sysconfig.get_paths()[key] for key in ("purelib", "platlib")}
    (Path(asked.stdout.strip()) / "borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n")
    environment.install(sorted(distributions.glob("*.whl")))
    return environment
