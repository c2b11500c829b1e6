"""Documents that libclang looks at: what it misses comes along, what is not there is left out."""

from pathlib import Path

import pytest

from nanochat_chunker.includes import find_includes
from nanochat_chunker.semantic import ProjectReader, SourceFile, checking, units_of
from nanochat_chunker.semantic.arguments import flags_of_headers
from nanochat_chunker.semantic.bindings import library_path
from nanochat_chunker.semantic.checking import Checker, complaints_of
from nanochat_chunker.semantic.graph import SemanticGraph
from nanochat_chunker.semantic.lean import without_comments
from nanochat_chunker.semantic.mending import CheckedLadder
from nanochat_chunker.slicing import index_file
from nanochat_chunker.verify.compiler import find_compiler

pytestmark = pytest.mark.skipif(
    library_path() is None, reason="libclang is not installed (the extra semantic)"
)


@pytest.fixture
def document(make, chunk):
    """`document(tree, "marker", "--flag")`: the document with the marker, which compiles, and the
    notes of the run."""

    def run(tree, marker, *flags):
        folder = make({f"p/{path}": text for path, text in tree.items()})
        texts, manifest = chunk(folder, "--compilable", "--semantic", *flags)
        [text] = [text for text in texts if marker in text]
        outcome = find_compiler().compile(text)
        assert outcome.compiles, (outcome.diagnostics, text)
        return text, manifest["files"].get("notes", {})

    return run


def large(name, *members):
    """A class with more to say of itself than there is room for."""
    story = "".join(f"  // Line {n} of what there is to say of this class.\n" for n in range(80))
    return f"class {name} {{\n public:\n{story}{''.join(members)}}};\n"


def test_what_is_too_large_begins_with_the_least_and_takes_what_clang_asks_for(document):
    tree = {
        "big.h": "class Big;\nclass Never;\n"
        + large("Base", "  int deep() const { return 1; }\n")
        + "class Big : public Base {\n public:\n  Big(int x);\n  int width() const;\n"
        "  Never* never();\n};\n" + large("Never"),
        "a.cc": '#include "big.h"\n// Kept: it is the root\'s.\n'
        "int user() { Big big(2); return big.width() + big.deep(); }\n",
    }
    text, notes = document(tree, "int user()", "--max-tokens", "400")
    assert "class Base" in text
    assert "Line 7" not in text
    assert "class Never {" not in text
    assert '#include "big.h"' not in text
    assert "Kept" in text
    assert notes["documents_mended"] >= 1


def test_what_could_not_be_looked_at_is_not_taken_for_good(make, chunk, monkeypatch):
    tree = {
        "p/big.h": "class Big;\n" + large("Big", *(f"  int field{n};\n" for n in range(200))),
        "p/a.cc": '#include "big.h"\nint user(Big& big) { return big.field7; }\n',
    }
    monkeypatch.setattr(Checker, "complaints", lambda *_, **__: None)
    texts, _ = chunk(make(tree), "--compilable", "--semantic", "--max-tokens", "100")
    [text] = [text for text in texts if "int user(" in text]
    assert '#include "big.h"' in text


def test_a_file_of_many_documents_has_its_share_of_looks(make, chunk, monkeypatch):
    monkeypatch.setattr(checking, "_LOOKS", 3)
    functions = "".join(
        f"int f{n}() {{\n" + "".join(f"  // {n}, {k}: what it does.\n" for k in range(12)) + "}\n"
        for n in range(8)
    )
    folder = make({"p/a.cc": functions, "p/b.cc": "int other() { return 1; }\n"})
    texts, manifest = chunk(folder, "--compilable", "--semantic", "--max-tokens", "100")
    assert all(any(f"int f{n}()" in text for text in texts) for n in range(8))
    assert manifest["files"]["notes"]["documents_not_checked"] == len(texts) - 4


def test_of_many_specialisations_comes_the_one_that_clang_speaks_of(document):
    kinds = "".join(
        f"struct K{n} {{ int k{n}[{n + 1}]; }};\n"
        f"template <> struct Traits<K{n}> {{ typedef K{n} type; enum {{ size = {n} }}; }};\n"
        for n in range(24)
    )
    header = (
        "template <class T> struct Traits;\n" + kinds + "template <class T> struct Strip;\n"
        "template <class T> struct Strip<T*> { typedef T type; };\n" + large("Filler")
    )
    source = '#include "a.h"\nint user(K7* x) { return Traits<Strip<K7*>::type>::size; }\n'
    text, _ = document({"a.h": header, "a.cc": source}, "int user(K7", "--max-tokens", "160")
    assert "Traits<K7>" in text
    assert "Strip<T*>" in text
    assert "K9" not in text


def test_lists_within_a_class_come_with_what_they_include(document):
    tree = {
        "methods.inc": "int first() const;\n#ifndef AGAIN\n#define AGAIN\n"
        '#include "methods.inc"\n#include "more.inc"\n#undef AGAIN\n#endif\n',
        "more.inc": "int second() const;\n",
        "a.h": 'class Row {\n public:\n  Row();\n#include "methods.inc"\n};\n',
        "a.cc": '#include "a.h"\nint user() { return Row().second(); }\n',
    }
    text, _ = document(tree, "int user()")
    assert "int second() const;" in text
    assert "#include" not in text


