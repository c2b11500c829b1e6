"""The order of functions within a document: callees first, where a compiler lets them."""

import shutil
import subprocess

import pytest

from nanochat_chunker.slicing import SliceOptions, index_file, slice_project

COMPILER = next((c for c in ("clang++", "g++") if shutil.which(c)), None)
pytestmark = pytest.mark.skipif(COMPILER is None, reason="neither clang++ nor g++ is there")


def document(text, path="a.cc"):
    """The document of a file, which compiles."""
    options = SliceOptions(1 << 20, project="p")
    [made] = slice_project([index_file(path, text)], lambda _: text, options, len)
    language = ["-x", "c"] if path.endswith(".c") else ["-x", "c++", "-std=c++20"]
    command = [COMPILER, *language, "-fsyntax-only", "-w", "-"]
    done = subprocess.run(command, input=made.text, capture_output=True, text=True)
    assert done.stderr == "", made.text
    return made.text


def in_order(text, *parts):
    places = [text.index(part) for part in parts]
    assert places == sorted(places), text


def test_a_callee_stands_before_its_caller_with_its_comment():
    text = document(
        "int leaf(int);\nint middle(int);\n"
        "// Begins it all.\nint top(int x) { return middle(x) + leaf(x); }\n"
        "// In between.\nint middle(int x) { return leaf(x) + 1; }\n"
        "int other() { return 7; }\n"
        "// Ends it all.\nint leaf(int x) { return x; }\n"
    )
    in_order(
        text, "int leaf(int);", "int other() {", "// Ends it all.\nint leaf(int x) {",
        "// In between.\nint middle(int x) {", "// Begins it all.\nint top(int x) {",
    )  # fmt: skip


def test_members_too():
    text = document(
        "namespace n {\nclass A { public: int run(); private: int step(); int x = 1; };\n"
        "int A::run() { return step() + 1; }\nint use(A& a) { return a.run(); }\n"
        "int A::step() { return x; }\n}\n"
    )
    in_order(text, "int A::step() {", "int A::run() {", "int use(A& a) {")
    assert text.count("namespace n {") == 1


def test_functions_that_call_each_other_keep_their_order():
    text = document(
        "int last(int);\nint odd(int);\n"
        "int even(int n) { return n ? odd(n - 1) : last(1); }\n"
        "int odd(int n) { return n ? even(n - 1) : 0; }\n"
        "int last(int n) { return n; }\n"
    )
    in_order(text, "int last(int n) {", "int even(int n) {", "int odd(int n) {")


STAYS = {
    "an initialiser needs it, and nothing declares it": (
        "int leaf(int);\nint top() { return leaf(1); }\nstatic int first = top();\n"
        "int leaf(int x) { return x; }\n",
        ["int top() {", "static int first", "int leaf(int x) {"],
    ),
    "a class between has a member that calls it": (
        "int leaf(int);\nint top() { return leaf(1); }\n"
        "struct S { int x = top(); int get() { return top(); } };\n"
        "int leaf(int x) { return S().x + x; }\n",
        ["int top() {", "struct S", "int leaf(int x) {"],
    ),
    "its default argument is in its definition": (
        "int leaf(int);\nint top(int x);\nint top(int x = 2) { return leaf(x); }\n"
        "int leaf(int x) { return x ? top() : 1; }\nint more = top();\n",
        ["int top(int x = 2) {", "int leaf(int x) {", "int more"],
    ),
    "a macro in it means something else further down": (
        "#define N 1\nint leaf(int);\nint top() { return leaf(N); }\n#undef N\n#define N bad\n"
        "int leaf(int x) { int bad = x; return N; }\n",
        ["int top() {", "#undef N", "int leaf(int x) {"],
    ),
    "a name in it means something else further down": (
        "int size();\nint leaf(int);\nint top() { return leaf(size()); }\n"
        "namespace deep { struct size {}; }\nusing deep::size;\n"
        "int leaf(int x) { return x; }\n",
        ["int top() {", "using deep::size;", "int leaf(int x) {"],
    ),
    "a using-directive would open more names": (
        "namespace a { int size(); }\nusing namespace a;\nint leaf(int);\n"
        "int top() { return leaf(size()); }\nnamespace b { int size(); }\nusing namespace b;\n"
        "int leaf(int x) { return x; }\n",
        ["int top() {", "using namespace b;", "int leaf(int x) {"],
    ),
    "its type is told by its body": (
        "int leaf(int);\nauto top() { return leaf(1); }\nconstexpr int two() { return 2; }\n"
        "int leaf(int x) { return x + (x ? top() : two()); }\n",
        ["auto top() {", "constexpr int two() {", "int leaf(int x) {"],
    ),
    "it is instantiated": (
        "int leaf(int);\ntemplate <class T> T top(T x) { return leaf(x); }\n"
        "template int top<int>(int);\nint leaf(int x) { return x; }\n",
        ["T top(T x) {", "template int top<int>", "int leaf(int x) {"],
    ),
    "a template that comes next is a special case of it": (
        "int leaf(int);\ntemplate <class T> T top(T x) { return leaf(x); }\n"
        "template <> long top<long>(long x) { return x; }\nint leaf(int x) { return x; }\n",
        ["T top(T x) {", "template <> long top", "int leaf(int x) {"],
    ),
    "only another of its name is declared": (
        "int take(int (*)(int));\nint leaf(int);\nint top(long);\n"
        "int top(int x) { return leaf(x); }\nint more = take(top);\n"
        "int leaf(int x) { return x; }\n",
        ["int top(int x) {", "int more", "int leaf(int x) {"],
    ),
    "others of its name need it": (
        "int leaf(int);\ntemplate <class T> T* top(T* x) { leaf(1); return x; }\n"
        "inline char* top(char* x) { leaf(2); return top<char>(x); }\n"
        "char* use(char* x) { return top(x); }\nint now = *use(nullptr);\n"
        "int leaf(int x) { return x; }\n",
        ["T* top(T* x) {", "char* top(char* x) {", "char* use(char* x) {", "int leaf(int x) {"],
    ),
    "it is an operator that nothing declares": (
        "struct A {};\nint leaf(int);\nint operator+(A, A) { return leaf(1); }\n"
        "int use(A a) { return a + a; }\nint leaf(int x) { return x; }\n",
        ["int operator+(A, A) {", "int use(A a) {", "int leaf(int x) {"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("why", STAYS)
def test_a_caller_stays_where(why):
    text, order = STAYS[why]
    in_order(document(text), *order)


def test_c_too():
    text = document(
        "static int leaf(int);\nint top(void) { return leaf(1); }\n"
        "static int leaf(int x) { return x; }\n",
        "a.c",
    )
    in_order(text, "static int leaf(int);", "static int leaf(int x) {", "int top(void) {")


def test_long_chains_of_calls_are_no_matter():
    count = 5000
    text = "void g();\n" + "".join(f"void f{i}() {{ f{i + 1}(); g(); }}\n" for i in range(count))
    text += f"void f{count}() {{ f0(); g(); }}\nvoid g() {{}}\n"
    options = SliceOptions(1 << 24, project="p")
    [made] = slice_project([index_file("a.cc", text)], lambda _: text, options, len)
    assert made.text.count("{") == count + 2
    in_order(made.text, "void g() {}", "void f0() {")
