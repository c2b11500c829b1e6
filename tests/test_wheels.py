"""What a stranger gets from pip: wheels and sdists, installed away from the checkout."""

from __future__ import annotations

import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

COMMANDS = (
    "nanochat-train",
    "nanochat-tokenizer",
    "nanochat-sample",
    "nanochat-eval",
    "nanochat-chunker",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_away_from_the_checkout(clean: Any, command: str) -> None:
    done = clean.run(command, "--help")
    assert done.returncode == 0, done.stderr
    assert command in done.stdout


def test_the_modules_come_from_the_wheels(clean: Any) -> None:
    code = "import nanochat, nanochat_chunker; print(nanochat.__file__, nanochat_chunker.__file__)"
    done = clean.run("python", "-c", code)
    files = done.stdout.split()
    assert len(files) == 2, done.stderr
    assert all(Path(file).is_relative_to(clean.path) for file in files)


def test_the_core_lists_its_backends_without_torch(clean: Any) -> None:
    done = clean.run(
        *("nanochat-train", "--list-backends", "--json"),
        PYTHONPROFILEIMPORTTIME="1",
        NANOCHAT_PLUGINS="",  # those of the workspace are not installed here, only to be seen
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    fields = "hook name distribution version state reason remedy capabilities".split()
    assert all(list(row) == fields for row in rows)
    found = {(row["hook"], row["name"]) for row in rows}
    assert found >= {
        ("attention", "sdpa"),
        ("attention", "flex"),
        ("loss", "torch"),
        ("loss", "chunked"),
        ("quantization", "none"),
        ("quantization", "fp8"),
        ("device", "cpu"),
        ("device", "cuda"),
        ("device", "mps"),
    }
    assert not [row for row in rows if row["state"] == "broken"]
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "nanochat.registry" in imported, "the import log is missing"
    assert "torch" not in imported


@pytest.mark.parametrize("member", ["nanochat_core", "nanochat_chunker"])
def test_wheels_carry_the_package_its_types_and_the_licence(
    distributions: Path, member: str
) -> None:
    (wheel,) = distributions.glob(f"{member}-*.whl")
    package = {"nanochat_core": "nanochat", "nanochat_chunker": "nanochat_chunker"}[member]
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {package}
    assert f"{package}/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.parametrize("member", ["nanochat_core", "nanochat_chunker"])
def test_sdists_hold_nothing_of_their_neighbours(distributions: Path, member: str) -> None:
    (sdist,) = distributions.glob(f"{member}-*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.split("/", 1)[1].split("/")[0] for name in archive.getnames()}
    assert inside <= {
        *("src", "tests", "README.md", "LICENSE", "pyproject.toml", "PKG-INFO", ".gitignore")
    }
