"""What the backend says of described machines and versions; nothing is imported for it."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

import nanochat_liger
from nanochat.backend import LossProblem, Target
from nanochat.errors import UsageError
from nanochat.plan import choose
from nanochat.registry import Registered, discover
from nanochat_liger.backend import Liger
from nanochat_liger.upstream import arguments_of, missing_arguments

H200 = Target("cuda", "NVIDIA H200", (9, 0), memory=141 * 10**9, architecture="x86_64")
GB10 = Target("cuda", "NVIDIA GB10", (12, 1), memory=128 * 10**9, architecture="aarch64")
A100 = Target("cuda", "NVIDIA A100-SXM4-80GB", (8, 0), memory=80 * 2**30)
B200 = Target("cuda", "NVIDIA B200", (10, 0), memory=180 * 10**9)
T4 = Target("cuda", "Tesla T4", (7, 5), memory=16 * 2**30)
CPU = Target("cpu", "a processor", memory=2**34)
APPLE = Target("mps", "Apple M3", architecture="arm64")
TPU = Target("tpu", "TPU", generation="v6e", count=4)


def problem(**changes):
    facts = {"device": "cuda", "tokens": 8192, "hidden": 1280, "vocab": 65536, "softcap": 15.0}
    return LossProblem(**{**facts, **changes})


@pytest.fixture
def registry():
    registry = discover("")
    (backend,) = nanochat_liger.nanochat_loss()
    registry.add(Registered(backend, "liger", "nanochat-liger", nanochat_liger.__version__))
    return registry


@pytest.mark.parametrize("target", [H200, GB10, A100, B200, T4, CPU, APPLE, TPU], ids=str)
def test_auto_prefers_the_builtins_everywhere(install, registry, target):
    install()
    choice = choose(registry, "loss", "auto", target, problem(device=target.kind))
    assert choice.backend.name == ("torch" if target is APPLE else "chunked")


@pytest.mark.parametrize("target", [H200, GB10, A100, B200], ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_by_name_it_runs_on_nvidia(install, registry, target, dtype):
    install()
    choice = choose(registry, "loss", "liger", target, problem(dtype=dtype, tokens=2**20))
    assert choice.backend.name == "liger"
    assert not choice.warning


@pytest.mark.parametrize("target", [T4, CPU, APPLE, TPU, Target("cuda", "unknown")], ids=str)
def test_by_name_where_it_cannot_run_ends_with_the_reason(install, registry, target):
    install()
    with pytest.raises(
        UsageError, match=r"'liger' cannot run here: .*(NVIDIA GPU|capability 8\.0)"
    ):
        choose(registry, "loss", "liger", target, problem(device=target.kind))


def test_not_installed_names_the_command(registry, monkeypatch):
    monkeypatch.setattr("nanochat.backend.installed_version", lambda name: None)
    with pytest.raises(UsageError, match="liger-kernel is not installed") as error:
        choose(registry, "loss", "liger", H200, problem())
    assert error.value.remedy == "pip install 'liger-kernel>=0.8.5'"


def test_packaging_which_upstream_does_not_declare_is_asked_for():
    assert "packaging" in [r.distribution for r in Liger.requires]


def test_signatures_without_the_shields_are_refused(install):
    install("0.9", "_input, weight, target, ignore_index, reduction, softcap, accum_dtype")
    support = Liger().check(H200)
    assert "liger-kernel 0.9 does not take compute_gradients, token_grad_output" in support.reason
    assert support.remedy == "pip install 'liger-kernel==0.8.5'"


def test_unreadable_sources_are_refused(install):
    source = install()
    assert Liger().check(H200)
    arguments_of.cache_clear()
    source.write_text("def (:")
    assert not Liger().check(H200)
    arguments_of.cache_clear()
    source.unlink()
    assert not Liger().check(H200)


def test_other_dtypes_are_refused():
    assert "not in float64" in Liger().supports(problem(dtype="float64")).reason


@pytest.mark.parametrize(("value", "float32"), [("", False), ("weight", False), ("Float32", True)])
def test_the_environment_chooses(monkeypatch, value, float32):
    monkeypatch.setenv("NANOCHAT_LIGER_ACCUMULATE", value)
    assert Liger()._accumulates_float32() is float32
    assert Liger(accumulate_float32=not float32)._accumulates_float32() is not float32


def test_a_senseless_environment_is_refused(install, registry, monkeypatch):
    install()
    monkeypatch.setenv("NANOCHAT_LIGER_ACCUMULATE", "bf16")
    with pytest.raises(UsageError, match="NANOCHAT_LIGER_ACCUMULATE is 'bf16'"):
        choose(registry, "loss", "liger", H200, problem())


def test_the_entry_module_is_light():
    code = "import nanochat_liger, sys, json; nanochat_liger.nanochat_loss(); print(json.dumps("
    code += "[m for m in ('torch', 'triton', 'liger_kernel') if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.skipif(find_spec("liger_kernel") is None, reason="liger-kernel is not installed")
def test_the_installed_version_takes_every_argument():
    assert not missing_arguments()
