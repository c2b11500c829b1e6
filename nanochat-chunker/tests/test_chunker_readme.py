"""What the README shows is what happens."""

import json
import re
import shlex
from pathlib import Path

from nanochat_chunker.cli import build_parser, main
from nanochat_chunker.commands import stats, verify
from nanochat_chunker.writers import schema

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_example_before_and_after(make, tmp_path):
    before, after = re.findall(r"^```cpp\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)[:2]
    parts = re.split(r"^// (\S+)\n", before, flags=re.MULTILINE)[1:]
    folder = make({f"zoo/{path}": text for path, text in zip(parts[::2], parts[1::2], strict=True)})
    out = tmp_path / "out.jsonl"
    flags = ["--project-dirs", str(folder), "--output", str(out), "--compilable"]
    assert main([*flags, "--executor", "serial"]) == 0
    texts = [json.loads(line)["text"].rstrip("\n") for line in out.read_text().splitlines()]
    assert after.rstrip("\n") in texts


def test_every_flag_it_names_exists():
    known = set()
    for parser in (build_parser(), stats.parser(), verify.parser()):
        known |= {flag for action in parser._actions for flag in action.option_strings}
    named = {flag.replace("_", "-") for flag in re.findall(r"(?<![\w-])(--[a-z][a-z_-]+)", README)}
    others = {"--data-dir", "--streaming-data"}  # of nanochat-train
    assert named - others <= known
    assert len(named) > 20


def test_every_command_it_shows_is_one():
    for block in re.findall(r"^```bash\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            words = shlex.split(line.replace("[", "").replace("]", ""))
            assert not words or words[0] in ("pip", "nanochat-chunker", "nanochat-train")


def test_every_column_is_described():
    names = {name for row in re.findall(r"^\| ((?:`\w+`,? ?)+)\|", README, re.MULTILINE)
             for name in re.findall(r"`(\w+)`", row)}  # fmt: skip
    assert set(schema().names) <= names
