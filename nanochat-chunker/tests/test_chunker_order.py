import random

import pytest

from nanochat_chunker.includes import Include, Resolver, find_includes, include_order


def quoted(*targets):
    return [Include(target, angle=False) for target in targets]


def angled(*targets):
    return [Include(target, angle=True) for target in targets]


def test_finds_each_spelling_of_an_include_once():
    text = (
        '#include "a.h"\n  #  include <b/c.hpp> // why\n#include "a.h"\n#import "d.h"\n'
        '#include_next <e.h>\nint x = "#include \\"no.h\\"";\n#include MACRO\n#include"f.h"'
    )
    assert find_includes(text) == (
        Include("a.h", False),
        Include("b/c.hpp", True),
        Include("d.h", False),
        Include("e.h", True),
        Include("f.h", False),
    )


def test_what_is_included_comes_first_and_ties_go_by_path():
    files = {
        "a.cc": quoted("z.h", "m.h"),
        "b.cc": [],
        "m.h": quoted("z.h"),
        "z.h": [],
    }
    assert include_order(files, "p") == ["z.h", "m.h", "a.cc", "b.cc"]


def test_cycles_and_self_includes_keep_every_file_once():
    files = {"a.h": quoted("b.h", "a.h"), "b.h": quoted("c.h"), "c.h": quoted("a.h")}
    assert include_order(files, "p") == ["c.h", "b.h", "a.h"]


def test_a_chain_deeper_than_the_stack():
    count = 5000
    files = {f"{i:05d}.h": quoted(f"{i + 1:05d}.h") for i in range(count)}
    assert include_order(files, "p") == [
        f"{i:05d}.h" for i in reversed(range(count + 1)) if i < count
    ]


@pytest.mark.parametrize("seed", range(20))
def test_random_graphs_without_cycles_are_ordered(seed):
    rng = random.Random(seed)
    names = [f"d{rng.randrange(3)}/{i}.h" for i in range(40)]
    files = {
        name: quoted(*(f"../{other}" for other in rng.sample(names[:i], min(i, rng.randrange(4)))))
        for i, name in enumerate(names)
    }
    order = include_order(files, "p")
    assert sorted(order) == sorted(names)
    place = {name: i for i, name in enumerate(order)}
    for name, includes in files.items():
        assert all(place[include.target.removeprefix("../")] < place[name] for include in includes)


@pytest.mark.parametrize(
    ("includer", "include", "expected"),
    [
        ("src/a.cc", Include("util.h", False), "src/util.h"),  # beside the includer
        ("lib/a.cc", Include("net/util.h", False), "src/net/util.h"),  # by the end of the path
        ("src/net/a.cc", Include("../util.h", False), "src/util.h"),
        ("test/a.cc", Include("../../include/proj/api.h", False), "include/proj/api.h"),
        ("src/a.cc", Include("proj/api.h", True), "include/proj/api.h"),
        ("src/a.cc", Include("proj/src/util.h", True), "src/util.h"),  # the project's own folder
        ("src/a.cc", Include("string.h", True), None),  # the system's
        ("src/a.cc", Include("vector", True), None),
        ("src/a.cc", Include("other/util.h", True), None),
        ("src/a.cc", Include("til.h", True), None),  # no part of a name
        ("src/net/b.cc", Include("util.h", True), "src/net/util.h"),  # the nearest of several
    ],
)
def test_resolving(includer, include, expected):
    paths = ["src/util.h", "src/net/util.h", "include/proj/api.h", "compat/string.h"]
    assert Resolver(paths, "proj").resolve(includer, include) == expected


def test_documents_follow_the_includes(make, chunk):
    folder = make(
        {
            "p/src/main.cpp": "#include <p/core.h>\nint main() { return core(); }\n",
            "p/include/p/core.h": '#include "base.h"\nint core();\n',
            "p/include/p/base.h": "struct Base {};",
            "p/src/other.cpp": "int other;\n",
        }
    )
    texts, _ = chunk(folder)
    assert texts == [
        "// include/p/base.h\nstruct Base {};\n\n"
        '// include/p/core.h\n#include "base.h"\nint core();\n\n'
        "// src/main.cpp\n#include <p/core.h>\nint main() { return core(); }\n\n"
        "// src/other.cpp\nint other;\n"
    ]
