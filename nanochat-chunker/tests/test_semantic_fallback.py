"""What happens where libclang is of no use: named, counted, and never without a document."""

import json
from pathlib import Path

import pytest

from nanochat_chunker import pipeline
from nanochat_chunker.cli import main
from nanochat_chunker.includes import Include
from nanochat_chunker.semantic import bindings, headers, tasks
from nanochat_chunker.semantic.arguments import arguments_of, defaults_of, find_commands
from nanochat_chunker.semantic.checking import Checker
from nanochat_chunker.semantic.headers import BuiltinHeaders
from nanochat_chunker.semantic.units import units_of

installed = pytest.mark.skipif(
    bindings.library_path() is None, reason="libclang is not installed (the extra semantic)"
)
# Clang's own stack does not hold so many terms, whatever it is given of them.
TERMS = 60_000


@pytest.fixture
def forgotten():
    """Nothing is remembered of what was found, before or after."""
    cached = (bindings.load, bindings.version, headers.builtin_headers)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def command(folder, tmp_path, *flags):
    out = tmp_path / "out.jsonl"
    return main(["--project-dirs", str(folder), "--output", str(out), "--compilable", "--semantic",
                 "--overwrite", *flags])  # fmt: skip


def manifest_of(tmp_path):
    return json.loads((tmp_path / "out.manifest.json").read_text())


def texts_of(tmp_path):
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


def test_without_the_extra_it_says_what_to_install(make, tmp_path, capsys, monkeypatch, forgotten):
    monkeypatch.setattr(bindings, "library_path", lambda: None)
    assert command(make({"p/a.cc": "int a;\n"}), tmp_path) == 2
    said = capsys.readouterr().err
    assert "libclang, which is not installed" in said
    assert "pip install 'nanochat-chunker[semantic]'" in said
    assert not (tmp_path / "out.jsonl").exists()


@installed
def test_without_any_compiler_it_says_what_to_install(
    make, tmp_path, capsys, monkeypatch, forgotten
):
    monkeypatch.setattr(headers.shutil, "which", lambda name: None)
    monkeypatch.setattr(headers, "_of_clang_tidy", lambda major: [])
    assert command(make({"p/a.cc": "int a;\n"}), tmp_path) == 2
    assert "finds no clang or gcc" in capsys.readouterr().err


@installed
def test_the_headers_of_gcc_serve_where_there_is_no_clang(monkeypatch, forgotten):
    found = headers._of_gcc("gcc")
    if found is None:
        pytest.skip("gcc is not installed")
    assert (found.folder / "stddef.h").is_file()
    assert found.arguments() == ["-nobuiltininc", "-isystem", str(found.folder)]


@installed
def test_files_that_fall_back_are_counted_by_reason_and_have_documents(make, tmp_path, capsys):
    errors = "".join(f"int e{n} = nothing{n};\n" for n in range(40))
    folder = make({
        "p/good.cc": "int good() { return 1; }\n",
        "p/missing.cc": '#include "generated/nowhere.h"\nint missing() { return 2; }\n',
        "p/broken.cc": f"{errors}int broken() {{ return 3; }}\n",
    })  # fmt: skip
    assert command(folder, tmp_path, "--executor", "serial") == 0
    semantic = manifest_of(tmp_path)["semantic"]
    assert semantic["files"] == 1
    assert semantic["fallback"] == {"missing_header": 1, "too_many_errors": 1}
    assert "by names alone 2: missing_header 1, too_many_errors 1" in capsys.readouterr().out
    texts = texts_of(tmp_path)
    for word in ("int good()", "int missing()", "int broken()"):
        assert any(word in text for text in texts), word


@installed
def test_a_header_that_fails_where_it_is_included_first_is_read_again(make, tmp_path):
    folder = make({
        "p/a.cc": '#define LIST nothing\n#include "lib.h"\nint a() { return 0; }\n',
        "p/lib.h": "#pragma once\n#ifdef LIST\nint list = LIST;\n#endif\n"
        "struct Big { int x[9]; };\nvoid put(int);\nvoid put(const Big&);\n",
        "p/z.cc": '#include "lib.h"\nvoid user() { put(1); }\n',
    })  # fmt: skip
    assert command(folder, tmp_path, "--executor", "serial") == 0
    [text] = [text for text in texts_of(tmp_path) if "void user()" in text]
    assert "Big" not in text


@installed
def test_a_worker_that_libclang_takes_down_costs_one_file_its_facts(make, tmp_path, capsys):
    folder = make({
        "p/long.cc": "int sum(int x) { return x" + "+x" * TERMS + "; }\n",
        "p/a.cc": "int good() { return 1; }\n",
    })  # fmt: skip
    flags = ("--workers", "1", "--max-tokens", "65536")
    assert command(folder, tmp_path, *flags) == 0
    manifest = manifest_of(tmp_path)
    assert manifest["semantic"]["files"] == 1
    assert manifest["semantic"]["fallback"] == {"crashed": 1}
    assert manifest["files"]["kept"] == 2
    assert manifest["files"]["notes"]["documents_not_checked"] == 1
    assert "long.cc: libclang: crashed" in capsys.readouterr().err
    assert any("int sum(int x)" in text for text in texts_of(tmp_path))


