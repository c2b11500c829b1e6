"""Choosing by measured times. Times are stand-ins here, given by a runner that runs nothing."""

import json
import os
import subprocess
import sys

import pytest

from nanochat.backend import LossBackend, LossProblem, Target
from nanochat.bench.jobs import Outcome
from nanochat.errors import UsageError
from nanochat.measure import Measurer, cache_file
from nanochat.plan import choose
from nanochat.registry import Registered, Registry

CPU = Target("cpu", "a processor")
PROBLEM = LossProblem("cpu", 64, 32, 128, "float32")


def loss(name):
    class Toy(LossBackend):
        summary = "a toy"

    toy = Toy()
    toy.name = name
    return Registered(toy, "toy", "toy-dist", "1.0")


class Stand:
    """Gives each backend the outcome it was told, and counts how often it was asked."""

    def __init__(self, **outcomes):
        self.outcomes = outcomes
        self.asked = []

    def __call__(self, job):
        name = job.backends["loss"]
        self.asked.append(name)
        return self.outcomes[name]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return cache_file()


def measured(stand, said=None, candidates=("a", "b", "c"), problem=PROBLEM, **options):
    measurer = Measurer(
        CPU,
        device="cpu",
        windows=(),
        compile=False,
        run=stand,
        say=(said if said is not None else []).append,
        **options,
    )
    registry = Registry()
    for name in candidates:
        registry.add(loss(name))
    return choose(registry, "loss", "measure", CPU, problem, measurer)


def three(a=3.0, b=1.5):
    return Stand(
        a=Outcome("ok", ms=a, extra=2**20),
        b=Outcome("ok", ms=b, extra=2**21),
        c=Outcome("out of memory", "no 3 GiB"),
    )


def test_the_fastest_that_fits_wins_and_the_table_says_why():
    said = []
    choice = measured(three(), said)
    assert (choice.backend.name, choice.how) == ("b", "measured")
    assert choice.reason == "the fastest measured: 1.500 ms (a 3.000)"
    assert {r.name: r.reason for r in choice.refusals} == {
        "a": "measured 3.000 ms, 2.00x the fastest",
        "c": "not timed: out of memory: no 3 GiB",
    }
    table = said[-1].splitlines()
    assert [line.split()[0] for line in table] == ["loss", "b", "a", "c"]
    assert "2.00" in table[2]
    assert "no 3 GiB" in table[3]


def test_what_noise_parts_is_chosen_as_auto_does():
    choice = measured(three(a=1.54, b=1.5))
    assert choice.backend.name == "a"
    assert choice.reason == "measured 1.540 ms, within 3% of the fastest (b 1.500)"
    assert measured(three(a=1.56, b=1.5), remeasure=True).backend.name == "b"


def test_a_second_run_chooses_alike_without_timing():
    measured(three())
    again = three(a=0.1)
    assert measured(again).backend.name == "b"
    assert again.asked == []
    assert measured(again, remeasure=True).backend.name == "a"
    assert measured(Stand()).backend.name == "a"


def test_another_problem_version_or_candidate_is_measured_anew(monkeypatch):
    measured(three())
    for changes in (
        {"problem": LossProblem("cpu", 65, 32, 128, "float32")},
        {"candidates": ("a", "b")},
    ):
        stand = three()
        measured(stand, **changes)
        assert stand.asked
    monkeypatch.setattr("nanochat.measure.installed_version", lambda name: "99")
    stand = three()
    measured(stand)
    assert stand.asked == ["a", "b", "c"]


@pytest.mark.parametrize("content", ["{", '{"format": 1}', '{"format": 1, "entries": []}', "[1]"])
def test_a_broken_cache_is_told_once_and_replaced(cache, content):
    cache.parent.mkdir()
    cache.write_text(content)
    said = []
    assert measured(three(), said).backend.name == "b"
    assert sum("measuring again" in line for line in said) == 1
    assert measured(Stand()).backend.name == "b"
    assert list(cache.parent.glob(".measured-*")) == []


def test_a_broken_entry_is_measured_again(cache):
    measured(three())
    kept = json.loads(cache.read_text())
    for entry in kept["entries"].values():
        entry["rows"]["a"] = {"state": "ok"}
    cache.write_text(json.dumps(kept))
    said = []
    assert measured(three(a=1.0), said).backend.name == "a"
    assert any("cannot be used" in line for line in said)


def test_a_cache_that_cannot_be_written_is_only_told(cache):
    cache.parent.write_text("a file where a folder should be")
    said = []
    assert measured(three(), said).backend.name == "b"
    assert any(str(cache) in line for line in said)


def test_a_crash_is_not_remembered():
    crash = Stand(a=Outcome("failed", "SIGSEGV"), b=Outcome("ok", ms=1.0))
    assert measured(crash, candidates=("a", "b")).backend.name == "b"
    assert measured(three(a=0.5), candidates=("a", "b")).backend.name == "a"


def test_nothing_that_could_be_timed_is_an_error():
    stand = Stand(a=Outcome("failed", "SIGSEGV"), b=Outcome("out of memory", "no 3 GiB"))
    with pytest.raises(UsageError, match=r"a: failed: SIGSEGV; b: out of memory: no 3 GiB"):
        measured(stand, candidates=("a", "b"))


def test_ranks_without_torchrun_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    with pytest.raises(UsageError, match="needs torchrun"):
        measured(three())


RANK = """
import json, os, sys
from nanochat.backend import LossProblem, Target
from nanochat.bench.jobs import Outcome
from nanochat.builtin.loss import Chunked, Torch
from nanochat.measure import Measurer
from nanochat.registry import Registered

rank = os.environ["RANK"]
def run(job):  # stands for timing; only the first rank may come here
    assert rank == "0"
    return Outcome("ok", ms=1.0 if job.backends["loss"] == "chunked" else 2.0)

measure = Measurer(Target("cpu", "x"), device="cpu", windows=(), compile=False, run=run)
both = [Registered(b, "core", "nanochat-core", "1") for b in (Torch(), Chunked())]
winner, reason, _ = measure("loss", both, LossProblem("cpu", 8, 8, 8))
open(os.path.join(sys.argv[1], rank), "w").write(winner.backend.name)
"""


def test_all_ranks_take_the_first_ones_times(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(RANK)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*torchrun, "--nproc-per-node=2", str(script), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["chunked", "chunked"]
    assert done.stdout.count("extra peak") == 1