def test_where_facts_mislead_the_document_is_made_by_names(document, monkeypatch):
    monkeypatch.setattr(SemanticGraph, "needs", lambda *_: ())
    monkeypatch.setattr(CheckedLadder, "_wanted", lambda *_: iter(()))
    tree = {
        "a.h": "struct Point { int x; };\nint length(const Point& point);\n",
        "a.cc": '#include "a.h"\nstatic int twice(int x) { return 2 * x; }\n'
        "int user(const Point& point) { return twice(length(point)); }\n",
    }
    text, notes = document(tree, "int user(")
    assert "struct Point" in text
    assert notes["documents_by_names"] == 1
    assert "documents_with_errors" not in notes


def test_a_document_that_was_mended_counts_once(document):
    tree = {
        "late.h": "template <class T> struct Late { static int go(); };\n"
        "template <class T> int Late<T>::go() { return T::value; }\n",
        "a.cc": '#include "late.h"\n#include <cstdint>\n'
        "struct One { static const int value = 1; };\nint user() { return Late<One>::go(); }\n"
        "std::vector<int>* none;\n",
    }
    text, notes = document(tree, "int user()")
    assert "#include <vector>" in text
    assert notes["documents_mended"] == 1
    assert "documents_with_errors" not in notes


def test_a_header_that_is_not_there_is_left_out_where_nothing_needs_it(document):
    tree = {
        "a.cc": "#include <nowhere/to/be/found.h>\nint user() { return 1; }\n",
    }
    text, _ = document(tree, "int user()")
    assert "nowhere" not in text


def test_a_header_that_is_not_there_stays_where_something_needs_it(make, chunk):
    source = "#include <nowhere/found.h>\nint user(Elsewhere* e) { return e->x; }\n"
    texts, manifest = chunk(make({"p/a.cc": source}), "--compilable", "--semantic")
    assert any("#include <nowhere/found.h>" in text for text in texts)
    assert manifest["files"]["notes"]["documents_with_errors"] == 1


def test_a_quick_look_is_followed_by_a_whole_one():
    checker = Checker()
    try:
        text = "std::vector<int> all;\nint broken = nothing;\n"
        assert [c.line for c in checker.complaints(text, c=False, quick=True)] == [2]
        assert [c.line for c in checker.complaints(text, c=False)][:1] == [1]
        assert [c.line for c in checker.complaints("int a = b;", c=True, quick=True)] == [1]
    finally:
        checker.close()


def test_what_the_headers_of_another_clang_say_is_no_fault_of_the_document():
    text = "#include <immintrin.h>\nint user() { return 1; }\n"
    assert complaints_of(text, c=False) == []
    [complaint] = complaints_of(text + "int broken = nothing;\n", c=False)
    assert complaint.line == 3


def test_facts_are_the_same_with_headers_that_were_read_before(make):
    tree = {
        "base.h": "#pragma once\n#include <string>\n#include <vector>\n"
        "using Names = std::vector<std::string>;\nint count(const Names& names);\n"
        "#ifdef _GLIBCXX_MAP\nint with_map();\n#endif\n",
    }
    for n in range(14):
        tree[f"f{n}.cc"] = (
            f'#include "base.h"\nint f{n}() {{ return count({{"{n}"}}) + std::string().size(); }}\n'
        )
    root = make({f"p/{path}": text for path, text in tree.items()}) / "p"
    indexes = {path: index_file(path, text) for path, text in tree.items()}
    files = {path: SourceFile(index, True) for path, index in indexes.items()}
    shared = ProjectReader(root, "p", files, tree.__getitem__)
    assert shared._common == {"string", "vector"}
    alone = ProjectReader(root, "p", files, tree.__getitem__)
    alone._common = frozenset()
    includes = {path: find_includes(text) for path, text in tree.items()}
    for unit in units_of(includes, "p"):
        assert shared.read(unit) == alone.read(unit)


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["-x", "c++", "-I", "/a", "-DFAST=1", "-w"], ("-x", "c++", "-w")),
        (["-x", "c++", "-D", "A=1", "-iquote", "/b", "-fno-rtti"], ("-x", "c++", "-fno-rtti")),
        (["-D_GLIBCXX_DEBUG", "-w"], ("-D_GLIBCXX_DEBUG", "-w")),
        (["-D", "_GLIBCXX_DEBUG"], None),
        (["-include", "/a.h"], None),
        (["-isystem", "/a"], None),
        (["-nobuiltininc", "-isystem", "/gcc"], ("-nobuiltininc", "-isystem", "/gcc")),
    ],
)
def test_arguments_that_matter_to_headers_of_the_system(words, kept):
    assert flags_of_headers(words) == kept


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("int a;  // one\nint b;\n", "int a;\nint b;\n"),
        ("/* a\n b */\nint a /* x */ = 1;\n", "int a = 1;\n"),
        ('auto s = "// no";  // yes\n', 'auto s = "// no";\n'),
        ("char c = '\"';  // yes\nint n = 1'000;  // yes\n", "char c = '\"';\nint n = 1'000;\n"),
        ('auto r = R"x(// "no)x";\n', 'auto r = R"x(// "no)x";\n'),
        ("#define A 1 \\\n  + 2  // x \\\n y\nint a;\n", "#define A 1 \\\n  + 2\nint a;\n"),
    ],
)
def test_comments_go_and_literals_stay(text, bare):
    assert without_comments(text).replace(" \n", "\n").replace("a  =", "a =") == bare


def test_the_checker_is_a_process_of_its_own_without_files_left_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    checker = Checker()
    try:
        assert checker.complaints("int a = b;\n", c=False, quick=True)
        assert list(Path(tmp_path).iterdir()) == []
    finally:
        checker.close()
