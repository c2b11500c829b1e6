"""Jobs whose items crash, hang, fail or eat all memory, under each executor."""

import importlib
import multiprocessing.spawn
import os
import time
from collections import Counter
from pathlib import Path

import pytest

from nanochat_chunker.errors import ChunkerError
from nanochat_chunker.execution import Done, Failure, Job, Limits, Restart, Result
from nanochat_chunker.execution.on_ray import RayPool
from nanochat_chunker.execution.processes import ProcessPool
from nanochat_chunker.execution.queue import JobQueue
from nanochat_chunker.execution.serial import SerialPool

LIMITS = Limits(seconds=0.5, memory=512 << 20)
HERE = str(Path(__file__).parent)


@pytest.fixture
def tasks(monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    return importlib.import_module("pool_tasks")


def collect(pool, jobs):
    results, failures, done = {}, {}, []
    for event in pool.run(jobs):
        match event:
            case Result(job, number, value):
                results[job.key, number] = value
            case Failure(job, number, reason, _):
                failures[job.key, number] = reason
            case Restart(job):
                results = {k: v for k, v in results.items() if k[0] != job.key}
            case Done(job):
                done.append(job.key)
    return results, failures, sorted(done)


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of this machine, started once: a pool uses one that is there."""
    ray = pytest.importorskip("ray", reason="ray is not installed here: hatch run ray:test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", HERE + os.pathsep + os.environ.get("PYTHONPATH", ""))
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield
        ray.shutdown()


@pytest.fixture(params=["serial", "processes", "ray"])
def pool(request):
    if request.param == "serial":
        made = SerialPool(LIMITS)
    elif request.param == "processes":
        made = ProcessPool(2, LIMITS)
    else:
        request.getfixturevalue("cluster")
        made = RayPool(2, LIMITS, None)
    with made as entered:
        yield entered


def test_every_item_has_its_result(tasks, pool):
    jobs = [Job(n, tasks.work, None, [f"{n}.{i}" for i in range(n % 7)]) for n in range(40)]
    results, failures, done = collect(pool, jobs)
    assert results == {(n, i): f"did {n}.{i}" for n in range(40) for i in range(n % 7)}
    assert not failures
    assert done == list(range(40))


FATES = {"bug": "internal_error", "deep": "too_deep", "unusable": "unusable"}


def test_an_error_costs_its_item(tasks, pool):
    names = ["a", "bug", "b", "deep", "unusable", "c"]
    results, failures, done = collect(
        pool, [Job(0, tasks.work, None, names), Job(1, tasks.work, None, ["d"])]
    )
    assert sorted(results.values()) == ["did a", "did b", "did c", "did d"]
    assert failures == {(0, n): FATES[name] for n, name in enumerate(names) if name in FATES}
    assert done == [0, 1]


def test_an_error_of_use_ends_the_run(tasks, pool):
    with pytest.raises(ChunkerError, match=r"the flag is wrong"):
        list(pool.run([Job(0, tasks.work, None, ["a", "wrong"])]))


def test_a_loop_without_end_in_python_costs_its_item(tasks, pool):
    results, failures, _ = collect(pool, [Job(0, tasks.work, None, ["a", "hang softly", "b"])])
    assert results == {(0, 0): "did a", (0, 2): "did b"}
    assert failures == {(0, 1): "too_slow"}


@pytest.fixture
def processes(pool):
    """The pools whose items run in processes of their own."""
    if isinstance(pool, SerialPool):
        pytest.skip("the serial executor has no process to lose")
    return pool


def test_a_crash_a_hang_and_a_lack_of_memory_cost_their_items(tasks, processes):
    names = ["a", "crash", "b", "hang", "memory", "c", "crash"]
    jobs = [Job(n, tasks.work, None, names) for n in range(2)]
    results, failures, done = collect(processes, jobs)
    fates = {1: "crashed", 3: "too_slow", 4: "out_of_memory", 6: "crashed"}
    assert failures == {(n, i): fate for n in range(2) for i, fate in fates.items()}
    assert Counter(results.values()) == {"did a": 2, "did b": 2, "did c": 2}
    assert done == [0, 1]


def test_an_item_that_waits_for_ever_costs_itself(tasks, monkeypatch):
    monkeypatch.setattr("nanochat_chunker.execution.processes._WALL_FACTOR", 1)
    monkeypatch.setattr("nanochat_chunker.execution.processes._WALL_SLACK", 0.3)
    with ProcessPool(1, LIMITS) as pool:
        results, failures, _ = collect(pool, [Job(0, tasks.work, None, ["a", "sleep", "b"])])
    assert results == {(0, 0): "did a", (0, 2): "did b"}
    assert failures == {(0, 1): "too_slow"}


def test_a_process_that_is_killed_from_outside_costs_nothing(tasks, processes, tmp_path):
    job = Job(0, tasks.work, str(tmp_path / "once"), ["a", "crash once", "b"])
    results, failures, _ = collect(processes, [job])
    assert list(results.values()) == ["did a", "did crash once", "did b"]
    assert not failures


def test_a_job_whose_results_depend_on_each_other_begins_again(tasks, processes):
    job = Job(0, tasks.total, None, ["a", "b", "crash", "c"], restart=True)
    results, failures, done = collect(processes, [job])
    assert results == {(0, 0): 1, (0, 1): 2, (0, 3): 3, (0, 4): "a,b,c"}
    assert failures == {(0, 2): "crashed"}
    assert done == [0]


def test_a_job_that_cannot_be_prepared_fails_as_a_whole(tasks, pool):
    results, failures, done = collect(pool, [Job(0, tasks.fails_to_prepare, None, ["a", "b"])])
    assert not results
    assert failures == {(0, 0): "internal_error", (0, 1): "internal_error"}
    assert done == [0]


def test_large_jobs_and_results_do_not_wait_on_each_other(tasks, processes):
    padding = "y" * 300_000
    jobs = [Job(n, tasks.large, padding * (n % 3 > 0), [400_000, 1, 400_000]) for n in range(24)]
    results, _, done = collect(processes, jobs)
    assert {len(value) for value in results.values()} == {400_000, 1}
    assert len(done) == 24


def test_processes_that_cannot_start_are_said(tasks, monkeypatch):
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", b"/bin/false")
    with (
        ProcessPool(1, LIMITS) as pool,
        pytest.raises(ChunkerError, match="as soon as they start"),
    ):
        list(pool.run([Job(0, tasks.work, None, ["a"])]))


def test_processes_end_with_the_pool(tasks):
    with ProcessPool(2, LIMITS) as pool:
        events = pool.run([Job(n, tasks.work, None, ["a", "b"]) for n in range(4)])
        next(events)
        pids = [worker.process.pid for worker in pool._workers]
    assert pids
    deadline = time.monotonic() + 10
    for pid in pids:
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_jobs_of_one_affinity_go_to_few_processes():
    jobs = [Job(n, None, None, [], affinity=n // 10) for n in range(30)]
    queue = JobQueue(jobs)
    first = [queue.take(None, {None}).job.key, queue.take(None, {0, None}).job.key]
    assert first == [0, 10]  # a second process begins on what the first has not
    mine = [queue.take(0, {1}).job.key for _ in range(9)]
    assert mine == list(range(1, 10))
    assert queue.take(0, {1}).job.key == 20
    theirs = [queue.take(1, {2}).job.key for _ in range(9)]
    assert theirs == list(range(11, 20))
    rest = [queue.take(2, {1}).job.key, queue.take(1, {2}).job.key]
    assert rest == [21, 22]  # nothing else is left: it helps
