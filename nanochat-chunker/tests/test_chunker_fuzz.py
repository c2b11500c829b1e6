"""Mutated real sources, as many as NANOCHAT_FUZZ_INPUTS says: no crash, no hang, no error."""

import importlib
import importlib.util
import os
import sysconfig
from pathlib import Path

import pytest

from nanochat_chunker.execution import Failure, Job, Limits, Result
from nanochat_chunker.execution.processes import ProcessPool

SHORT = 400
INPUTS = int(os.environ.get("NANOCHAT_FUZZ_INPUTS", SHORT))
FIRST_SEED = int(os.environ.get("NANOCHAT_FUZZ_SEED", 0))
PLACES = (
    "torch/include/c10",
    "torch/include/ATen/core",
    "torch/include/fmt",
    "torch/include/torch",
)


def sources():
    """Headers of the torch wheel: code of many hands, at most 6 KB each."""
    packages = Path(sysconfig.get_path("purelib"))
    found = [path for place in PLACES for path in sorted((packages / place).rglob("*.h"))]
    return [str(path) for path in found if 200 < path.stat().st_size < 6_000]


def test_no_input_crashes_hangs_or_fails(monkeypatch):
    known = sources()
    if not known:
        pytest.skip("no C++ of the torch wheel here to mutate")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    tasks = importlib.import_module("fuzz_tasks")
    count = INPUTS // tasks.FILES
    seeds = range(FIRST_SEED, FIRST_SEED + count)
    step = max(10, count // 500)
    documents, failures = 0, []
    with ProcessPool(2, Limits(seconds=20, memory=3 << 30)) as pool:
        jobs = (Job(n, tasks.check, known, seeds[n : n + step]) for n in range(0, count, step))
        for event in pool.run(jobs):
            match event:
                case Result(_, _, made):
                    documents += made
                case Failure(job, number, reason, detail):
                    failures.append((job.items[number], reason, detail))
    assert not failures
    assert documents > count


def test_a_name_that_means_itself_and_more_does_not_hang(monkeypatch):
    """Found by mutation: `at::T` meant `at::impl::T`, that `at::impl::impl::T`, and so on."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    tasks = importlib.import_module("fuzz_tasks")
    text = (
        "namespace at { namespace impl { struct T {}; } }\n#define at at::impl\n"
        "at::T make(at::T x) { return x; }\n"
    )
    with ProcessPool(1, Limits(seconds=5)) as pool:
        events = list(pool.run([Job(0, tasks.check_texts, None, [{"a.h": text, "b.cc": text}])]))
    assert [event for event in events if isinstance(event, Failure)] == []


def test_a_namespace_that_names_nothing_is_written_as_it_is(monkeypatch):
    """Found by mutation: no name, and yet names in it."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    tasks = importlib.import_module("fuzz_tasks")
    text = "namespace a { struct G {}; }\nnamespace(a::G& graph);\nvoid f(a::G& g) {}\n"
    assert next(iter(tasks.check_texts(None, [{"a.h": text}]))) == 2
