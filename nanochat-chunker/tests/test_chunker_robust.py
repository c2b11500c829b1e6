"""Files that break programs beside one that does not: counted by reason, and nothing else."""

import json
import os

import pyarrow.parquet as pq
import pytest

from nanochat_chunker.cli import main

GOOD = "int good(int x) { return x + 1; }\n"


def hostile():
    deep = 100_000
    return {
        "p/good.cc": GOOD,
        "p/not_utf8.cc": "// \u6574\u6570\u3092\u8fd4\u3059\n".encode("shift_jis") * 9,
        "p/nul.cc": b"int a;\0\0int b;",
        "p/utf16.h": "int a;\n".encode("utf-16"),
        "p/empty.h": b"",
        "p/blank.h": b" \n\t\r\n\f",
        "p/braces.cc": "{" * deep,
        "p/closed.cc": "{" * deep + "}" * deep,
        "p/parentheses.cc": "int x = " + "(" * deep + "1" + ")" * deep + ";\n",
        "p/templates.h": "template<" * deep,
        "p/conditions.h": "#if A\n" * deep,
        "p/namespaces.h": "namespace a {\n" * 20_000 + "int deep;\n" + "}\n" * 20_000,
        "p/comment.cc": "/*" * deep,
        "p/raw.cc": 'R"(' * deep,
        "p/line.cc": "int x = 1" + "+1" * 5_000_000 + ";\n",  # 10 MB
        "p/macro.h": "#define A " + "\\\n" * deep,
        "p/include.h": '#include "include.h"\n' * 2_000,
        "p/self/a.h": '#include "b.h"\n',
        "p/self/b.h": '#include "a.h"\n',
        "p/huge.cc": b"x" * 12_000_000,
        "q/README": b"an empty project",
    }


@pytest.mark.parametrize("mode", [[], ["--compilable"]])
def test_hostile_files_cost_themselves(make, tmp_path, mode):
    folder = make(hostile())
    (folder / "p" / "up").symlink_to("..", target_is_directory=True)
    (folder / "p" / "loop.cc").symlink_to("loop.cc")
    (folder / "p" / "gone.h").symlink_to("nowhere.h")
    os.mkfifo(folder / "p" / "pipe.cc")
    out = tmp_path / "out"
    flags = ["--project-dirs", str(folder), "--output", str(out), "--workers", "2", *mode]
    flags += ["--max-file-bytes", "11000000", "--max-tokens", "2000", "--max-memory", "3G"]
    assert main([*flags, "--val-fraction", "0", "--max-seconds-per-file", "20"]) == 0
    dropped = json.loads((out / "manifest.json").read_text())["files"]["dropped"]
    certain = {
        "empty": 2,
        "not_a_regular_file": 1,
        "not_utf8": 1,
        "nul_bytes": 2,
        "symlink": 3,
        "too_large": 1,
    }
    assert {reason: dropped.pop(reason, 0) for reason in certain} == certain
    # What a file may do to the process that reads it, and no other way to fail.
    of_process = {"too_slow", "out_of_memory", "crashed", "too_deep"}
    assert set(dropped) <= of_process | {
        "duplicate",
        "fragment",
        "other_platform",
        "not_in_configuration",
    }
    rows = pq.read_table(sorted(out.glob("shard_*"))).to_pylist()
    assert any(GOOD in row["text"] or "int good(int x)" in row["text"] for row in rows)
    assert all(row["tokens"] <= 2000 for row in rows)
    assert {row["project"] for row in rows} == {"p"}


@pytest.mark.parametrize("mode", [[], ["--compilable"]])
def test_a_file_that_takes_too_long_is_dropped(make, tmp_path, mode):
    folder = make({"p/good.cc": GOOD, "p/slow.cc": "int x = 1" + "+(1" * 10_000_000 + ";\n"})
    out = tmp_path / "out.jsonl"
    flags = ["--project-dirs", str(folder), "--output", str(out), "--workers", "1", *mode]
    flags += ["--max-file-bytes", "40000000", "--max-seconds-per-file", "0.25"]
    assert main(flags) == 0
    manifest = json.loads((tmp_path / "out.manifest.json").read_text())
    assert manifest["files"]["dropped"] == {"too_slow": 1}
    assert manifest["files"]["kept"] == 1


def test_the_same_reasons_for_any_number_of_workers(make, tmp_path):
    tree = {f"p{i}/{name}": data for i in range(3) for name, data in small_hostile(i).items()}
    folder = make(tree)
    manifests = []
    for workers in ("1", "3"):
        out = tmp_path / f"{workers}.jsonl"
        flags = ["--project-dirs", str(folder), "--output", str(out), "--workers", workers]
        assert main([*flags, "--compilable"]) == 0
        manifests.append((tmp_path / f"{workers}.manifest.json").read_text())
    assert manifests[0] == manifests[1]


def small_hostile(i):
    return {
        "a.cc": f"int good{i}() {{ return {i}; }}\n",
        "b.cc": b"\0",
        "c.cc": "{" * 1000,
        "d.h": bytes(range(128, 256)) * 9,
    }
