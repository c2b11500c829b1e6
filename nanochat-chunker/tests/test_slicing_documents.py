import gc
import random
import shutil
import subprocess
from collections import Counter

import pytest

from nanochat_chunker.slicer import ProjectSlicer
from nanochat_chunker.slicing import SliceOptions, index_file, slice_project

COMPILER = next((c for c in ("clang++", "g++") if shutil.which(c)), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="neither clang++ nor g++ is there")


def slices(files, budget=65536, depth=3, order=None):
    indexes = [index_file(path, files[path]) for path in order or files]
    options = SliceOptions(budget, depth, project="p")
    return list(slice_project(indexes, files.__getitem__, options, lambda t: len(t.encode())))


def by_root(files, **options):
    """{path of the root: text} where each file gives one document."""
    made = slices(files, **options)
    texts = {piece.root.path: piece.text for piece in made}
    assert len(texts) == len(made)
    return texts


def errors(text, c=False, include=()):
    language = ["-x", "c"] if c else ["-x", "c++", "-std=c++20"]
    done = subprocess.run(
        [COMPILER, *language, *(f"-I{folder}" for folder in include), "-fsyntax-only", "-w", "-"],
        input=text, capture_output=True, text=True,
    )  # fmt: skip
    return done.stderr


GUARDED = """#ifndef LIB_SHAPE_H_
#define LIB_SHAPE_H_
#include <string>
#include "lib/base.h"
namespace lib {
class LIB_EXPORT Shape : public Base {
 public:
  explicit Shape(std::string name) : Base(1), name_(std::move(name)) {}
  int area() const override;
  static Shape unit();
 private:
  std::string name_;
};
struct Unused { int x; };
}  // namespace lib
#endif  // LIB_SHAPE_H_
"""
PROJECT = {
    "include/lib/base.h": """#pragma once
#define LIB_EXPORT __attribute__((visibility("default")))
namespace lib {
class Base { public: explicit Base(int n) : n_(n) {} virtual ~Base() = default;
  virtual int area() const = 0; protected: int n_; };
int helper(int);
}
""",
    "include/lib/shape.h": GUARDED,
    "src/shape.cc": """#include "lib/shape.h"
#include <utility>
namespace lib {
int Shape::area() const { return helper(n_) + local(n_); }
}
""".replace("namespace lib {\nint", "namespace lib {\nstatic int local(int x) { return x; }\nint"),
}


@needs_compiler
def test_what_is_needed_of_the_projects_headers_comes_along():
    text = by_root(PROJECT)["src/shape.cc"]
    assert errors(text) == ""
    assert '#include "lib/shape.h"' not in text
    assert "#include <string>" in text
    assert "int Shape::area() const { return helper(n_) + local(n_); }" in text
    assert "struct Unused" not in text
    assert text.index("#define LIB_EXPORT") < text.index("class Base") < text.index("class LIB_")


