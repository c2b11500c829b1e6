"""Projects on disk, and the command run in this process."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanochat_chunker.cli import main

Tree = dict[str, str | bytes]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """`make({"zlib/a.c": "int a;"})` writes the files under a folder of projects and returns it."""

    def write(tree: Tree, root: str = "projects") -> Path:
        folder = tmp_path / root
        folder.mkdir(exist_ok=True)
        for name, content in tree.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder

    return write


@pytest.fixture
def chunk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs the command to a JSONL file in one process; returns its texts and its manifest."""

    def run(folder: Path, *flags: str) -> tuple[list[str], dict[str, Any]]:
        out = tmp_path / "out.jsonl"
        common = ["--output", str(out), "--executor", "serial", "--overwrite"]
        status = main(["--project-dirs", str(folder), *common, *flags])
        assert status == 0, capsys.readouterr().err
        lines = out.read_text(encoding="utf-8").split("\n")
        assert lines.pop() == ""
        rows = [json.loads(line) for line in lines]
        assert all(list(row) == ["text"] for row in rows)
        manifest = json.loads((tmp_path / "out.manifest.json").read_text(encoding="utf-8"))
        return [row["text"] for row in rows], manifest

    return run
