"""Bodies of called functions from sources that a document's file does not see."""

import shutil
import subprocess

import pytest

from nanochat_chunker.slicing import SliceOptions, index_file, slice_project

COMPILER = next((c for c in ("clang++", "g++") if shutil.which(c)), None)
pytestmark = pytest.mark.skipif(COMPILER is None, reason="neither clang++ nor g++ is there")


def document(files, root="main.cc", depth=3, budget=1 << 20):
    """The first document of a file, which compiles."""
    indexes = [index_file(path, text) for path, text in files.items()]
    made = slice_project(indexes, files.__getitem__, SliceOptions(budget, depth, project="p"), len)
    piece = next(piece for piece in made if piece.root.path == root)
    command = [COMPILER, "-x", "c++", "-std=c++20", "-fsyntax-only", "-w", "-"]
    done = subprocess.run(command, input=piece.text, capture_output=True, text=True)
    assert done.stderr == "", piece.text
    return piece.text


def test_bodies_come_from_other_sources_as_many_calls_away_as_asked():
    files = {
        "h.h": "int one(int);\nint two(int);\nint three(int);\n",
        "one.cc": '#include "h.h"\nint one(int x) { return two(x) + 1; }\n',
        "two.cc": '#include "h.h"\n#include <cstdlib>\n'
        "int two(int x) { return three(std::abs(x)) + 2; }\n",
        "three.cc": '#include "h.h"\nint three(int x) { return x + 3; }\n',
        "main.cc": '#include "h.h"\nint run(int x) { return one(x); }\n',
    }
    bodies = [f"int {name}(int x) {{" for name in ("one", "two", "three")]
    for depth in range(4):
        text = document(files, depth=depth)
        assert [body in text for body in bodies] == [depth > n for n in range(3)]
    assert text.index(bodies[2]) < text.index(bodies[1]) < text.index(bodies[0])
    assert text.index(bodies[0]) < text.index("int run(int x) {")
    assert "#include <cstdlib>" in text


def test_bodies_of_members_come_where_the_class_is_certain():
    files = {
        "h.h": "class Store { public: int put(int); static int made(); };\n"
        "class Reader { public: int next(); };\nclass Writer { public: int next(); };\n",
        "store.cc": '#include "h.h"\n#include <vector>\n'
        "namespace { std::vector<int> kept; }\n"
        "int Store::put(int x) { kept.push_back(x); return x; }\n"
        "int Store::made() { return 1; }\n",
        "reader.cc": '#include "h.h"\nint Reader::next() { return 2; }\n',
        "main.cc": '#include "h.h"\n'
        "int run(Store& s, Reader& r, Writer* w) { return s.put(1) + Store::made() + r.next(); }\n",
    }
    text = document(files)
    assert "int Store::put(int x) { kept.push_back(x); return x; }" in text
    assert "int Store::made() {" in text
    assert "std::vector<int> kept;" in text
    assert "int Reader::next() {" not in text  # by its name it may be the writer's


def test_bodies_come_only_as_far_as_the_budget_reaches():
    filler = "".join(f"  total += {i};\n" for i in range(60))
    files = {
        "h.h": "int small(int);\nint large(int);\n",
        "large.cc": f'#include "h.h"\nint large(int total) {{\n{filler}  return total;\n}}\n',
        "small.cc": '#include "h.h"\nint small(int x) { return x; }\n',
        "main.cc": '#include "h.h"\nint run(int x) { return large(x) + small(x); }\n',
    }
    text = document(files, budget=400)
    assert "int small(int x) {" in text
    assert "int large(int);" in text
    assert "int large(int total)" not in text


OTHER = '#include "h.h"\n%s\nint other(int x) { return %s; }\n'
MAIN = '#include "h.h"\n%s\nint run(int x) { return other(x) + %s; }\n'
COLLISIONS = {
    "both have a static function of a name": (
        OTHER % ("static int help(int x) { return x; }", "help(x)"),
        MAIN % ("static int help(int x) { return -x; }", "help(x)"),
    ),
    "both have something of a name in an unnamed namespace": (
        OTHER % ("namespace { struct State { int a; }; }", "State{x}.a"),
        MAIN % ("namespace { struct State { int b; }; }", "State{x}.b"),
    ),
    "a macro means something else there": (
        OTHER % ("#define LIMIT 3", "LIMIT"),
        MAIN % ('#define LIMIT "a"', "sizeof(LIMIT)"),
    ),
    "a macro of one is a name of the other": (
        OTHER % ("", "[](int count) { return count; }(x)"),
        MAIN % ("#define count bad bad", "1"),
    ),
    "a macro of the other is a name of one": (
        OTHER % ("#define count 1 +", "count x"),
        MAIN % ("struct Bag { int count; };", "Bag{x}.count"),
    ),
    "a name nearer by would be found": (
        OTHER % ("static int size() { return 1; }", "size()"),
        MAIN % ("namespace far { int size(const char*); }\nusing far::size;", 'size("a")'),
    ),
    "it opens a namespace": (
        OTHER % ("namespace a { int pick(int); }\nusing namespace a;", "pick(x)"),
        MAIN % ("", "1"),
    ),
    "there are two of it": (
        OTHER % ("", "1"),
        MAIN % ("", "1"),
    ),
}


@pytest.mark.parametrize("why", COLLISIONS)
def test_a_body_stays_away_where(why):
    other, main = COLLISIONS[why]
    files = {"h.h": "int other(int);\n", "other.cc": other, "main.cc": main}
    if why == "there are two of it":
        files["other_windows.cc"] = '#include "h.h"\nint other(int x) { return 2; }\n'
    text = document(files)
    assert "int other(int);" in text
    assert "int other(int x) {" not in text


def test_names_that_mean_the_same_to_both_are_no_collision():
    files = {
        "h.h": "#include <string>\n#define TWICE(x) (2 * (x))\nstruct Box { int x; };\n"
        "namespace lib { int other(Box); int shared(int); int run(Box); }\n",
        "other.cc": '#include "h.h"\nusing std::string;\nnamespace lib {\n'
        'int other(Box b) { string s = "a"; return TWICE(b.x) + shared(s.size()) + run(b); }\n}\n',
        "main.cc": '#include "h.h"\nusing std::string;\nnamespace lib {\n'
        "int shared(int x) { return TWICE(x); }\n"
        'int run(Box b) { string s = "b"; return other(b) + s.size(); }\n}\n',
    }
    assert "int other(Box b) {" in document(files)


def test_what_is_no_document_gives_no_bodies():
    files = {
        "h.h": "int other(int);\n",
        "other.cc": '#include "h.h"\n#include <windows.h>\nint other(int x) { return Sleep(x); }\n',
        "linux.cc": '#include "h.h"\n#include <unistd.h>\nint other(int x) { return sleep(x); }\n',
        "main.cc": '#include "h.h"\nint run(int x) { return other(x); }\n',
    }
    text = document(files)
    assert "return sleep(x);" in text