@installed
def test_a_run_that_goes_on_reads_no_unit_twice(make, tmp_path, monkeypatch):
    folder = make({f"p/a{n}.cc": f"int f{n}() {{ return {n}; }}\n" for n in range(4)})
    flags = ("--executor", "serial", "--work-dir", str(tmp_path / "work"))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "make", killed)
        assert command(folder, tmp_path, *flags) != 0
    monkeypatch.setattr(tasks.ProjectReader, "read", killed)
    assert command(folder, tmp_path, *flags) == 0
    assert len(texts_of(tmp_path)) == 4


@installed
def test_a_checker_whose_process_dies_says_so_and_starts_another():
    checker = Checker()
    try:
        assert checker.complaints("int f() { return 1; }\n", c=False) == []
        [complaint] = checker.complaints("int a;\nint f() { return nothing; }\n", c=False)
        assert complaint.line == 2
        assert "nothing" in complaint.said
        assert checker.complaints("int class;\n", c=True) == []
        assert checker.complaints("int f(int x) { return x" + "+x" * TERMS + "; }", c=False) is None
        assert checker.complaints("int g();\n", c=False) == []
    finally:
        checker.close()


def test_units_reach_every_file_once():
    def quoted(*names):
        return [Include(name, False) for name in names]

    includes = {
        "src/a.cc": quoted("lib/a.h"),
        "src/a_test.cc": quoted("lib/a.h", "lib/test.h"),
        "include/lib/a.h": quoted("lib/base.h"),
        "include/lib/base.h": quoted("lib/a.h"),
        "include/lib/test.h": quoted("src/parts.cc"),
        "src/parts.cc": [],
        "include/lib/alone.h": [],
    }
    units = units_of(includes, "lib")
    read = [path for unit in units for path in unit.wanted]
    assert sorted(read) == sorted(includes)
    by_path = {unit.path: unit.wanted for unit in units}
    assert by_path["src/a.cc"] == ("src/a.cc", "include/lib/a.h", "include/lib/base.h")
    assert by_path["src/a_test.cc"] == ("src/a_test.cc", "include/lib/test.h", "src/parts.cc")
    assert by_path["include/lib/alone.h"] == ("include/lib/alone.h",)


def test_defaults_come_from_how_a_project_includes_its_own():
    includes = {
        "inc/lib/a.h": [],
        "inc/lib/b.h": [Include("lib/a.h", False)],
        "compat/time.h": [],
        "src/a.cc": [Include("lib/a.h", False), Include("time.h", False), Include("vector", True)],
    }
    found = defaults_of(includes, ["OS_LINUX", "HAVE_UNISTD_H", "OURS", "X"], frozenset(["OURS"]),
                        "lib")  # fmt: skip
    assert found.folders == ("inc",)
    assert found.quoted == ("compat",)  # <time.h> stays the system's
    assert found.defines == ("HAVE_UNISTD_H=1", "OS_LINUX=1")


def test_of_a_command_stays_what_says_what_is_compiled(tmp_path):
    words = [
        "g++", "-std=gnu++17", "-DA=1", "-D", "B", "-Iinc", "-isystem", "/opt/x", "-include",
        "pre.h", "-O2", "-Werror", "-fsanitize=address", "-fno-rtti", "-o", "a.o", "-c", "a.cc",
    ]  # fmt: skip
    entries = [
        {"directory": str(tmp_path), "file": "a.cc", "arguments": words},
        {"directory": str(tmp_path), "file": "elsewhere.cc", "arguments": ["cc"]},
        {"file": 3},
        "nonsense",
    ]
    (tmp_path / "compile_commands.json").write_text(json.dumps(entries))
    commands = find_commands(tmp_path, frozenset(["a.cc", "a.h"]))
    assert commands.source == "compile_commands.json"
    kept = ("-std=gnu++17", "-D", "A=1", "-D", "B", "-I", str(tmp_path / "inc"), "-isystem",
            "/opt/x", "-include", "pre.h", "-fno-rtti")  # fmt: skip
    assert commands.by_path == {"a.cc": kept}
    own = BuiltinHeaders(Path("/clang"), "clang 18")
    defaults = defaults_of({"a.cc": [], "a.h": []}, [], frozenset(), "p")
    beside = {"a.h": "a.cc"}.get
    for path in ("a.cc", "a.h"):
        assert arguments_of(path, tmp_path, commands, defaults, own, beside)[-len(kept) :] == list(
            kept
        )
