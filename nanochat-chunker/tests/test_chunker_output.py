"""Shards while they are written, windows of the shuffle, addresses, statistics."""

import json
import shutil
import subprocess
import sys
import threading

import fsspec
import pyarrow.parquet as pq
import pytest

from nanochat_chunker.cli import main
from nanochat_chunker.storage import RemoteStore, write_text


@pytest.fixture
def projects(make):
    return make({f"p{i % 8}/{i}.cc": f"int v{i};\n" * 20 for i in range(240)})


def run(folder, out, *flags):
    common = ["--executor", "serial", "--max-tokens", "64"]
    return main(["--project-dirs", str(folder), "--output", str(out), *common, *flags])


def texts(path):
    return pq.read_table(path)["text"].to_pylist()


def test_shards_appear_while_documents_are_still_made(projects, tmp_path, monkeypatch):
    out = tmp_path / "out"
    seen = []

    import nanochat_chunker.stages.write as write

    add = write.Writer.add

    def watched(writer, references):
        new = add(writer, references)
        writer._wait()
        if out.exists():
            seen.append(sorted(path.name for path in out.glob("[!.]*")))
        return new

    monkeypatch.setattr(write.Writer, "add", watched)
    flags = ["--documents-per-shard", "20", "--shuffle-window", "60", "--val-documents", "5"]
    assert run(projects, out, *flags) == 0
    first = next(names for names in seen if names)
    assert first == ["shard_00000.parquet", "val_shard.parquet"]
    assert all("_COMPLETE" not in names and "manifest.json" not in names for names in seen)
    shards = sorted(out.glob("shard_*"))
    assert [pq.read_metadata(shard).num_rows for shard in shards[:-1]] == [20] * (len(shards) - 1)
    everything = [text for path in [*shards, out / "val_shard.parquet"] for text in texts(path)]
    assert len(everything) == len(set(everything)) == 240


def test_a_window_mixes_projects_and_the_seed_decides(projects, tmp_path):
    flags = ["--documents-per-shard", "40", "--shuffle-window", "80", "--val-fraction", "0"]
    shards = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert run(projects, tmp_path / name, *flags, "--seed", seed) == 0
        shards.append(pq.read_table(tmp_path / name / "shard_00000.parquet").to_pylist())
    assert shards[0] == shards[1] != shards[2]
    assert len({row["project"] for row in shards[0]}) >= 2


def test_training_can_begin_while_shards_are_written(projects, tmp_path, monkeypatch):
    """The reader of nanochat-core, streaming, sees each training document once."""
    shards = pytest.importorskip("nanochat.data.shards", reason="nanochat-core is not installed")
    import nanochat_chunker.stages.write as write

    out = tmp_path / "out"
    out.mkdir()
    found = []

    def train():
        reader = shards.ShardSet(out, streaming=True, poll_seconds=0.01, notify=lambda _: None)
        found.extend(shard.name for shard in reader.files())

    trainer = threading.Thread(target=train)
    first = threading.Event()
    fill = write.Writer._fill

    def slow(writer, name, chosen):
        if name == "shard_00001.parquet":
            first.wait(10)  # until the trainer has the first one
        fill(writer, name, chosen)

    monkeypatch.setattr(write.Writer, "_fill", slow)
    trainer.start()
    watcher = threading.Thread(target=lambda: _until(lambda: found, first))
    watcher.start()
    assert run(projects, out, "--documents-per-shard", "50", "--shuffle-window", "100") == 0
    trainer.join(20)
    watcher.join(20)
    assert not trainer.is_alive()
    assert found == [f"shard_{i:05d}.parquet" for i in range(5)]
    assert first.is_set()


def _until(condition, event):
    for _ in range(2000):
        if condition():
            event.set()
            return
        threading.Event().wait(0.005)


@pytest.fixture
def memory():
    """The file system of addresses memory://."""
    system = fsspec.filesystem("memory")
    yield system
    for path in system.find("/"):
        system.rm_file(path)


