"""nanochat-train with `measure` and `--verify-kernels`, as typed."""

import json

import pytest

from nanochat.bench.jobs import Outcome
from nanochat.cli.train import main

TINY = (
    "--depth=2 --aspect-ratio=16 --head-dim=16 --max-seq-len=32 --device-batch-size=2 "
    "--total-batch-size=128 --num-iterations=3 --no-compile --device=cpu --eval-every=-1 "
    "--core-metric-every=-1 --sample-every=-1 --eval-tokens=200 --save-every=0"
).split()

FAILED = {"torch": Outcome("failed", "SIGSEGV")}


@pytest.fixture
def train(tmp_path, tiny_run, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NANOCHAT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        where = [f"--data-dir={tiny_run.data}", f"--tokenizer={tiny_run.folder}"]
        status = main([*TINY, *where, *arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_the_loss_is_measured_kept_and_written_down(train, tmp_path):
    status, out, err = train("--loss=measure", "--verify-kernels", "--output=one")
    assert status == 0, err
    assert "loss: timing torch" in out
    assert "step 2: attention sdpa: proven" in out
    kept = json.loads((tmp_path / "one" / "plan.json").read_text())["loss"]
    assert kept["how"] == "measured"
    assert "the fastest measured" in kept["reason"]
    (other,) = {"torch", "chunked"} - {kept["backend"]}
    assert "x the fastest" in kept["refused"][other]
    status, out, err = train("--loss=measure", "--output=two")
    assert status == 0, err
    assert "timing" not in out
    assert json.loads((tmp_path / "two" / "plan.json").read_text())["loss"] == kept


def test_remeasure_needs_something_to_measure(train):
    status, _, err = train("--remeasure")
    assert status == 2
    assert "nothing to measure" in err


def test_nothing_that_could_be_timed_ends_the_command(train, monkeypatch):
    monkeypatch.setattr("nanochat.measure.Measurer._known_or_timed", lambda *_: FAILED)
    status, _, err = train("--loss=measure")
    assert status == 2
    assert "no loss backend could be timed: torch: failed: SIGSEGV" in err
