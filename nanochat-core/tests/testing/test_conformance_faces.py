"""The three ways to run the suite: from Python, as a command, and as a plugin's test."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.backend import LossBackend, Support
from nanochat.builtin.loss import Torch
from nanochat.cli import check as command
from nanochat.cli.train import main
from nanochat.errors import UsageError
from nanochat.registry import Registered, discover
from nanochat.testing import run_checks

PLUGIN = """
from nanochat import hookimpl
from nanochat.backend import Support
from nanochat.builtin.loss import Torch

class Fast(Torch):
    name = "fast"
    aliases = ()

class Wrong(Fast):
    name = "wrong"

    def linear_cross_entropy(self, *tensors, ignore_index=-1, **options):
        return super().linear_cross_entropy(*tensors, ignore_index=-7, **options)

class Elsewhere(Fast):
    name = "elsewhere"

    def check(self, target):
        return Support.no(f"it needs a quantum computer, this is {target.kind}", "Buy one")

    def load(self):
        raise AssertionError("what cannot run is not loaded")

class NoRemedy(Elsewhere):
    name = "no-remedy"

    def check(self, target):
        return Support.no("no")

@hookimpl
def nanochat_loss():
    return [Fast(), Wrong(), Elsewhere(), NoRemedy()]
"""

TESTS = """
from nanochat.testing import LossConformance

class TestFast(LossConformance):
    backend = "fast"

class TestWrong(LossConformance):
    backend = "wrong"

class TestElsewhere(LossConformance):
    backend = "elsewhere"

class TestNoRemedy(LossConformance):
    backend = "no-remedy"
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with an installed plugin and its conformance tests."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "nanochat_fast.py").write_text(PLUGIN)
    (folder / "test_fast.py").write_text(TESTS)
    info = folder / "nanochat_fast-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nanochat-fast\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[nanochat]\nfast = nanochat_fast\n")
    return folder


def run(site, *arguments):
    path = os.pathsep.join([str(site), *(p for p in sys.path if p)])
    variables = {
        **os.environ,
        "PYTHONPATH": path,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "NANOCHAT_PLUGINS": "fast",
    }
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=site,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_plugins_test_is_a_class_with_a_name(site):
    """With the plugin that pip installs named by hand, so that it need not be installed here."""
    done = run(
        site,
        *("pytest", "-p", "nanochat.testing.plugin", "-p", "no:cacheprovider", "-rfs"),
        *("--nanochat-device", "cpu", "-k", "ignored_rows or operators"),
    )
    told = " ".join(done.stdout.split())
    assert done.returncode == 1, done.stdout + done.stderr
    assert "TestFast::test_conforms[ignored_rows]" not in told  # the ones that fail are listed
    assert "FAILED test_fast.py::TestWrong::test_conforms[ignored_rows]" in told
    assert "12 of 15: mean, 30% of rows at -1: " in told
    assert "not applicable: it lists no custom operators" in told
    assert "loss 'elsewhere' cannot run on" in told
    assert "it needs a quantum computer, this is cpu. Buy one" in told
    assert "nanochat: not checked on this machine" in told
    assert "FAILED test_fast.py::TestNoRemedy::test_conforms[ignored_rows]" in told
    assert "without a remedy" in told


def test_importing_the_suite_and_its_plugin_is_light(site):
    code = (
        "import sys, nanochat.testing, nanochat.testing.plugin, nanochat.cli.check;"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        check=False,
    )
    assert done.returncode == 0


def test_from_python_a_refusal_is_one_result():
    (result,) = run_checks("attention", "flex", device="cpu")
    assert (result.outcome, result.check) == ("refused", "machine")
    assert "no backward pass on cpu" in result.detail
    assert "Use --attention sdpa" in result.detail


def test_unknown_names_and_devices_are_wrong_use():
    with pytest.raises(UsageError, match=r"no loss backend is called 'ccee' \(there are: torch"):
        list(run_checks("loss", "ccee"))
    with pytest.raises(UsageError, match="no device backend is called 'quantum'"):
        list(run_checks("loss", "torch", device="quantum"))


def test_the_command_prints_a_table_and_succeeds(capsys):
    assert main(["--check-backends", "device:cpu", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["device:cpu", "facts", "passed"]
    assert lines[1].split()[:3] == ["device:cpu", "computes", "passed"]
    assert "2 passed (on " in lines[-1]


def test_the_command_refuses_unknown_names(capsys):
    assert main(["--check_backends", "loss:torch", "loss:nonsense"]) == 2
    err = capsys.readouterr().err
    assert "no backend is called 'loss:nonsense'" in err
    assert "loss:chunked" in err


def test_a_named_backend_that_cannot_run_is_no_success(capsys):
    assert main(["--check-backends", "attention:flex", "--device", "cpu"]) == 1
    captured = capsys.readouterr()
    assert "refused" in captured.out
    assert "error: attention 'flex' cannot run on" in captured.err


class Wrong(Torch):
    name = "wrong"
    aliases = ("mistaken",)

    def linear_cross_entropy(self, *tensors, **options):
        return super().linear_cross_entropy(*tensors, **options) * 2


class NotLoading(LossBackend):
    name = "not-loading"
    summary = "a loss"

    def load(self):
        raise OSError("libcudart.so.12: cannot open")


class Missing(LossBackend):
    name = "missing"
    summary = "a loss"

    def check(self, target):
        return Support.no("there is none", "Get one")


@pytest.fixture
def registry(monkeypatch):
    """The core's backends and some faulty ones, with the slow checks left out."""
    from nanochat.testing import catalogue

    registry = discover("")
    for backend in (Wrong(), NotLoading(), Missing()):
        registry.add(Registered(backend, "test", "nanochat-test", "1.0"))
    monkeypatch.setattr(command, "discover", lambda: registry)
    every = catalogue.checks
    monkeypatch.setattr(
        catalogue,
        "checks",
        lambda hook: tuple(c for c in every(hook) if c.name in ("reductions", "operators")),
    )
    return registry


def test_a_failing_check_ends_with_status_1(registry):
    out = io.StringIO()
    assert command.check(["mistaken", "loss:torch"], device="cpu", out=out) == 1
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("loss:wrong")
    assert "failed" in lines[0]
    assert "mean, softcap None: the loss is" in lines[0]
    assert any(line.startswith("loss:torch") and "passed" in line for line in lines)
    assert "1 failed" in lines[-1]


def test_a_backend_that_does_not_load_is_a_failure_of_its_own(registry):
    out = io.StringIO()
    assert command.check(["loss:not-loading", "loss:torch"], device="cpu", out=out) == 1
    assert "cannot open" in out.getvalue()
    assert "1 failed" in out.getvalue()


def test_a_whole_hook_may_hold_what_cannot_run_here(registry, capsys):
    """Asked about everything, a refusal is an answer; and JSON holds the same results."""
    found = [r for r in registry.backends("loss") if r.backend.name in ("torch", "missing")]
    registry._backends["loss"][:] = found
    out = io.StringIO()
    assert command.check(["loss"], device="cpu", as_json=True, out=out) == 0
    assert not capsys.readouterr().err
    results = json.loads(out.getvalue())
    assert [(r["backend"], r["check"], r["outcome"]) for r in results] == [
        ("torch", "reductions", "passed"),
        ("torch", "operators", "not applicable"),
        ("missing", "machine", "refused"),
    ]
