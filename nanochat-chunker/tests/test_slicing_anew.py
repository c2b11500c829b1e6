"""A file that is parsed anew takes over items of its first index: the result must not show it."""

import importlib
import random
import sysconfig
from pathlib import Path

import pytest

from nanochat_chunker.slicing import index_file, project
from nanochat_chunker.slicing.index import build
from nanochat_chunker.slicing.macros import parse_define


@pytest.fixture
def random_code(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return importlib.import_module("random_code")


def anew(text, *defines):
    """(first index, the one made of it where these macros are known), compared with a full one."""
    found = {macro.name: macro for macro in map(parse_define, defines) if macro is not None}
    old = index_file("a.h", text)
    new = build("a.h", text, found.get, found.get, old=old)
    assert new == build("a.h", text, found.get, found.get)
    return old, new


def stayed(old, new):
    """The names of items that are the very same as before, or in another scope only."""
    before = {id(item.uses) for item in old.items if item.uses}
    return ["".join(item.names[:1]) for item in new.items if id(item.uses) in before]


def test_headers_of_the_torch_wheel(monkeypatch):
    root = Path(sysconfig.get_path("purelib")) / "torch/include"
    texts = {
        path.relative_to(root).as_posix(): path.read_text(errors="replace")
        for place in ("c10/core", "c10/util", "fmt", "ATen/cpu/vec/vec256")
        for path in sorted((root / place).rglob("*.h"))
    }
    if not texts:
        pytest.skip("no C++ of the torch wheel here to parse")
    items, kept = 0, 0

    def compared(path, text, known, shapes, left_out, old):
        nonlocal items, kept
        new = build(path, text, known, shapes, left_out, old)
        assert new == build(path, text, known, shapes, left_out), path
        items += len(new.items)
        kept += len(stayed(old, new)) if old is not None else 0
        return new

    monkeypatch.setattr(project, "build", compared)
    project.Configured([index_file(*file) for file in texts.items()], texts.__getitem__, "torch")
    assert kept > items / 2 > 500


def test_code_and_macros_made_at_random(random_code):
    kept = 0
    for seed in range(1500):
        rng = random.Random(seed)
        text = random_code.code(rng)
        shapes = random_code.macros(seed, rng.choice((0.1, 0.3, 0.7)), random_code.NAMES)
        known = random_code.macros(-seed, 0.5) if rng.random() < 0.5 else shapes
        old = index_file("a.h", text)
        new = build("a.h", text, known, shapes, old=old)
        assert new == build("a.h", text, known, shapes), (seed, text)
        kept += len(stayed(old, new))
    assert kept > 1500


def test_a_macro_that_opens_a_namespace_leaves_items_as_they_are():
    text = (
        "namespace a {\nA_NAMESPACE_BEGIN\n// Of f.\nint f(B b) { return g(b); }\n"
        "struct S { B b; };\nA_NAMESPACE_END\n}\n"
    )
    old, new = anew(text, "A_NAMESPACE_BEGIN inline namespace v1 {", "A_NAMESPACE_END }")
    assert [item.qualifier for item in new.items] == ["a", "a"]
    assert [len(item.scope) for item in new.items] == [2, 2]
    assert [len(item.scope) for item in old.items] == [1, 1]
    assert len(stayed(old, new)) >= 1


def test_an_unnamed_namespace_around_makes_items_local():
    text = "OPEN_IT_BEGIN\nint f(B b) { return 1; }\nOPEN_IT_END\nint g(B b) { return 1; }\n"
    old, new = anew(text, "OPEN_IT_BEGIN namespace {", "OPEN_IT_END }")
    assert ["local" in item.flags for item in old.items] == [False, False]
    assert ["local" in item.flags for item in new.items] == [True, False]
    assert stayed(old, new) == ["f", "g"]


def test_one_member_changes():
    text = (
        "class A : B {\n  void one(C c) { c.a(); }\n#if WITH_TWO\n  void two(C c);\n#endif\n"
        "  void three(C c);\n};\n"
    )
    old, new = anew(text, "WITH_TWO 1")
    [was], [now] = old.items, new.items
    assert [member.names[0] for member in was.members] == ["one", "three"]
    assert [member.names[0] for member in now.members] == ["one", "two", "three"]
    assert now.members[2] is was.members[1]


def test_a_macro_with_arguments_in_the_place_of_a_type():
    old, new = anew("MAC (twice)(C c);\nint f(C c);\n", "MAC(a) int f")
    assert stayed(old, new) == ["f"]


def test_a_macro_that_calls_one_that_was_unknown():
    text = "#define LIST(x) EACH(x)\nLIST(a)\nstruct S { T t; };\nint f(C c);\n"
    old, new = anew(text, "EACH(x) int x;")
    assert [item.kind for item in old.items] == ["define", "class", "prototype"]
    assert [item.kind for item in new.items] == ["define", "call", "class", "prototype"]
    assert stayed(old, new) == ["f"]


@pytest.mark.parametrize(
    "text",
    [
        "struct S { B b; } f(C c)\n#if M\n;\n#else\n{ }\n#endif\nint g(C c);\n",
        "int f(C c) try { }\n#if M\ncatch (...) { }\n#endif\nint g(C c);\n",
        "MAC(a)\n#if M\n;\n#else\nint a;\n#endif\nint g(C c);\n",
        "int a[] = {\n#include M\n};\nint g(C c);\n",
        "void f(C c) {\n#include <a.h>\n#define X c.d\n}\n#if M\nint g(C c);\n#endif\n",
        "class\n#if M\nA\n#else\nB\n#endif\n{ A(int a); B(int b); };\n",
    ],
    ids=["class", "handler", "call", "include", "within", "head"],
)
def test_what_follows_or_lies_within_is_looked_at(text):
    anew(text, 'M "1"')
    anew(text, "M 1")
