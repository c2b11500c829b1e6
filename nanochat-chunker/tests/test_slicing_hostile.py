import importlib
import pickle
import random
from pathlib import Path

import pytest

from nanochat_chunker.execution import Failure, Job, Limits, Result
from nanochat_chunker.execution.processes import ProcessPool
from nanochat_chunker.slicing import SliceOptions, index_file, slice_project

WELL = """#include "b.h"
#define F(x) g##x(#x)
namespace a { template <class T> class C : B<T> { C() : x_{1} { f([] { return 1; }); } int x_; };
enum class E { one = 1, two }; R"x(raw)x"; int operator""_k(long double); }
#if defined(X) && (Y > 3 || !Z)
struct S { int (*p)(int); } s;
#else
int A<int>::f() const -> int { return F(1) ? '{' : "}"[0]; }
#endif
"""


def run(text):
    index = index_file("a.cc", text)
    assert pickle.loads(pickle.dumps(index)) == index
    options = SliceOptions(20_000)
    return list(slice_project([index], lambda path: text, options, len))


HOSTILE = [
    "",
    "\0" * 1000,
    "{" * 100_000,
    "}" * 100_000,
    "(" * 100_000 + ")" * 100_000,
    "namespace a {" * 5_000,
    "class A {" * 20_000 + "};" * 20_000,
    "struct A { " * 500 + "int x;" + " };" * 500,
    "#if 1\n" * 20_000,
    "#if " + "(" * 10_000 + "1\n",
    "#if " + "!" * 10_000 + "1\nint a;\n#endif\n",
    "#define A A A\n#if A\n#endif\nint x = A;\n",
    "#define A(x) A(x) A(x)\nA(A(A(1)))\nvoid f();\n",
    "".join(f"#define M{i} M{i + 1} M{i + 1}\n" for i in range(60)) + "#if M0\n#endif\nM0\n",
    "/*" * 50_000,
    '"' * 50_001,
    "'a" * 50_000,
    'R"(' * 30_000,
    "template <" * 20_000,
    "a<" * 50_000 + ";",
    "a::" * 50_000 + "b;",
    "\\\n" * 50_000,
    "#define X \\\n" * 20_000,
    "int x; " * 20_000,
    "using a::" * 20_000 + "b;",
    "operator " * 20_000 + "();",
    "x = " * 50_000,
    "@interface A\n@end\n",
    "\ud800 int a;\n",
]


def test_any_text_is_indexed_and_sliced_without_a_hang(monkeypatch):
    """What is linear takes a second at most, what is quadratic minutes: the limit tells a hang."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    tasks = importlib.import_module("fuzz_tasks")
    with ProcessPool(1, Limits(seconds=120)) as pool:
        events = list(pool.run([Job(0, tasks.slice_alone, None, HOSTILE)]))
    failures = [event for event in events if isinstance(event, Failure)]
    assert [HOSTILE[event.place][:40] for event in failures] == []
    assert sum(isinstance(event, Result) for event in events) == len(HOSTILE)


@pytest.mark.parametrize("seed", range(60))
def test_mutated_sources_do_no_harm(seed):
    rng = random.Random(seed)
    text = WELL
    for _ in range(rng.randrange(1, 12)):
        at = rng.randrange(len(text))
        change = rng.randrange(4)
        if change == 0:
            text = text[:at] + text[at + rng.randrange(1, 20) :]
        elif change == 1:
            text = text[:at] + rng.choice("{}()<>[];:#\"'\\\n,=") + text[at:]
        elif change == 2:
            other = rng.randrange(len(text))
            text = text[:at] + text[other : other + 40] + text[at:]
        else:
            text = text[at:] + text[:at]
    assert index_file("a.cc", text).skipped in ("", "objective_c")
    run(text)


def test_cycles_and_chains_of_includes():
    count = 3000
    texts = {f"{i}.h": f'#include "{i + 1}.h"\nint v{i};\n' for i in range(count)}
    texts[f"{count}.h"] = '#include "0.h"\nint last;\n'
    indexes = [index_file(path, text) for path, text in texts.items()]
    made = list(slice_project(indexes, texts.__getitem__, SliceOptions(10_000), len))
    assert len(made) == count + 1
