"""Slices by libclang: which name refers to what, by overload, template, scope and configuration."""

import json
from pathlib import Path

import pytest

from nanochat_chunker.cli import main
from nanochat_chunker.semantic.bindings import library_path
from nanochat_chunker.verify.compiler import find_compiler

pytestmark = pytest.mark.skipif(
    library_path() is None, reason="libclang is not installed (the extra semantic)"
)


@pytest.fixture
def document(make, chunk):
    """`document({"a.h": ..., "a.cc": ...}, "marker")`: the document that holds the marker."""

    def run(tree, marker, *flags):
        folder = make({f"p/{path}": text for path, text in tree.items()})
        texts, manifest = chunk(folder, "--compilable", "--semantic", *flags)
        assert manifest["semantic"]["fallback"] == {}
        [text] = [text for text in texts if marker in text]
        outcome = find_compiler().compile(text)
        assert outcome.compiles, (outcome.diagnostics, text)
        return text

    return run


def test_an_overload_comes_without_the_types_of_the_others(document):
    header = "struct Big { int x[9]; };\nvoid put(int);\nvoid put(const Big&);\n"
    text = document({"a.h": header, "a.cc": '#include "a.h"\nvoid user() { put(1); }\n'}, "user")
    assert "void put(int)" in text
    assert "Big" not in text


def test_the_class_of_what_auto_holds_comes_along(document):
    tree = {
        "row.h": "struct Row { int width() const { return 2; } };\n",
        "table.h": '#include "row.h"\nRow first();\nstruct Other { int width(); };\n',
        "a.cc": '#include "table.h"\nint user() { auto row = first(); return row.width(); }\n',
    }
    text = document(tree, "user")
    assert "struct Row {" in text
    assert "Other" not in text


def test_macros_bring_what_they_expand_to_where_they_are_expanded(document):
    header = (
        "inline int helper() { return 1; }\ninline int unused() { return 2; }\n"
        "#define INNER helper()\n#define CALL(x) (INNER + (x))\n#define NEVER unused()\n"
    )
    text = document({"a.h": header, "a.cc": '#include "a.h"\nint user() { return CALL(3); }\n'},
                    "user")  # fmt: skip
    assert "int helper()" in text
    assert "#define INNER" in text
    assert "unused" not in text


def test_macros_that_macros_paste_together_come_along(document):
    header = (
        "#define IF_0(x)\n#define IF_1(x) x\n#define CHOOSE(n, x) IF_##n(x)\n"
        "#define FIELD(n) CHOOSE(n, int field;)\n"
    )
    text = document({"a.h": header, "a.cc": '#include "a.h"\nstruct Row { FIELD(1) };\n'}, "Row")
    assert "#define IF_1" in text


def test_templates_come_with_their_specialisations(document):
    header = (
        "template <class T> struct Size { static constexpr int value = 0; };\n"
        "template <> struct Size<char> { static constexpr int value = 1; };\n"
        "template <class T> int size_of(T) { return Size<T>::value; }\n"
    )
    source = '#include "a.h"\nint user() { static_assert(Size<char>::value == 1); return 0; }\n'
    assert "struct Size<char>" in document({"a.h": header, "a.cc": source}, "user")


def test_a_name_found_when_a_template_is_instantiated_comes_along(document):
    tree = {
        "show.h": "template <class T> int show_all(const T& t) { return show(t); }\n",
        "point.h": "struct Point { int x; };\nint show(const Point& p);\n",
        "a.cc": '#include "point.h"\n#include "show.h"\n'
        "int user() { return show_all(Point{1}); }\n",
    }
    assert "int show(const Point& p)" in document(tree, "user")


def test_unnamed_namespaces_of_two_files_do_not_mix(document):
    def source(n):
        return (
            f"namespace {{ int helper() {{ return {n}; }} }}\n"
            f"int user{n}() {{ return helper(); }}\n"
        )

    text = document({"a.cc": source(1), "b.cc": source(2)}, "user2")
    assert "return 2" in text
    assert "return 1" not in text


def test_using_directives_aliases_and_declarations(document):
    header = (
        "namespace deep { namespace inner { struct A {}; struct B {}; int go(A); int stay(); } }\n"
        "namespace short_name = deep::inner;\n"
    )
    source = (
        '#include "a.h"\nusing short_name::A;\nusing namespace deep::inner;\n'
        "int user() { short_name::B b; (void)b; return go(A()) + stay(); }\n"
    )
    text = document({"a.h": header, "a.cc": source}, "user")
    assert "using short_name::A;" in text
    assert "namespace short_name" in text


