"""What calls of macros declare and name: as their own expansion says, whatever was asked before."""

import pytest

from nanochat_chunker.slicing import SliceOptions, index_file, slice_project
from nanochat_chunker.slicing.call_names import read_call
from nanochat_chunker.slicing.macro_words import is_macro_word
from nanochat_chunker.slicing.macros import parse_define
from nanochat_chunker.slicing.names import names_in
from nanochat_chunker.slicing.pastes import find_pastes
from nanochat_chunker.slicing.stand_ins import Answers

DEFINES = """
FLAG(type, name, value, help) namespace flags { extern type FLAGS_##name; const char* help_##name = help; }
TEST(suite, name) class suite##_##name##_Test : public testing::Test { void Body(); static int info_; };
DATA(declaration, value) declaration = value;
MEMBERS(x) struct Holder { x; int get() { return use(x::first, obj.x); } };
COUNT_OF_1(a) one_##a
COUNT_OF_TWO(a) two_##a
COUNTED(how, a) struct COUNT_OF_##how(a) {};
APPLY(m, x) m(x)
STRUCT(x) struct x {};
EACH(first, ...) struct first { void all() { call(__VA_ARGS__); } };
TEXT(x) const char* text_of = #x;
OUTER(a, b) TEST(a, b) STRUCT(b)
RENAMED Renamed
IN(space, name) namespace space { int name; }
"""  # noqa: E501
CALLS = """
FLAG(int, level, 3, "how much");
FLAG(std::vector<int>, many, {}, "has (brackets");
FLAG(std::map<int, int>, map, 1);
FLAG(const char*, name, "a" "b", nullptr);
TEST(Suite, First)
TEST(RENAMED, Second)
TEST(Suite, 3rd)
DATA(int width, 1 + 2)
DATA(Type* pointer, &other->field)
DATA(extern, value)
MEMBERS(Other)
MEMBERS(int field)
MEMBERS(a::b)
COUNTED(1, Thing)
COUNTED(TWO, Thing)
COUNTED(3, Thing)
APPLY(STRUCT, Made)
APPLY(STRUCT, RENAMED)
APPLY(unknown, RENAMED)
EACH(Head)
EACH(Head, )
EACH(Head, one, two(three), "four")
TEXT(some words)
TEXT()
OUTER(One, Two)
OUTER(One, operator)
IN(lib, size)
IN(lib::deep, size)
IN(lib, double)
STRUCT (Spaced) ;
"""
MACROS = {macro.name: macro for line in DEFINES.split("\n") if (macro := parse_define(line))}
LINES = [line for line in CALLS.split("\n") if line]


def exactly(code):
    said = read_call(code, MACROS.get)
    return said and (list(said.declared), said.uses | set(names_in(code)))


def test_calls_say_what_their_own_expansion_does():
    answers = Answers(read_call, MACROS.__contains__, is_macro_word)
    wrong = []
    for code in [*LINES, *reversed(LINES)]:
        said, filling = answers.ask(code, MACROS.get)
        if said is not None and filling:
            said = said.filled(filling) or answers.exactly(code, MACROS.get)
        found = said and (list(said.declared), said.uses | set(names_in(code)))
        if found != exactly(code):
            wrong.append((code, found, exactly(code)))
    assert not wrong


def test_an_answer_goes_for_calls_that_differ_in_their_arguments_until_a_macro_does():
    asked = []

    def read(code, lookup):
        asked.append(code)
        return read_call(code, lookup)

    answers = Answers(read, {"TEST", "STRUCT", "OUTER", "One"}.__contains__)
    for name in ("A", "B", "C"):
        answers.ask(f"OUTER(Suite, {name})", MACROS.get)
    assert len(asked) == 1
    other = {**MACROS, "STRUCT": parse_define("STRUCT(x) union other_##x {};")}
    said, filling = answers.ask("OUTER(Suite, A)", other.get)
    assert len(asked) == 2
    assert said.filled(filling).declared == ("Suite_A_Test", "other_A")
    said, filling = answers.ask("OUTER(Suite, A)", MACROS.get)
    assert len(asked) == 2
    assert said.filled(filling).declared == ("Suite_A_Test", "A")


@pytest.mark.parametrize(
    ("name", "calls", "made"),
    [
        ("TEST", ["TEST(A, B)", "TEST( C ,D)"], {"A_B_Test", "C_D_Test"}),
        ("OUTER", ["OUTER(A, B)"], {"A_B_Test"}),
        ("STRUCT", ["STRUCT(A)"], set()),
    ],
)
def test_names_made_with_pastes(name, calls, made):
    pastes = find_pastes({"TEST", "FLAG", "OUTER"}, name, MACROS.get)
    assert {word for word in pastes.made_by(calls) if word.endswith("_Test")} == made


def document(files, root):
    indexes = [index_file(path, text) for path, text in files.items()]
    made = slice_project(indexes, files.__getitem__, SliceOptions(1 << 20, project="p"), len)
    [text] = [piece.text for piece in made if piece.root.path == root]
    return text


def test_a_call_declares_by_the_macro_that_its_argument_makes():
    files = {
        "m.h": "#define MAKE_KIND(x) struct Kind##x { int size; };\n"
        "#define MAKE_LIST(x) struct List##x { KindOf##x head; };\n"
        "#define MAKE(what, x) MAKE_##what(x)\n",
        "a.h": '#include "m.h"\nstruct KindOfTwo {};\nMAKE(KIND, One)\nMAKE(LIST, Two)\n',
        "b.cc": '#include "a.h"\nint f(ListTwo* list) { return sizeof(list->head); }\n',
        "c.cc": '#include "a.h"\nint g(KindOne k) { return k.size; }\n',
    }
    text = document(files, "b.cc")
    assert "MAKE(LIST, Two)" in text
    assert "struct KindOfTwo {};" in text
    assert "MAKE(KIND, One)" not in text
    assert "MAKE(KIND, One)" in document(files, "c.cc")


def test_files_that_define_one_macro_each_in_its_way():
    files = {
        f"{word}.cc": f"#define DECLARE(x) struct {word}##x {{}};\nDECLARE(One)\n"
        f"int f({word}One*) {{ return 1; }}\n"
        for word in ("First", "Second")
    }
    for path in files:
        assert "DECLARE(One)\n" in document(files, path)