CASES = {
    "a macro that declares": {
        "a.h": "#define DECLARE(N) class N { public: int get() const; };\n"
        "namespace q { DECLARE(Foo)\nDECLARE(Bar) }\n",
        "a.cc": '#include "a.h"\nint q::Foo::get() const { Bar b; return b.get(); }\n',
    },
    "names that a macro pastes": {
        "a.h": "struct LogInfo { void put(int); };\n#define LOG_INFO LogInfo()\n"
        "#define LOG(level) LOG_##level\n",
        "a.cc": '#include "a.h"\nvoid f() { LOG(INFO).put(1); }\n',
    },
    "scope macros": {
        "m.h": "#define BEGIN_NS namespace deep { inline namespace v1 {\n#define END_NS }}\n",
        "a.h": '#include "m.h"\nBEGIN_NS\nstruct A { int x; };\nEND_NS\n',
        "a.cc": '#include "a.h"\nint f(deep::A a) { return a.x; }\n',
    },
    "a namespace named by a macro": {
        "a.h": "#define NS impl\nnamespace NS { struct A {}; }\n",
        "a.cc": '#include "a.h"\nvoid f(NS::A) {}\nvoid g(impl::A) {}\n',
    },
    "specialisations": {
        "a.h": "template <class T> struct Traits { static const bool big = false; };\n"
        "struct Big {};\ntemplate <> struct Traits<Big> { static const bool big = true; };\n",
        "a.cc": '#include "a.h"\nstatic_assert(Traits<Big>::big, "");\nint f() { return 0; }\n',
    },
    "a specialisation as the root": {
        "a.h": "namespace n { template <class T> struct Tag; }\n",
        "b.h": '#include "a.h"\nnamespace n { template <> struct Tag<int> { int x; }; }\n',
    },
    "using-directives and aliases of namespaces": {
        "a.h": "namespace one { namespace two { struct A { int x; }; int make(); } }\n",
        "a.cc": '#include "a.h"\nusing namespace one;\nnamespace t = one::two;\n'
        "int f() { t::A a; return a.x + two::make(); }\n",
    },
    "using-declarations, of operators too": {
        "a.h": "struct S {};\nvoid operator<<(S, int);\nnamespace n { struct R {}; }\n"
        "using n::R;\n",
        "a.cc": '#include "a.h"\nnamespace m { void f(R) { using ::operator<<; S() << 1; } }\n',
    },
    "a class declared before and defined after": {
        "a.h": "class Impl;\nclass A { public: int f(); Impl* impl; };\n",
        "a.cc": '#include "a.h"\nclass Impl { public: int x; };\nint A::f() { return impl->x; }\n',
    },
    "a nested class defined out of line": {
        "a.h": "class A { public: int f(); struct Impl; Impl* impl; };\n",
        "a.cc": '#include "a.h"\nstruct A::Impl { int x; };\nint A::f() { return impl->x; }\n',
    },
    "a list for a macro": {
        "list.def": "ITEM(red)\nITEM(green)\n",
        "a.h": '#define ITEM(x) x,\nenum Colour {\n#include "list.def"\n};\n',
        "a.cc": '#include "a.h"\nColour f() { return green; }\n',
    },
    "a header included within a namespace": {
        "part.inc": "inline int part() { return 1; }\n",
        "a.h": 'namespace n {\n#include "part.inc"\n}\n',
        "a.cc": '#include "a.h"\nint f() { return n::part(); }\n',
    },
    "a header that needs what its includer has": {
        "umbrella.h": '#include "core.h"\n#include "detail.h"\n',
        "core.h": "struct Core { int x; };\n",
        "detail.h": "inline int get(Core c) { return c.x; }\n",
    },
    "a macro defined twice": {
        "a.h": "#define N 1\nenum { one = N };\n#undef N\n#define N 2\nenum { two = N };\n",
        "a.cc": '#include "a.h"\nint f() { return one + two; }\n',
    },
    "a macro that shares its name with a class": {
        "a.h": "class Lock { public: explicit Lock(int*); };\n"
        "#define Lock(x) static_assert(0, x)\n",
        "a.cc": '#include "a.h"\nvoid f(int* m) { Lock lock{m}; }\n',
    },
    "constructors with initialisers, function-try-blocks": {
        "a.h": "struct A { int x{}; A(int y) try : x{y} {} catch (...) {} A() // why\n"
        " : x(1) {} };\n",
        "a.cc": '#include "a.h"\nint f() { return A(2).x; }\n',
    },
    "what one platform has": {
        "a.h": "#if defined(_WIN32)\n#include <windows.h>\ntypedef DWORD word;\n"
        "#elif defined(__linux__) && __has_include(<unistd.h>)\ntypedef int word;\n#endif\n",
        "a.cc": '#include "a.h"\nword f() {\n#ifdef _MSC_VER\n  return MSC;\n#else\n  return 1;\n'
        "#endif\n}\n",
    },
    "a function's name in parentheses": {
        "a.h": "struct Half { int x; };\n#define FLAT inline\n"
        "FLAT Half (min)(int a, int b) { return {a < b ? a : b}; }\n",
        "a.cc": '#include "a.h"\nint f() { return (min)(1, 2).x; }\n',
    },
    "a macro with a body that declares": {
        "a.h": "#define MATCHER(name) struct name##Impl { bool match(int) const; };\\\n"
        "inline name##Impl name() { return {}; }\\\n"
        "inline bool name##Impl::match(int arg) const\n",
        "b.h": '#include "a.h"\nnamespace n {\nMATCHER(IsOdd) { return arg % 2; }\n}\n',
        "b.cc": '#include "b.h"\nbool f() { return n::IsOdd().match(3); }\n',
    },
    "data with an attribute that is a macro": {
        "a.h": "#define GUARDED_BY(x)\nextern int lock;\n"
        "static bool ready GUARDED_BY(lock) = false;\n",
        "a.cc": '#include "a.h"\nbool f() { return ready; }\n',
    },
    "a macro alone on its line before a member": {
        "m.h": "#define ON_DEVICE\n",
        "a.h": '#include "m.h"\nstruct A {\n  ON_DEVICE\n  int f() { return 1; }\n};\n',
        "a.cc": '#include "a.h"\nint f(A a) { return a.f(); }\n',
    },
    "a constructor of a template out of its class": {
        "a.h": "template <class T> class A { T t_; public: A(T t); };\n",
        "b.h": '#include "a.h"\ntemplate <class T> A<T>::A(T t) : t_(t) {}\n',
    },
    "a type made by a macro before a member's name": {
        "a.h": "#define PtrTo(T) T##Impl\nstruct NodeImpl { int x; };\n"
        "struct A { const PtrTo(Node) *first() const; int n; };\n",
        "a.cc": '#include "a.h"\nint f(const A& a) { return a.first()->x; }\n'
        "const PtrTo(Node) *A::first() const { return nullptr; }\n",
        "b.cc": '#include "a.h"\nint g(const A& a) { return a.first()->x; }\n',
    },
}


@needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_documents_compile_by_themselves(name):
    made = slices(CASES[name])
    assert made
    for piece in made:
        assert errors(piece.text) == "", piece.text


@needs_compiler
def test_c_stays_c():
    files = {
        "a.h": "#include <stdlib.h>\n#ifdef __cplusplus\nextern \"C\" {\n#endif\n"
        "struct s { int class; };\n#ifdef __cplusplus\n}\n#endif\n",
        "a.c": '#include "a.h"\nint f(struct s *p) { int *q = malloc(4); return p->class + *q; }\n',
    }  # fmt: skip
    [text] = [piece.text for piece in slices(files) if piece.root.path == "a.c"]
    assert errors(text, c=True) == ""


BIG = "".join(
    f"struct T{i} {{ int v{i}; int get() const {{ return v{i} * {i} + {i + 1}; }} }};\n"
    f"int use{i}(const T{i}& t) {{ return t.get(); }}\n"
    for i in range(100)
)


@needs_compiler
@pytest.mark.parametrize("budget", [400, 1000, 4000])
def test_no_document_is_over_budget_and_every_definition_is_a_root(budget):
    made = slices({"big.cc": BIG}, budget=budget)
    assert all(len(piece.text.encode()) <= budget for piece in made)
    names = sorted(root.name for piece in made for root in piece.roots)
    assert names == sorted([f"T{i}" for i in range(100)] + [f"use{i}" for i in range(100)])
    lines = BIG.split("\n")
    for piece in made:
        assert all(lines[root.line - 1] in piece.text for root in piece.roots)
    for piece in random.Random(budget).sample(made, 4):
        assert errors(piece.text) == ""


@needs_compiler
def test_a_short_budget_leaves_callees_declared_and_members_without_bodies():
    filler = "".join(f"    total += {i};\n" for i in range(60))
    files = {
        "a.h": f"struct A {{ int f() {{ int total = 0;\n{filler} return total; }} }};\n"
        f"inline int far() {{ int total = 0;\n{filler} return total; }}\n",
        "a.cc": '#include "a.h"\nint root(A a) { return a.f() + far(); }\n',
    }
    whole = by_root(files)["a.cc"]
    assert whole.count("return total;") == 2
    short = by_root({**files}, budget=300, depth=3).get("a.cc")
    assert short is not None
    assert "int f();" in short
    assert "inline int far();" in short
    assert errors(short) == ""