def test_shards_at_an_address(projects, tmp_path, memory, capsys):
    local, address = tmp_path / "out", "memory://bucket/out"
    work = ["--work-dir", str(tmp_path / "work")]
    flags = ["--documents-per-shard", "50", "--val-documents", "4"]
    assert run(projects, local, *flags) == 0
    assert run(projects, address, *flags, *work) == 0
    expected = {path.name: path.read_bytes() for path in local.iterdir()}
    assert {p.rsplit("/", 1)[-1]: memory.cat(p) for p in memory.find("/bucket/out")} == expected
    assert not (tmp_path / "work").exists()
    assert run(projects, address, *flags, *work) == 2
    assert "is complete" in capsys.readouterr().err
    assert run(projects, address, "--overwrite", *work) == 0
    assert len(memory.find("/bucket/out")) == 4
    assert main(["stats", address]) == 0
    assert "240 documents" in capsys.readouterr().out


def test_lines_at_an_address(projects, tmp_path, memory, capsys):
    work = ["--work-dir", str(tmp_path / "work")]
    assert run(projects, tmp_path / "a.jsonl") == 0
    assert run(projects, "memory://bucket/a.jsonl", *work) == 0
    assert memory.cat("/bucket/a.jsonl") == (tmp_path / "a.jsonl").read_bytes()
    assert memory.exists("/bucket/a.manifest.json")
    assert run(projects, "memory://bucket/a.jsonl", *work) == 2


def test_an_address_of_a_local_file_is_a_local_file(projects, tmp_path):
    assert run(projects, f"file://{tmp_path}/a.jsonl") == 0
    assert (tmp_path / "a.jsonl").exists()


def test_a_file_at_an_address_that_shows_uploads_appears_at_once(tmp_path):
    """As by sftp: what is uploaded goes under another name first."""
    store = RemoteStore(f"local://{tmp_path}/far", tmp_path)
    seen = []
    system = store._system
    put = system.put_file

    def watched(local, remote, **options):
        put(local, remote, **options)
        seen.append(sorted(path.name for path in (tmp_path / "far").iterdir()))

    system.put_file = watched
    try:
        write_text(store, "manifest.json", "{}")
    finally:
        del system.put_file
    assert seen == [[".manifest.json.tmp"]]
    assert store.names() == ["manifest.json"]
    assert store.read_text("manifest.json") == "{}"


def test_stats_prints_lengths_and_reasons(make, tmp_path, capsys):
    folder = make({"p/a.cc": "int a;\n" * 99, "p/b.cc": "int a;\n" * 99, "p/c.cc": b"\0"})
    assert run(folder, tmp_path / "out") == 0
    capsys.readouterr()
    assert main(["stats", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    for part in ("nul_bytes", "duplicate", "median", "Largest projects", "mode project"):
        assert part in shown
    assert main(["stats", str(tmp_path / "out"), "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["files"]["dropped"] == {"duplicate": 1, "nul_bytes": 1}


def test_stats_plots(projects, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra plot)")
    assert run(projects, tmp_path / "a.jsonl") == 0
    assert main(["stats", str(tmp_path / "a.jsonl"), "--plot", str(tmp_path / "a.svg")]) == 0
    assert "<svg" in (tmp_path / "a.svg").read_text()
    capsys.readouterr()
    for name, said in (("a.txt", "End it in .png"), ("none/a.svg", "no folder")):
        assert main(["stats", str(tmp_path / "a.jsonl"), "--plot", str(tmp_path / name)]) == 2
        captured = capsys.readouterr()
        assert said in captured.err
        assert not captured.out


def test_stats_of_what_is_no_output(tmp_path, capsys):
    assert main(["stats", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_helps_import_nothing_heavy():
    for arguments in (["--help"], ["stats", "--help"], ["verify", "--help"]):
        code = (
            f"import sys\nfrom nanochat_chunker.cli import main\n"
            f"try: main({arguments!r})\nexcept SystemExit: pass\n"
            "heavy = 'pyarrow rich tree_sitter fsspec tokenizers ray matplotlib clang'.split()\n"
            "print([m for m in heavy if m in sys.modules])\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_verify_and_annotate_through_the_command(make, tmp_path, capsys):
    if not (shutil.which("clang++") or shutil.which("g++")):
        pytest.skip("no C++ compiler on this machine")
    folder = make({"p/a.cc": "int good() { return 1; }\n", "q/b.cc": "int bad() { return x; }\n"})
    out = tmp_path / "out"
    assert run(folder, out, "--compilable", "--val-fraction", "0") == 0
    capsys.readouterr()
    assert main(["verify", str(out), "--annotate", "--workers", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    rows = pq.read_table(out / "shard_00000.parquet").to_pylist()
    assert {row["project"]: row["compiles"] for row in rows} == {"p": True, "q": False}