def test_friends_are_declared_where_they_belong(document):
    header = (
        "namespace n { class Box; namespace hidden { int peek(const Box&); }\n"
        "class Box { friend int hidden::peek(const Box&); int x = 1; }; }\n"
    )
    source = '#include "a.h"\nint user(const n::Box& box) { return sizeof(box); }\n'
    assert "int peek(const Box&)" in document({"a.h": header, "a.cc": source}, "user")


def test_members_out_of_line_bring_their_class_not_their_bodies(document):
    header = (
        "template <class T> class List { public: class Walk { public: void next(); };\n"
        "  int size() const; };\n"
        "template <class T> void List<T>::Walk::next() {}\n"
        "template <class T> int List<T>::size() const { return 0; }\n"
    )
    source = '#include "a.h"\nint user(const List<int>& list) { return list.size(); }\n'
    assert "class List" in document({"a.h": header, "a.cc": source}, "user")


def test_operators_and_conversions(document):
    header = (
        "struct Money { long cents; };\nMoney operator+(Money a, Money b);\n"
        "Money operator-(Money a, Money b);\nstruct Price { operator Money() const; };\n"
    )
    source = '#include "a.h"\nMoney user(Price a, Price b) { return Money(a) + Money(b); }\n'
    assert "Money operator+" in document({"a.h": header, "a.cc": source}, "user")


def test_clang_decides_conditions_that_the_engine_cannot(document):
    tree = {
        "config.h": "#define HAVE_FAST 1\n",
        "a.h": '#if __has_include("config.h")\ninline int fast() { return 1; }\n'
        "#else\ninline int slow() { return 2; }\n#endif\n",
        "a.cc": '#include "a.h"\nint user() { return fast(); }\n',
    }
    text = document(tree, "user")
    assert "int fast()" in text
    assert "int slow()" not in text


def test_places_hold_in_text_that_is_not_as_it_lies_on_disk(document):
    header = "// caf\u00e9 \u2014 na\u00efve \U0001f600\r\nint first();\r\nint second();\r\n"
    source = '// \u00fcber\r\n#include "a.h"\r\nint user() { return second(); }\r\n'
    text = document({"a.h": header, "a.cc": source}, "user")
    assert "int second();" in text
    assert "int first();" not in text


@pytest.mark.parametrize("folder", ["", "build/"])
def test_compile_commands_decide_how_a_file_is_compiled(document, make, tmp_path, folder):
    root = tmp_path / "projects" / "p"
    command = {
        "directory": str(root / "build"),
        "file": "../a.cc",
        "command": "c++ -DFAST=1 -I../generated -O2 -Wall -o a.o -c ../a.cc",
    }
    tree = {
        "generated/made.h": "inline int made() { return 3; }\n",
        "a.cc": "#ifdef FAST\n#include <made.h>\nint user() { return made(); }\n"
        "#else\nint user() { return 0; }\n#endif\n",
        f"{folder}compile_commands.json": json.dumps([command]),
    }
    text = document(tree, "user")
    assert "return made();" in text
    assert "inline int made()" in text
    manifest = json.loads((tmp_path / "out.manifest.json").read_text())
    named = f"{folder}compile_commands.json"
    assert manifest["semantic"]["compile_commands"] == {"p": named}


def test_a_broken_database_is_as_none(document):
    tree = {"a.cc": "int user() { return 0; }\n", "compile_commands.json": "[{'file': 1,"}
    assert "user" in document(tree, "user")


def test_other_workers_and_another_order_give_the_same_bytes(make, tmp_path):
    tree = {}
    for n in range(30):
        tree[f"p/h{n}.h"] = (
            f"#pragma once\nstruct S{n} {{ int x; }};\ninline int f{n}() {{ return {n}; }}\n"
        )
        other = (n * 7) % 30
        tree[f"p/s{n}.cc"] = (
            f'#include "h{n}.h"\n#include "h{other}.h"\nint g{n}() {{ return f{other}(); }}\n'
        )
    folder = make(tree)
    made = []
    for workers in ("1", "3"):
        out = tmp_path / f"out{workers}"
        flags = ["--output", str(out), "--compilable", "--semantic", "--workers", workers]
        assert main(["--project-dirs", str(folder), *flags]) == 0
        made.append({path.name: path.read_bytes() for path in sorted(Path(out).iterdir())})
    assert made[0] == made[1]