@needs_compiler
def test_a_class_that_is_too_long_comes_with_the_members_that_are_named():
    unused = "".join(f"  virtual int unused{i}(int first, int second) = 0;\n" for i in range(40))
    files = {
        "a.h": f"struct B {{\n{unused}  virtual int b() = 0;\n}};\n"
        f"struct A : B {{\n{unused.replace(' = 0;', ' override;')}  int b() override;\n"
        "  int data;\n};\n",
        "a.cc": '#include "a.h"\nint root(A& a) { return a.b() + a.data; }\n'
        + "".join(f"int other{i}(int x) {{ return x * {i} + {i}; }}\n" for i in range(40)),
    }
    made = [piece for piece in slices(files, budget=1000) if piece.root.name == "root"]
    assert [piece.rung for piece in made] == ["part, members used"]
    assert "int b() override;" in made[0].text
    assert "int data;" in made[0].text
    assert "unused" not in made[0].text
    assert errors(made[0].text) == ""


@needs_compiler
def test_what_needs_too_much_includes_the_headers_of_its_project(tmp_path):
    fields = "".join(f"  int field_of_the_record{i};\n" for i in range(60))
    files = {
        "include/lib/a.h": f"#pragma once\nstruct A {{\n{fields}}};\n",
        "src/near.h": "#pragma once\n#include <lib/a.h>\nstatic const int near = 1;\n",
        "src/a.cc": '#include "near.h"\n#include <lib/a.h>\n#include <string>\n'
        "static int twice(int x) { return 2 * x; }\n"
        "int root(const A& a) { return twice(a.field_of_the_record0) + near; }\n"
        + "".join(f"int other{i}(int x) {{ return x * {i} + {i}; }}\n" for i in range(20)),
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    made = [piece for piece in slices(files, budget=800) if piece.root.name == "root"]
    assert [piece.rung for piece in made] == ["part, project's headers included"]
    text = made[0].text
    assert "#include <lib/a.h>" in text
    assert '#include "src/near.h"' in text
    assert "return 2 * x" not in text
    assert errors(text) != ""
    assert errors(text, include=[tmp_path, tmp_path / "include"]) == ""


LONG = "".join(f"int filler_of_the_file{i}(int x) {{ return x * {i} + {i}; }}\n" for i in range(40))


def with_includes(files, folder, name, budget):
    """The text of a root's document that keeps its project's includes, and what is wrong in it."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    [piece] = [
        piece
        for piece in slices(files, budget=budget)
        if any(root.name == name for root in piece.roots)
    ]
    assert piece.rung == "part, project's headers included"
    return piece.text, errors(piece.text, include=[folder])


UMBRELLA = {
    "all.h": "#ifndef ALL_H\n#define ALL_H\n#include <vector>\n#define WIDE 2\n"
    '#include "types.h"\n'
    "namespace lib { struct Near { int n; }; struct Not { int n; }; }\n"
    '#include "detail/more.h"\n#include "late.h"\n#endif\n',
    "types.h": "#ifndef TYPES_H\n#define TYPES_H\nstruct Wide {\n"
    + "".join(f"  int field_of_the_record{i};\n" for i in range(60))
    + "};\n#endif\n",
    "detail/more.h": '#ifndef MORE_H\n#define MORE_H\n#include "part.h"\n#endif\n',
    "detail/part.h": "#ifndef PART_H\n#define PART_H\n// includes\nnamespace lib {\n"
    "inline int root(const Wide& w, Near n, std::vector<int> v) {\n"
    "  return w.field_of_the_record0 + n.n + v[0] + WIDE;\n}\n}\n" + LONG + "#endif\n",
    "late.h": '#ifndef LATE_H\n#define LATE_H\n#include "all.h"\n#endif\n',
}


@needs_compiler
def test_a_header_that_cannot_stand_alone_brings_what_its_includers_had_before_it(tmp_path):
    text, wrong = with_includes(UMBRELLA, tmp_path, "lib::root", 1000)
    assert wrong == ""
    assert text.index('#include "types.h"') < text.index("struct Near")
    assert text.index("struct Near") < text.index("int root(const Wide&")
    assert "late.h" not in text
    assert "struct Not" not in text
    assert "filler" not in text


@needs_compiler
def test_a_header_whose_includes_lead_back_to_it_comes_once(tmp_path):
    part = UMBRELLA["detail/part.h"].replace("// includes", '#include "../late.h"')
    text, wrong = with_includes({**UMBRELLA, "detail/part.h": part}, tmp_path, "lib::root", 1000)
    assert wrong == ""
    assert text.index("#define PART_H") < text.index('#include "late.h"')


@needs_compiler
def test_a_macro_named_as_the_library_has_functions_comes_after_its_headers(tmp_path):
    fields = "".join(f"  int field_of_the_record{i};\n" for i in range(60))
    files = {
        "main.h": "#include <string>\n#define min(a, b) no_such_function\n"
        f"struct Wide {{\n{fields}}};\n#include <algorithm>\n#include <future>\n",
        "a.cc": '#include "main.h"\n'
        "int root(const Wide& w) { return w.field_of_the_record0; }\n" + LONG,
    }
    text, wrong = with_includes(files, tmp_path, "root", 1000)
    assert text.index("#include <algorithm>") < text.index('#include "main.h"')
    assert wrong == ""


@needs_compiler
def test_data_and_members_that_the_standard_library_asks_for_stay():
    unused = "".join(f"  static int unused{i}(int first, int second);\n" for i in range(40))
    files = {
        "a.h": "#include <iterator>\n#define GUARDED_BY(x)\nstruct A {\n"
        "  constexpr A() : n_(1) {}\n  int n_ GUARDED_BY(m_);\n  using iterator_category = "
        "std::forward_iterator_tag;\n  using value_type = int;\n  using difference_type = long;\n"
        f"  using pointer = int*;\n  using reference = int&;\n{unused}}};\n",
        "a.cc": '#include "a.h"\nlong root(A a) {\n'
        "  return std::iterator_traits<A>::difference_type(1);\n}\n" + LONG,
    }
    made = [piece for piece in slices(files, budget=1000) if piece.root.name == "root"]
    assert [piece.rung for piece in made] == ["part, members used"]
    assert errors(made[0].text) == ""


def test_a_test_of_a_framework_comes_with_what_registers_its_suite():
    files = {
        "a_test.cc": "#include <gtest/gtest.h>\n"
        "template <class T> struct Suite : testing::Test {};\n"
        "using Types = testing::Types<int, long>;\n"
        "TYPED_TEST_SUITE(Suite, Types);\n"
        "TYPED_TEST(Suite, Holds) { EXPECT_GT(sizeof(TypeParam), 1u); }\n" + LONG,
    }
    [text] = [
        piece.text for piece in slices(files, budget=1000) if "TYPED_TEST(Suite" in piece.text
    ]
    assert text.index("using Types") < text.index("TYPED_TEST_SUITE(") < text.index("TYPED_TEST(")


def test_tests_of_one_anonymous_macro_do_not_bring_each_other():
    files = {
        "t.h": "#define CASE_(f, text) static void f()\n"
        "#define CASE(text) CASE_(ANONYMOUS(f_), text)\n",
        "a.cc": '#include "t.h"\nCASE("one") { int first = 1; }\n',
        "b.cc": '#include "t.h"\n#include "a.cc"\nCASE("two") { int second = 2; }\n' + LONG,
    }
    for piece in slices(files, budget=300):
        assert not ("first" in piece.text and "second" in piece.text)


@needs_compiler
def test_templates_called_with_types_of_one_file_come_with_their_bodies():
    filler = "".join(f"    total += {i};\n" for i in range(60))
    files = {
        "a.h": "template <class T> int apply(T t) { return t(); }\n"
        f"inline int far() {{ int total = 0;\n{filler} return total; }}\n",
        "a.cc": '#include "a.h"\nnamespace {\nstruct Two { int operator()() { return 2; } };\n}\n'
        "int root() { return apply(Two()) + far(); }\n",
    }
    short = by_root(files, budget=400)["a.cc"]
    assert "inline int far();" in short
    assert errors(short) == ""


def test_definitions_that_fit_nowhere_are_counted():
    body = "".join(f"  total += {i};\n" for i in range(100))
    files = {
        "a.cc": f"int big(int total) {{\n{body}  return total;\n}}\nint small() {{ return 1; }}\n",
        "win.cc": "#include <windows.h>\nint win() { return 1; }\n",
    }
    indexes = [index_file(path, text) for path, text in files.items()]
    slicer = ProjectSlicer(indexes, files.__getitem__, SliceOptions(500), len)
    left_out = Counter()
    made = [piece for path in files for piece in slicer.slices_of(path, left_out)]
    assert [root.name for piece in made for root in piece.roots] == ["small"]
    assert left_out == {"too_long": 1, "other_platform": 1}


def test_the_order_of_files_does_not_matter():
    for files in [PROJECT, *CASES.values()]:
        paths = list(files)
        first = slices(files)
        for seed in range(3):
            random.Random(seed).shuffle(paths)
            assert slices(files, order=paths) == first


def test_what_the_configuration_leaves_out_is_no_document():
    files = {
        "a.cc": '#if defined(_WIN32)\n#include "a_win.cpp"\n#else\nint f() { return 1; }\n#endif\n',
        "a_win.cpp": "int f() { return GetTickCount(); }\n",
        "mac.cc": "#include <TargetConditionals.h>\nint mac() { return 1; }\n",
        "snippet.cpp": "int x = 1;\ncout << x;\n",
        "objc.h": "@interface A\n@end\n",
    }
    assert [piece.root.path for piece in slices(files)] == ["a.cc"]


def test_documents_of_a_file_do_not_depend_on_the_files_before():
    # What a.cc needs is too much for it, with the specialisation that only it sees.
    fill = "".join(f"  long v{n} = {n};\n" for n in range(60))
    uses = "".join(f"int use{n}(J& j) {{\n{fill}  return j.t.v + {n};\n}}\n" for n in range(4))
    files = {
        "h.h": "#pragma once\n"
        "template <class T> struct Trait { T v; };\nstruct J { Trait<int> t; };\n",
        "s.h": f'#pragma once\n#include "h.h"\ntemplate <> struct Trait<J> {{\n{fill * 4}}};\n',
        "a.cc": f'#include "s.h"\nnamespace a {{\n{uses}}}\n',
        "b.cc": f'#include "h.h"\nnamespace b {{\n{uses}}}\n',
    }
    indexes = [index_file(path, text) for path, text in files.items()]
    made = []
    for paths in (["a.cc", "b.cc"], ["b.cc", "a.cc"]):
        slicer = ProjectSlicer(indexes, files.__getitem__, SliceOptions(4_000, project="p"), len)
        made.append({path: list(slicer.slices_of(path)) for path in paths})
    assert made[0] == made[1]
    assert len(made[0]["a.cc"]) > 1
    assert len(made[0]["b.cc"]) > 1


def test_a_project_that_is_done_with_leaves_nothing_to_the_cycle_collector():
    # Workers look for cycles rarely, and hold millions of objects.
    pastes = (
        "#define JOIN(a, ...) a##__VA_ARGS__\n#define MAKE(n) int JOIN(n, (_f)) { return n; }\n"
        "enum { one_f, two_f };\ntemplate <class T> struct S {};\ntemplate <> struct S<int> {};\n"
        "S<int> operator+(S<int>, S<int>);\nint get() { return JOIN(one, _f) + JOIN(two, _f); }\n"
    )
    files = {**PROJECT, "pastes.cc": pastes}
    gc.collect()
    gc.disable()
    try:
        assert len(slices(files)) > 3
        assert len(slices(files, budget=200)) > 3
        assert gc.collect() == 0
    finally:
        gc.enable()
