"""Rows in processes of their own, and the command as typed."""

import json
import os

import pytest

from nanochat.backend import LossProblem
from nanochat.bench import report
from nanochat.bench.jobs import Job, Outcome, environment, run_job
from nanochat.cli.bench import main

TINY = (
    "--device=cpu --no-compile --repeats=2 --warmup=0 --depth=2 --aspect-ratio=16 --head-dim=16 "
    "--max-seq-len=32 --device-batch-size=2 --vocab-size=64"
).split()

PLUGIN = """
import os
from nanochat import hookimpl
from nanochat.backend import LossBackend

class Toy(LossBackend):
    name = "toy"
    summary = "a toy"
    def linear_cross_entropy(self, hidden, weight, targets, **options):
        {body}

@hookimpl
def nanochat_loss():
    return [Toy()]
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Install a loss backend `toy` for child processes; its body is what it computes."""

    def install(body):
        info = tmp_path / "toy-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[nanochat]\ntoy = toybenchplugin\n")
        (tmp_path / "toybenchplugin.py").write_text(PLUGIN.format(body=body))
        path = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in path if p))

    return install


def job(name, **changes):
    problem = LossProblem("cpu", 32, 16, 64, "float32")
    return Job(
        "loss",
        {"loss": name},
        device="cpu",
        problem=vars(problem),
        compile=False,
        warmup=0,
        repeats=2,
        **changes,
    )


@pytest.mark.parametrize(
    ("body", "state", "told"),
    [
        ("os.abort()", "failed", "SIGABRT"),
        ("raise ZeroDivisionError('by zero')", "failed", "ZeroDivisionError: by zero"),
        ("import torch; raise torch.OutOfMemoryError('no 3 GiB')", "out of memory", "no 3 GiB"),
    ],
)
def test_what_goes_wrong_is_a_row(plugin, body, state, told):
    plugin(body)
    outcome = run_job(job("toy"))
    assert outcome.state == state
    assert told in outcome.reason


def test_a_row_that_takes_too_long_is_stopped(plugin):
    plugin("import time; time.sleep(600)")
    outcome = run_job(job("toy"), timeout=2)
    assert (outcome.state, outcome.reason) == ("failed", "it was stopped after 2 s")


def test_a_row_knows_nothing_of_the_ranks_around_it():
    around = {"RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x", "HOME": "/h"}
    assert environment(around) == {"HOME": "/h", "PYTHONSAFEPATH": "1"}


def test_step_compares_the_cross_product(capsys, tmp_path):
    picture = tmp_path / "times.png"
    status = main(
        ["step", *TINY, "--loss=torch,chunked", "--attention=sdpa", "--json", f"--plot={picture}"]
    )
    rows = json.loads(capsys.readouterr().out)
    assert status == 0
    assert [row["backends"]["loss"] for row in rows] == ["torch", "chunked"]
    plain, chunked = rows
    assert plain["tokens_per_second"] == pytest.approx(64 / (plain["ms"] / 1e3))
    assert plain["evidence"] == "operators"
    assert {v["hook"]: v["state"] for v in plain["verdicts"]} == {
        "attention": "proven",
        "loss": "proven",
        "quantization": "nothing to prove",
    }
    assert plain["shares"]["optimiser"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert chunked["proof"] == "proven"


def test_rows_of_several_documents(capsys):
    arguments = ["--depth=1", "--max-seq-len=64", "--device-batch-size=1", "--device=cpu"]
    short = [*arguments, "--no-compile", "--repeats=1", "--warmup=1", "--document-mask"]
    assert main(["attention", *short, "--attention=sdpa"]) == 0
    assert "documents of 512 on average" in capsys.readouterr().out
    assert main(["step", *short, "--vocab-size=300", "--aspect-ratio=32", "--head-dim=16"]) == 0


def test_attention_rows_and_refusals_are_a_table(capsys):
    assert main(["attention", *TINY, "--attention=sdpa,flex"]) == 0
    out = capsys.readouterr().out
    assert "| sdpa |" in out
    assert "refused: attention 'flex' cannot run here: flex_attention has no backward pass" in out


def test_unproven_is_status_3(capsys, monkeypatch):
    verdict = {"hook": "loss", "backend": "torch", "state": "unproven", "reason": "not seen"}
    stand_in = Outcome("ok", ms=1.0, verdicts=(verdict,), shares={"quantise and transpose": 0.2})
    monkeypatch.setattr(report, "profiles", lambda rows, top: "")
    monkeypatch.setattr("nanochat.cli.bench.run_job", lambda job: stand_in)
    assert main(["loss", *TINY, "--loss=torch"]) == 3
    out = capsys.readouterr().out
    assert "loss torch is unproven: not seen" in out
    assert "20.0% of the time goes into quantising" in out


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["loss", "--loss=nonsense"], "no loss backend is called 'nonsense'"),
        (["dance"], "invalid choice"),
        (["loss", "--plot=/no/such/folder/x.png"], "there is no folder"),
        (["loss", "--repeats=0"], "--repeats is 0"),
        (["loss", "--loss=,"], "--loss names nothing"),
    ],
)
def test_wrong_use_is_told(typed, told, capsys):
    assert main([typed[0], *TINY, *typed[1:]]) == 2
    assert told in capsys.readouterr().err


def test_nsys_must_be_there(capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert main(["loss", *TINY, "--profiler=nsys"]) == 2
    assert "there is no nsys on the PATH" in capsys.readouterr().err
