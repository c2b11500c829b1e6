"""Documents of slices through the command line: same bytes for all workers, origin, budget."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import nanochat_chunker
from nanochat_chunker.cli import main

PYTHON_PATH = [str(Path(nanochat_chunker.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, PYTHON_PATH))}
COMMAND = [sys.executable, "-m", "nanochat_chunker"]


def zoo(animals, files):
    """Projects whose sources need their headers, and those each other."""
    tree = {}
    for a in range(animals):
        name = f"zoo{a}"
        tree[f"{name}/LICENSE"] = (
            "Permission is hereby granted, free of charge, to any person obtaining a copy"
        )
        tree[f"{name}/include/{name}/base.h"] = (
            f"#ifndef BASE_{a}\n#define BASE_{a}\n#include <string>\nnamespace {name} {{\n"
            "struct Base { std::string name; int legs; };\nint count(const Base& base);\n}\n"
            "#endif\n"
        )
        for i in range(files):
            tree[f"{name}/src/animal{i}.cc"] = (
                f"#include <{name}/base.h>\n#include <vector>\nnamespace {name} {{\n"
                f"static int twice{i}(int x) {{ return 2 * x; }}\n"
                f"int legs{i}(const Base& base) {{ return twice{i}(base.legs) + {i}; }}\n}}\n"
            )
    return tree


def rows(folder):
    names = sorted(path.name for path in folder.glob("*.parquet"))
    return [row for name in names for row in pq.read_table(folder / name).to_pylist()]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_documents_compile_alone_and_say_where_they_come_from(make, tmp_path):
    out = tmp_path / "out"
    flags = ["--project-dirs", str(make(zoo(2, 3))), "--output", str(out), "--compilable"]
    assert main([*flags, "--executor", "serial", "--val-fraction", "0"]) == 0
    found = {(row["project"], row["roots"][0]["path"]): row for row in rows(out)}
    assert len(found) == 2 * (3 + 1)
    row = found["zoo1", "src/animal2.cc"]
    assert {root["name"].rpartition("::")[2] for root in row["roots"]} == {"twice2", "legs2"}
    assert "src/animal2.cc" in row["paths"]
    assert "include/zoo1/base.h" in row["paths"]
    assert (row["mode"], row["license"]) == ("compilable", "MIT")
    assert "#include <zoo1" not in row["text"]
    assert "#include <string>" in row["text"]
    compiler = shutil.which("clang++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler on this machine")
    for row in found.values():
        done = subprocess.run(
            [compiler, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"],
            input=row["text"], text=True, capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("flags", [[], ["--compilable"]])
def test_same_bytes_for_any_number_of_workers(make, tmp_path, flags):
    folder = make(zoo(5, 12))
    written = []
    for executor, workers in (("serial", 1), ("processes", 1), ("processes", 3)):
        out = tmp_path / f"{executor}{workers}"
        common = ["--documents-per-shard", "10", "--max-tokens", "400", "--val-documents", "3"]
        main(["--project-dirs", str(folder), "--output", str(out), "--executor", executor,
              "--workers", str(workers), *common, *flags])  # fmt: skip
        written.append(contents(out))
    assert "_COMPLETE" in written[0]
    assert written[0] == written[1] == written[2]


def test_a_duplicate_is_no_root_twice_but_still_helps_its_project(make, tmp_path):
    shared = "#pragma once\nstruct Shared { int x; };\n"
    tree = {
        f"p{i}/{name}": text
        for i in range(2)
        for name, text in (
            ("shared.h", shared),
            ("use.cc", f'#include "shared.h"\nint use{i}(Shared s) {{ return s.x; }}\n'),
        )
    }
    out = tmp_path / "out.jsonl"
    flags = ["--project-dirs", str(make(tree)), "--output", str(out), "--compilable"]
    assert main([*flags, "--executor", "serial"]) == 0
    texts = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    assert len(texts) == 3
    assert sum("use" in text for text in texts) == 2
    assert all("struct Shared" in text for text in texts)
    manifest = json.loads((tmp_path / "out.manifest.json").read_text())
    assert manifest["files"]["dropped"] == {"duplicate": 1}
    assert manifest["definitions"] == {"roots": 3, "left_out": {}}


def test_a_header_without_ending_is_read_where_it_is_included(make, tmp_path):
    tree = {
        "p/Core": '#include "src/Types.inc"\n',
        "p/src/Types.inc": "struct Matrix { int rows; };\n",
        "p/use.cc": '#include "Core"\nint rows(const Matrix& m) { return m.rows; }\n',
        "p/README": "struct Unrelated {};\n",
    }
    out = tmp_path / "out.jsonl"
    flags = ["--project-dirs", str(make(tree)), "--output", str(out), "--compilable"]
    assert main([*flags, "--executor", "serial"]) == 0
    [text] = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    assert "struct Matrix" in text
    assert "Unrelated" not in text


@pytest.mark.parametrize("moment", ["survey", "documents", "shards"])
@pytest.mark.parametrize("flags", [[], ["--compilable"]])
def test_killed_and_repeated_gives_the_bytes_of_an_undisturbed_run(make, tmp_path, moment, flags):
    folder = make(zoo(6, 60))
    common = ["--project-dirs", str(folder), "--max-tokens", "300", "--documents-per-shard", "20",
              "--shuffle-window", "40", "--workers", "2", *flags]  # fmt: skip
    out, undisturbed = tmp_path / "out", tmp_path / "undisturbed"
    arguments = [*COMMAND, *common, "--output", str(out)]
    sizes = {
        "survey": lambda: (out / ".work" / "state.sqlite").exists(),
        "documents": lambda: _size(out / ".work" / "documents.spool") > 0,
        "shards": lambda: (out / "shard_00001.parquet").exists(),
    }
    running = subprocess.Popen(arguments, env=ENVIRONMENT, start_new_session=True)
    while running.poll() is None and not sizes[moment]():
        time.sleep(0.002)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert not (out / "_COMPLETE").exists(), "it was done before it could be killed"
    assert subprocess.run(arguments, env=ENVIRONMENT, capture_output=True).returncode == 0
    assert main([*common, "--output", str(undisturbed)]) == 0
    assert contents(out) == contents(undisturbed)


def _size(path):
    return path.stat().st_size if path.exists() else 0


def test_a_repeated_run_does_not_do_again_what_is_done(make, tmp_path, monkeypatch):
    folder = make(zoo(3, 10))
    flags = ["--project-dirs", str(folder), "--compilable", "--executor", "serial"]
    flags += ["--output", str(tmp_path / "out")]

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("nanochat_chunker.stages.write.Writer.finish", interrupt)
        assert main(flags) == 130

    def forbidden(*_):
        raise AssertionError("done again")

    monkeypatch.setattr("nanochat_chunker.survey.read_source", forbidden)
    monkeypatch.setattr("nanochat_chunker.making._material", forbidden)
    assert main(flags) == 0
    assert len(rows(tmp_path / "out")) == 3 * 11


def test_a_changed_file_is_read_again_after_a_kill(make, tmp_path, monkeypatch):
    folder = make(zoo(2, 4))
    flags = ["--project-dirs", str(folder), "--compilable", "--executor", "serial"]
    flags += ["--output", str(tmp_path / "out.jsonl")]

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("nanochat_chunker.stages.write.Writer.finish", interrupt)
        assert main(flags) == 130
    changed = folder / "zoo0" / "src" / "animal0.cc"
    changed.write_text(changed.read_text().replace("legs0", "changed"))
    assert main(flags) == 0
    text = (tmp_path / "out.jsonl").read_text()
    assert "int changed(" in text
    assert "int legs0(const Base" in text  # zoo1's
    assert text.count("\n") == 2 * 5


@pytest.mark.parametrize("flags", [[], ["--compilable"]])
def test_ray_gives_the_same_bytes(make, tmp_path, flags):
    pytest.importorskip("ray", reason="ray is not installed here: hatch run ray:test")
    folder = make(zoo(3, 8))
    common = ["--project-dirs", str(folder), "--max-tokens", "400", *flags]
    assert main([*common, "--output", str(tmp_path / "here"), "--executor", "serial"]) == 0
    arguments = [*COMMAND, *common, "--output", str(tmp_path / "ray"), "--executor", "ray"]
    done = subprocess.run(
        [*arguments, "--workers", "2"], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "ray") == contents(tmp_path / "here")


def test_a_run_left_by_other_projects_of_the_same_names_does_not_mix_in(
    make, tmp_path, monkeypatch
):
    first = make({"p/a.cc": "int first() { return 1; }\n"}, "first")
    second = make({"p/a.cc": "int second() { return 2; }\n"}, "second")
    out = ["--output", str(tmp_path / "out.jsonl"), "--compilable", "--executor", "serial"]

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("nanochat_chunker.stages.write.Writer.finish", interrupt)
        assert main(["--project-dirs", str(first), *out]) == 130
        assert main(["--project-dirs", str(second), *out]) == 130
    assert main(["--project-dirs", str(first), *out]) == 0
    assert "first()" in (tmp_path / "out.jsonl").read_text()


def test_a_tokenizer_counts_slices_exactly(make, tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    from tokenizers import models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["int legs(const Base& base) { return base.legs; }"] * 9, trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    out = tmp_path / "out"
    flags = ["--project-dirs", str(make(zoo(1, 6))), "--output", str(out), "--compilable"]
    flags += ["--tokenizer", str(tmp_path / "tokenizer.json"), "--max-tokens", "220"]
    assert main([*flags, "--executor", "serial"]) == 0
    found = rows(out)
    assert {row["tokens"] for row in found} == {len(tokenizer.encode(row["text"])) for row in found}
    assert 64 < max(row["tokens"] for row in found) <= 220


def test_the_licence_of_a_body_from_another_source_counts(make, tmp_path):
    folder = make(
        {
            "p/h.h": "// SPDX-License-Identifier: MIT\nint other(int);\n",
            "p/other.cc": "// SPDX-License-Identifier: GPL-2.0-only\n"
            '#include "h.h"\nint other(int x) { return x + 41; }\n',
            "p/run.cc": "// SPDX-License-Identifier: MIT\n"
            '#include "h.h"\nint run() { return other(1); }\n',
        }
    )
    flags = ["--project-dirs", str(folder), "--compilable", "--executor", "serial"]
    both, free = tmp_path / "both", tmp_path / "free"
    assert main([*flags, "--output", str(both), "--val-documents", "0"]) == 0
    assert (
        main([*flags, "--output", str(free), "--val-documents", "0", "--exclude-licenses", "GPL-*"])
        == 0
    )

    def run(out):
        rows = pq.read_table(out / "shard_00000.parquet").to_pylist()
        return next(row for row in rows if row["roots"][0]["name"] == "run")

    assert "return x + 41;" in run(both)["text"]
    assert run(both)["license"] == "GPL-2.0-only AND MIT"
    assert "return x + 41;" not in run(free)["text"]
    assert run(free)["license"] == "MIT"
