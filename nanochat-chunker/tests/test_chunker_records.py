"""Whole files out of JSON lines."""

import gzip
import json

import pyarrow.parquet as pq
import pytest

from nanochat_chunker.cli import main


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def run(tmp_path, capsys):
    """Runs over inputs, given by name and content; returns the rows and the manifest."""

    def go(inputs, *flags):
        for name, content in inputs.items():
            data = content if isinstance(content, bytes) else content.encode()
            (tmp_path / name).write_bytes(data)
        out = tmp_path / "out"
        common = ["--output", str(out), "--executor", "serial", "--overwrite"]
        paths = [str(tmp_path / name) for name in inputs]
        status = main(["--cross-file", "--inputs", *paths, "--val-fraction", "0", *common, *flags])
        assert status == 0, capsys.readouterr().err
        manifest = json.loads((out / "manifest.json").read_text())
        table = pq.read_table(sorted(out.glob("shard_*")))
        return sorted(table.to_pylist(), key=lambda row: row["text"]), manifest

    return go


USE = '#include "base.h"\nint use(Base b) { return b.x; }\n'


def test_projects_paths_and_licences_come_from_columns(run):
    rows, manifest = run(
        {
            "a.jsonl": lines(
                {"repo_name": "zoo", "path": "src/use.cc", "content": USE, "license": "MIT"},
                {"repo_name": "other", "path": "b.cc", "content": "int b;\n", "commit": "c0ffee"},
                {"repo_name": "zoo", "path": "README.md", "content": "# Zoo\n"},
            ),
            "b.jsonl": lines(
                {"repo_name": "zoo", "path": "src/base.h", "content": "struct Base { int x; };\n"}
            ),
        }
    )
    assert [(row["project"], row["paths"]) for row in rows] == [
        ("other", ["b.cc"]),
        ("zoo", ["src/base.h", "src/use.cc"]),
    ]
    assert [row["license"] for row in rows] == ["NOASSERTION", "MIT AND NOASSERTION"]
    assert [row["commit"] for row in rows] == ["c0ffee", None]
    assert {row["mode"] for row in rows} == {"cross-file"}
    assert manifest["files"]["not_c_or_cpp"] == 1


def test_slices_over_the_files_of_two_inputs(run):
    base = {"project": "zoo", "path": "base.h", "text": "struct Base { int x; };\n"}
    inputs = {
        "a.jsonl": lines({"project": "zoo", "path": "use.cc", "text": USE}),
        "b.jsonl": lines(base),
    }
    rows, _ = run(inputs, "--compilable")
    [text] = [row["text"] for row in rows if row["roots"][0]["path"] == "use.cc"]
    assert "struct Base" in text
    assert "#include" not in text


def test_what_is_no_file_is_counted_by_reason(run):
    whole = lines({"text": "int a;\n"})
    cut = json.dumps({"text": "int b;\n"})[:-9]
    rows, manifest = run(
        {
            "a.jsonl": whole
            + '["a list"]\n{"path": "a.cc"}\n\n{"text": 5}\n[[[[[\n'
            + lines({"text": "x\0y"}, {"text": "\ud800"}, {"text": " \n"}, {"text": "y" * 2000})
            + cut
        },
        "--max-file-bytes",
        "1000",
    )
    assert [row["text"] for row in rows] == ["// 000000000000.cc\nint a;\n"]
    assert manifest["files"]["dropped"] == {
        "bad_json": 2,  # the line cut in half, and the brackets
        "empty": 1,
        "no_text": 2,
        "not_an_object": 1,
        "not_utf8": 1,
        "nul_bytes": 1,
        "too_large": 1,
    }


def test_a_line_far_longer_than_a_file_may_be_is_passed_over(run):
    long = '{"text": "' + "x" * (3 << 20) + '"}\n'
    inputs = {"a.jsonl": long + lines({"text": "int a;\n"}) + long}
    rows, manifest = run(inputs, "--max-file-bytes", "1000")
    assert len(rows) == 1
    assert manifest["files"]["dropped"] == {"too_large": 2}


def test_ranges_share_lines_without_loss(run, monkeypatch):
    monkeypatch.setattr("nanochat_chunker.records.RANGE_BYTES", 97)
    records = [{"path": f"{i}.cc", "text": f"int v{i};\n" * (i % 9 + 1)} for i in range(200)]
    rows, _ = run({"a.jsonl": lines(*records)}, "--max-tokens", "64")
    assert sorted(path for row in rows for path in row["paths"]) == sorted(
        record["path"] for record in records
    )


def test_paths_cannot_leave_their_project_and_stand_once(run):
    rows, manifest = run(
        {
            "a.jsonl": lines(
                {"path": "/../../etc/a.cc", "text": "int a;\n"},
                {"path": "etc/a.cc", "text": "int b;\n"},
            )
        }
    )
    assert [row["paths"] for row in rows] == [["etc/a.cc"]]
    assert manifest["files"]["dropped"] == {"same_path": 1}


def test_the_order_of_inputs_does_not_matter(run, tmp_path):
    content = {name: lines({"path": f"{name}.cc", "text": f"int {name};\n"}) for name in "abc"}
    first, _ = run({f"{n}.jsonl": content[n] for n in "abc"}, "--max-tokens", "64")
    second, _ = run({f"{n}.jsonl": content[n] for n in "cab"}, "--max-tokens", "64")
    assert first == second
    assert {row["project"] for row in first} == {"a", "b", "c"}


def test_compressed_inputs_and_addresses(run, tmp_path):
    (tmp_path / "b.jsonl").write_text(lines({"text": "int b;\n"}))
    rows, _ = run({"a.jsonl.gz": gzip.compress(lines({"text": "int a;\n"}).encode())})
    assert len(rows) == 1
    out = tmp_path / "other.jsonl"
    address = f"file://{tmp_path / 'b.jsonl'}"
    assert main(["--cross-file", "--inputs", address, "--output", str(out)]) == 0
    assert "int b;" in out.read_text()


def test_a_missing_input_is_said(tmp_path, capsys):
    flags = [
        "--cross-file",
        "--inputs",
        str(tmp_path / "no.jsonl"),
        "--output",
        str(tmp_path / "o"),
    ]
    assert main(flags) == 2
    assert "no file" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
