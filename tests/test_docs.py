"""What the README and the documentation show is what happens."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
COMMAND = re.compile(r"nanochat-(train|tokenizer|sample|eval|chunker)$")


class Block(NamedTuple):
    """A fenced block of a page: its language, the file it shows if it has a title, its text."""

    language: str
    title: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    pattern = r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$'
    for found in re.finditer(pattern, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        yield Block(*(part or "" for part in found.groups()))


def write_files(page: Path, folder: Path) -> None:
    for block in blocks(page):
        if block.title:
            file = folder / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")


def shown_commands() -> Iterator[tuple[str, list[str]]]:
    """Every line of a shell block that calls one of our commands."""
    for page in PAGES:
        for block in blocks(page):
            if block.language not in ("bash", "console"):
                continue
            for line in block.text.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words and COMMAND.match(words[0]):
                    yield page.name, words


@cache
def flags_of(clean: Any, *command: str) -> frozenset[str]:
    done = clean.run(*command, "--help")
    assert done.returncode == 0, done.stderr
    return frozenset(re.findall(r"--[a-z][a-z0-9-]*", done.stdout))


def test_every_flag_shown_exists(clean: Any) -> None:
    shown = list(shown_commands())
    assert shown
    for page, words in shown:
        has_one = words[0] == "nanochat-tokenizer" or words[1:2] in (["verify"], ["stats"])
        subcommand = words[1:2] if has_one else []
        for word in words[1:]:
            if word.startswith("--"):
                flag = word.split("=")[0].replace("_", "-")
                assert flag in flags_of(clean, words[0], *subcommand), (page, shlex.join(words))


def test_every_flag_of_the_training_page_exists(clean: Any) -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    flags = {f.replace("_", "-") for f in re.findall(r"`(--[a-z][a-z_-]*)", text)}
    assert len(flags) > 20
    assert flags <= flags_of(clean, "nanochat-train")


def test_getting_started_as_typed(clean: Any, tmp_path: Path) -> None:
    page = ROOT / "docs" / "getting-started.md"
    write_files(page, tmp_path)
    script = "".join(b.text for b in blocks(page) if b.language == "bash")
    done = clean.run("bash", "-euo", "pipefail", "-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [
        record["step"]
        for line in (tmp_path / "runs/first/log.jsonl").read_text().splitlines()
        if "loss" in (record := json.loads(line))
    ]
    assert steps == list(range(30))
    assert json.loads((tmp_path / "backends.json").read_text())
    for name in ("plan.json", "tokenizer.json", "checkpoints/step_000030/model.safetensors"):
        assert (tmp_path / "runs/first" / name).is_file(), name


def test_the_kernels_page_runs(clean: Any, tmp_path: Path) -> None:
    write_files(ROOT / "docs" / "kernels.md", tmp_path)
    done = clean.run("python", "own_loop.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def plugin(
    clean: Any,
    build_project: Callable[[Path, Path], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """Where the plugin of the documentation is installed, to be put on the PYTHONPATH."""
    project = tmp_path_factory.mktemp("plugin")
    write_files(ROOT / "docs" / "plugins.md", project)
    build_project(project, project / "dist")
    (wheel,) = (project / "dist").glob("*.whl")
    target = project / "installed"
    done = clean.run(
        *("python", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"),
        *("--target", str(target), str(wheel)),
    )
    assert done.returncode == 0, done.stderr
    return str(target)


def listed(clean: Any, *flags: str, **variables: str) -> dict[str, Any]:
    done = clean.run("nanochat-train", "--list-backends", "--json", *flags, **variables)
    assert done.returncode == 0, done.stderr
    return {f"{row['hook']} {row['name']}": row for row in json.loads(done.stdout)}


def test_the_plugin_of_the_documentation_is_found_and_chosen(clean: Any, plugin: str) -> None:
    row = listed(clean, PYTHONPATH=plugin)["loss rowwise"]
    assert (row["distribution"], row["version"]) == ("nanochat-rowwise", "0.1.0")
    assert row["state"] == "available"
    asked = listed(clean, "--loss", "rowwise", PYTHONPATH=plugin)
    assert asked["loss rowwise"]["state"] == "selected"
    without = listed(clean, PYTHONPATH=plugin, NANOCHAT_PLUGINS="")
    assert "loss rowwise" not in without


def test_the_plugin_of_the_readme_is_that_of_the_documentation() -> None:
    shown = {b for b in blocks(ROOT / "README.md") if b.title}
    assert shown
    assert shown <= set(blocks(ROOT / "docs" / "plugins.md"))


def test_the_plugin_of_the_documentation_trains_like_the_builtin(
    clean: Any, plugin: str, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = [json.dumps({"text": f"int f{i}() {{ return {i * i}; }}\n" * 8}) for i in range(60)]
    (data / "shard_0.jsonl").write_text("\n".join(rows[:50]) + "\n")
    (data / "val_shard.jsonl").write_text("\n".join(rows[50:]) + "\n")
    learnt = clean.run(
        *("nanochat-tokenizer", "train", "--vocab-size", "300"),
        *("--data-dir", str(data), "--output", str(data)),
    )
    assert learnt.returncode == 0, learnt.stderr
    losses = {}
    for loss in ("rowwise", "torch"):
        run = tmp_path / loss
        done = clean.run(
            *("nanochat-train", "--loss", loss, "--output", str(run), "--data-dir", str(data)),
            *("--depth", "1", "--aspect-ratio", "32", "--head-dim", "32", "--max-seq-len", "64"),
            *("--device-batch-size", "2", "--total-batch-size", "128", "--num-iterations", "4"),
            *("--no-compile", "--device", "cpu", "--eval-every", "-1", "--save-every", "0"),
            *("--core-metric-every", "-1", "--sample-every", "-1"),
            PYTHONPATH=plugin,
        )
        assert done.returncode == 0, done.stderr
        records = map(json.loads, (run / "log.jsonl").read_text().splitlines())
        losses[loss] = [record["loss"] for record in records if "loss" in record]
        plan = json.loads((run / "plan.json").read_text())
        assert plan["loss"]["backend"] == loss
    assert len(losses["rowwise"]) == 4
    assert losses["rowwise"] == pytest.approx(losses["torch"], rel=1e-5)
