import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import nanochat_chunker.stages.write
from nanochat_chunker.cli import main

COMMAND = [sys.executable, "-m", "nanochat_chunker"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(nanochat_chunker.__file__).parents[1])}


def command(*arguments, **options):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], env=ENVIRONMENT, capture_output=True, text=True, **options
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def projects(make):
    return make(
        {
            f"p{i % 5}/src/{i}.cc": f'#include "../{i // 2}.h"\n' + f"int v{i};\n" * 20
            for i in range(60)
        }
    )


def test_shards_as_the_users_type_it(projects, tmp_path):
    out = tmp_path / "shards"
    done = command(
        "--project-dirs", projects, "--output", out, "--max_tokens", 128, "--max-file-bytes=500000",
        "--documents-per-shard", 10, "--val_documents", 3, "--workers", 2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress where there is no terminal
    assert "5 projects, 60 files" in done.stdout
    manifest = json.loads((out / "manifest.json").read_text())
    names = sorted(path.name for path in out.iterdir())
    shards = [name for name in names if name.startswith("shard_")]
    assert names == ["_COMPLETE", "manifest.json", *shards, "val_shard.parquet"]
    assert shards == [f"shard_{i:05d}.parquet" for i in range(len(shards))]
    tables = [pq.read_table(out / name) for name in shards]
    assert {table.num_rows for table in tables[:-1]} == {10}
    assert sum(table.num_rows for table in tables) == manifest["documents"]["train"]
    validation = pq.read_table(out / "val_shard.parquet")
    assert validation.num_rows == manifest["documents"]["validation"] == 3
    rows = [row for table in [*tables, validation] for row in table.to_pylist()]
    assert sorted(path for row in rows for path in row["paths"]) == sorted(
        f"src/{i}.cc" for i in range(60)
    )
    for row in rows:
        assert list(row) == [
            "text", "project", "paths", "tokens", "mode", "roots", "rung", "license",
            "commit", "generated", "vendored", "compiles",
        ]  # fmt: skip
        assert row["tokens"] == -(-len(row["text"].encode()) // 4) <= 128
        assert all(f"// {path}\n" in row["text"] for path in row["paths"])
    assert [row["project"] for row in rows] != sorted(row["project"] for row in rows)


def test_row_groups_are_of_1024_compressed_with_zstd(make, tmp_path):
    folder = make({f"p/{i}.c": f"int v{i} = 0;\n" * 12 for i in range(1300)})
    out = tmp_path / "out"
    flags = ["--max-tokens", "64", "--val-fraction", "0", "--executor", "serial"]
    assert main(["--project-dirs", str(folder), "--output", str(out), *flags]) == 0
    metadata = pq.ParquetFile(out / "shard_00000.parquet").metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [1024, 276]
    assert metadata.row_group(0).column(0).compression == "ZSTD"
    assert not (out / "val_shard.parquet").exists()


@pytest.mark.parametrize("name", ["out", "out.jsonl"])
def test_same_bytes_whatever_the_workers_and_the_order_of_folders(make, tmp_path, name):
    shared = "int shared;\n"  # the first project keeps it, however the work is divided
    tree = {f"p{i % 7}/{i}.h": f"int v{i};\n" * (i % 9 + 1) for i in range(400)}
    first = make(tree | {f"p{i}/same.h": shared for i in range(7)}, "first")
    second = make({"x/a.c": shared, "y/b.c": "int b;\n"}, "second")
    written = []
    for number, (folders, workers) in enumerate(
        [([first, second], 1), ([first, second], 2), ([second, first], 3)]
    ):
        run = tmp_path / str(number)
        flags = ["--max-tokens", 100, "--workers", workers, "--documents-per-shard", 30]
        flags += ["--val-fraction", 0.1]
        assert command("--project-dirs", *folders, "--output", run / name, *flags).returncode == 0
        files = contents(run / name if name == "out" else run)
        manifest = json.loads(files.pop("manifest.json" if name == "out" else "out.manifest.json"))
        assert len(manifest["settings"].pop("project_dirs")) == 2
        written.append((files, manifest))
    assert written[0] == written[1] == written[2]
    assert written[0][1]["files"]["dropped"]["duplicate"] == 7


def test_the_seed_decides_the_order_and_nothing_else(projects, chunk):
    first, _ = chunk(projects, "--max-tokens", "128", "--seed", "1")
    second, _ = chunk(projects, "--max-tokens", "128", "--seed", "2")
    again, _ = chunk(projects, "--max-tokens", "128", "--seed", "1")
    assert first == again != second
    assert sorted(first) == sorted(second)


def test_jsonl_holds_out_beside_when_asked(projects, chunk, tmp_path):
    everything, _ = chunk(projects, "--max-tokens", "128")
    assert not (tmp_path / "out.val.jsonl").exists()
    training, _ = chunk(projects, "--max-tokens", "128", "--val-documents", "4")
    held_out = [
        json.loads(line)["text"] for line in (tmp_path / "out.val.jsonl").read_text().splitlines()
    ]
    assert len(held_out) == 4
    assert held_out + training == everything


@pytest.mark.parametrize("name", ["out", "out.jsonl"])
def test_a_complete_output_is_replaced_only_when_asked(projects, tmp_path, capsys, name):
    out = tmp_path / "place" / name
    flags = ["--project-dirs", str(projects), "--output", str(out), "--executor", "serial"]
    assert main([*flags, "--max-tokens", "64", "--documents-per-shard", "5"]) == 0
    before = contents(out.parent if out.is_file() else out)
    assert main([*flags, "--max-tokens", "512"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--overwrite" in error
    assert contents(out.parent if out.is_file() else out) == before
    assert main([*flags, "--max-tokens", "512", "--overwrite"]) == 0
    after = contents(out.parent if out.is_file() else out)
    assert len(after) <= len(before)  # no shard of the first run is left among the new
    assert after != before
    assert not [file for file in after if file.startswith(".")]


def test_a_folder_of_somebody_else_is_left_alone(projects, tmp_path, capsys):
    out = tmp_path / "data"
    out.mkdir()
    (out / "shard_00000.parquet").write_bytes(b"theirs")
    flags = ["--project-dirs", str(projects), "--output", str(out), "--executor", "serial"]
    for extra in ([], ["--overwrite"]):
        assert main([*flags, *extra]) == 2
        assert "not from nanochat-chunker" in capsys.readouterr().err
    assert contents(out) == {"shard_00000.parquet": b"theirs"}


BAD = {
    "no such folder": (["--project-dirs", "{tmp}/none"], "no folder"),
    "a file for a folder": (["--project-dirs", "{tmp}/file.c"], "is not a folder"),
    "no sources": (["--project-dirs", "{tmp}/empty"], "no C or C++ files"),
    "zero tokens": (["--max-tokens", "0"], "--max-tokens"),
    "few tokens": (["--max-tokens", "10"], "--max-tokens"),
    "negative bytes": (["--max-file-bytes", "-1"], "--max-file-bytes"),
    "nothing small enough": (["--max-file-bytes", "5"], "too_large 60"),
    "no workers": (["--workers", "0"], "--workers"),
    "empty shards": (["--documents-per-shard", "0"], "--documents-per-shard"),
    "all held out": (["--val-fraction", "1"], "--val-fraction"),
    "more held out than there is": (["--val-documents", "1000"], "--val-documents"),
    "two ways to hold out": (["--val-documents", "1", "--val-fraction", "0.1"], "not allowed with"),
    "unknown layout": (["--layout", "flat"], "auto, one, many"),
    "zstd": (["--zstd-level", "40"], "--zstd-level"),
    "tokenizer missing": (["--tokenizer", "{tmp}/none.json"], "no tokenizer at"),
    "tokenizer broken": (["--tokenizer", "{tmp}/file.c"], "cannot load the tokenizer"),
    "not a number": (["--max-tokens", "many"], "invalid int"),
    "unknown flag": (["--max-token", "5"], "unrecognized arguments"),
    "unknown kind of address": (["--output", "nosuch://bucket/out"], "cannot open nosuch://"),
    "commits": (["--commit-mode"], "made of files"),
    "depth": (["--cross-depth", "-1"], "--cross-depth"),
    "semantic of nothing": (["--semantic"], "Add --compilable"),
    "both inputs": (["--cross-file", "--inputs", "{tmp}/file.c"], "one of both"),
    "no inputs": (["--cross-file"], "--inputs"),
    "unknown executor": (["--executor", "threads"], "processes, serial, ray"),
    "little memory": (["--max-memory", "10M"], "too little"),
    "no size": (["--max-memory", "much"], "is not a size"),
    "no time": (["--max-seconds-per-file", "0"], "--max-seconds-per-file"),
    "similarity": (["--near-duplicates", "7"], "0.5 to 1"),
    "unknown redaction": (["--redact", "names"], "secrets, emails"),
    "unknown kind to skip": (["--skip", "tests"], "generated, vendored"),
    "small window": (["--shuffle-window", "10"], "--shuffle-window"),
    "output is a file": (["--output", "{tmp}/file.c"], "is a file"),
    "output of no kind": (["--output", "{tmp}/out.json"], "End it in .jsonl"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_status_2(projects, tmp_path, capsys, case):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no code")
    (tmp_path / "file.c").write_text("int a;\n")
    extra, message = BAD[case]
    before = sorted(tmp_path.rglob("*"))
    flags = [
        "--project-dirs",
        str(projects),
        "--output",
        str(tmp_path / "out"),
        "--executor",
        "serial",
    ]
    try:
        status = main([*flags, *(flag.format(tmp=tmp_path) for flag in extra)])
    except SystemExit as end:  # argparse
        status = end.code
    error = capsys.readouterr().err
    assert status == 2
    assert message in error
    assert "Traceback" not in error
    assert sorted(tmp_path.rglob("*")) == before  # nothing written


def test_a_missing_tokenizers_package_is_said(projects, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    flags = ["--output", str(tmp_path / "out"), "--tokenizer", str(tmp_path)]
    assert main(["--project-dirs", str(projects), *flags]) == 2
    assert "nanochat-chunker[tokenizer]" in capsys.readouterr().err


def test_a_full_disk_ends_in_one_message_and_an_incomplete_folder(
    projects, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "out"
    flags = ["--project-dirs", str(projects), "--output", str(out), "--executor", "serial"]
    flags += ["--max-tokens", "64", "--documents-per-shard", "10"]
    with monkeypatch.context() as patch:
        write = nanochat_chunker.stages.write.write_parquet

        def fills_up(path, rows, level):
            if "shard_00001.parquet" in path.name:
                raise OSError(28, "No space left on device", str(path))
            write(path, rows, level)

        patch.setattr("nanochat_chunker.stages.write.write_parquet", fills_up)
        assert main(flags) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "No space left" in error
    assert not (out / "_COMPLETE").exists()
    assert main(flags) == 0
    assert (out / "_COMPLETE").exists()
    assert not (out / ".work").exists()


def test_a_killed_run_is_not_complete_and_can_be_repeated(make, tmp_path):
    folder = make({f"p{i % 3}/{i}.c": f"int v{i};\n" * 20 for i in range(1500)})
    out = tmp_path / "out"
    flags = ["--project-dirs", folder, "--output", out, "--max-tokens", 64, "--workers", 2]
    arguments = [*COMMAND, *map(str, flags), "--documents-per-shard", "1"]
    running = subprocess.Popen(arguments, env=ENVIRONMENT, start_new_session=True)
    try:
        while not (out / "shard_00000.parquet").exists():
            assert running.poll() is None
            time.sleep(0.01)
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert not (out / "_COMPLETE").exists()
    assert (out / ".work").exists()
    done = command(*flags)
    assert done.returncode == 0, done.stderr
    assert sorted(contents(out)) == [
        "_COMPLETE", "manifest.json", "shard_00000.parquet", "val_shard.parquet",
    ]  # fmt: skip
    rows = pq.read_table(out / "shard_00000.parquet").num_rows
    assert rows + pq.read_table(out / "val_shard.parquet").num_rows == 1500


def test_workers_do_not_outlive_a_killed_parent():
    script = (
        "import os, time\n"
        "from nanochat_chunker.execution import Job, Limits, make_pool\n"
        "from nanochat_chunker.survey import survey\n"
        "if __name__ == '__main__':\n"
        "    with make_pool('processes', workers=2, limits=Limits()) as pool:\n"
        "        list(pool.run([Job(0, survey, None, [])]))\n"
        "        print(pool._workers[0].process.pid, flush=True)\n"
        "        time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while _alive(worker):
        assert time.monotonic() < deadline, "the worker lives on"
        time.sleep(0.05)


def _alive(pid):
    """Whether the process runs; one that has ended but that nobody has collected does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_two_runs_to_one_place(projects, tmp_path, capsys):
    fcntl = pytest.importorskip("fcntl", reason="there is no lock on this system")
    out = tmp_path / "out"
    out.mkdir()
    with (out / ".nanochat-chunker.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        flags = ["--project-dirs", str(projects), "--output", str(out), "--executor", "serial"]
        assert main(flags) == 2
        assert "another run" in capsys.readouterr().err
    assert main(flags) == 0


def test_interrupted(projects, tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("nanochat_chunker.pipeline.choose", interrupt)
    flags = [
        "--project-dirs",
        str(projects),
        "--output",
        str(tmp_path / "out"),
        "--executor",
        "serial",
    ]
    assert main(flags) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("[!.]*"))


def test_one_document_leaves_nothing_to_hold_out_and_says_so(make, tmp_path, capsys):
    folder = make({"p/a.c": "int a;\n"})
    assert (
        main(
            ["--project-dirs", str(folder), "--output", str(tmp_path / "o"), "--executor", "serial"]
        )
        == 0
    )
    assert "no validation shard" in capsys.readouterr().out
    assert pq.read_table(tmp_path / "o" / "shard_00000.parquet")["text"].to_pylist() == [
        "// a.c\nint a;\n"
    ]


def test_a_depth_that_packing_does_not_use_is_said(make, tmp_path, capsys):
    folder = make({"p/a.c": "int a;\n"})
    typed = ["--project-dirs", str(folder), "--cross-depth", "3", "--executor", "serial"]
    assert main([*typed, "--output", str(tmp_path / "packed")]) == 0
    assert "--cross-depth is of no use without --compilable" in capsys.readouterr().err
    assert main([*typed, "--output", str(tmp_path / "slices"), "--compilable"]) == 0
    assert "--cross-depth" not in capsys.readouterr().err


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom nanochat_chunker.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('pyarrow', 'rich', 'torch', 'tokenizers') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--max-file-bytes" in done.stdout
