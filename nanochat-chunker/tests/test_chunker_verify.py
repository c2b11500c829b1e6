import json
import shutil

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat_chunker.cli import main
from nanochat_chunker.verify.compiler import find_compiler
from nanochat_chunker.verify.reasons import reason

needs_compiler = pytest.mark.skipif(
    not (shutil.which("clang++") or shutil.which("g++")), reason="neither clang++ nor g++ is there"
)
GOOD, BAD = "#include <vector>\nstd::vector<int> v;\n", "int f() { return nowhere; }\n"
NEEDS = '#include "mine.h"\nMine m;\n'


@pytest.fixture
def jsonl(tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("".join(json.dumps({"text": text}) + "\n" for text in (GOOD, BAD, NEEDS)))
    return out


@pytest.fixture
def shards(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name, texts in {
        "shard_00000": [GOOD, BAD],
        "val_shard": ["int c(int class) { return 1; }"],
    }.items():
        roots = [[{"path": "a.c" if "class" in text else "a.cc", "line": 1}] for text in texts]
        table = pa.table(
            {
                "text": texts,
                "project": ["p"] * len(texts),
                "roots": roots,
                "compiles": pa.array([None] * len(texts), pa.bool_()),
                "last": list(range(len(texts))),
            }
        )
        pq.write_table(table, out / f"{name}.parquet")
    return out


@needs_compiler
def test_rates_alone_and_with_includes(jsonl, tmp_path, capsys):
    (tmp_path / "inc").mkdir()
    (tmp_path / "inc" / "mine.h").write_text("struct Mine {};\n")
    assert main(["verify", str(jsonl), "--include", str(tmp_path / "inc"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["documents"], report["alone"], report["with_includes"]) == (3, 1, 2)
    assert report["reasons"]["header not found: mine.h"] == 1
    assert sum(report["reasons"].values()) == 2
    assert sum(report["reasons_with_includes"].values()) == 1


@needs_compiler
def test_annotates_each_document_in_its_place(shards, jsonl, capsys):
    assert main(["verify", str(shards), "--annotate", "--workers", "2"]) == 0
    assert "alone: 2 of 3" in capsys.readouterr().out
    first, second = (pq.read_table(path) for path in sorted(shards.glob("*.parquet")))
    assert first.column_names == ["text", "project", "roots", "compiles", "last"]
    assert first["compiles"].to_pylist() == [True, False]
    assert second["compiles"].to_pylist() == [True]  # C, by its root
    assert main(["verify", str(jsonl), "--annotate", "--sample", "2", "--seed", "3"]) == 0
    rows = [json.loads(line) for line in jsonl.read_text().splitlines()]
    assert sorted(str(row["compiles"]) for row in rows)[1] in ("None", "False")
    assert sum(row["compiles"] is None for row in rows) == 1


@needs_compiler
def test_an_output_at_an_address(shards, jsonl, tmp_path, capsys):
    memory = fsspec.filesystem("memory")
    memory.put(str(shards), "/verified/out", recursive=True)
    memory.put_file(str(jsonl), "/verified/out.jsonl")
    assert main(["verify", "memory://verified/out", "--annotate"]) == 0
    assert "alone: 2 of 3" in capsys.readouterr().out
    with memory.open("/verified/out/shard_00000.parquet", "rb") as file:
        assert pq.read_table(file)["compiles"].to_pylist() == [True, False]
    assert main(["verify", "memory://verified/out.jsonl", "--annotate"]) == 0
    assert "by project" not in capsys.readouterr().out  # lines do not say
    rows = [json.loads(line) for line in memory.cat_file("/verified/out.jsonl").splitlines()]
    assert [row["compiles"] for row in rows] == [True, False, False]
    assert main(["verify", f"file://{shards}", "--sample", "1"]) == 0
    assert "1 of 3 documents" in capsys.readouterr().out
    assert main(["verify", "memory://verified/nothing"]) == 2
    assert "there is no memory://verified/nothing" in capsys.readouterr().err


@needs_compiler
def test_a_document_that_takes_for_ever_is_ended():
    bomb = "template <int N> struct F { enum { v = F<N - 1>::v + F<N - 2>::v * N }; };\n"
    bomb += "constexpr long f(long n) { long s = 0; for (;;) s += n; return s; }\n"
    bomb += "static_assert(f(1) == 0);\n" * 1
    outcome = find_compiler(timeout_s=2).compile(bomb)
    assert not outcome.compiles
    assert outcome.diagnostics


@pytest.mark.parametrize(
    ("make", "flags", "said"),
    [
        (None, [], "there is no"),
        ("", [], "no documents in"),
        ('{"text": "int a;"}\n{"tex', [], "line 2"),
        ('{"text": "int a;"}\n', ["--include", "nowhere"], "nowhere is no folder"),
        ('{"text": "int a;"}\n', ["--sample", "0"], "--sample is 0"),
        ('{"text": "int a;"}\n', ["--compiler", "no-such-compiler"], "no-such-compiler"),
    ],
)
def test_wrong_use_is_one_message(make, flags, said, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    if make is not None:
        out.write_text(make)
    assert main(["verify", str(out), *flags]) == 2
    assert said in capsys.readouterr().err


def test_reasons_are_general():
    assert reason(("<stdin>:3:1: error: use of undeclared identifier 'foo'",)) == (
        "use of undeclared identifier '...'"
    )
    assert reason(("a.cc:1:10: fatal error: x/y.h: No such file or directory",)) == (
        "header not found: x/y.h"
    )
    assert reason(("a.cc:1:10: fatal error: 'x.h' file not found",)) == "header not found: x.h"
    curly = (
        "a.cc:1:2: error: \u2018f\u2019 was not declared in this scope; did you mean \u2018g\u2019?"
    )
    assert reason((curly,)) == "'...' was not declared in this scope"
