"""What the backend says of described machines and versions; nothing is imported for it."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

import nanochat_cce
from nanochat.backend import LossProblem, Target, installed_version
from nanochat.errors import UsageError
from nanochat.plan import choose
from nanochat.registry import Registered, discover
from nanochat_cce.backend import CutCrossEntropy
from nanochat_cce.options import Options, options_from_environment
from nanochat_cce.upstream import features_of, installed_features

H200 = Target("cuda", "NVIDIA H200", (9, 0), memory=141 * 10**9, architecture="x86_64")
GB10 = Target("cuda", "NVIDIA GB10", (12, 1), memory=128 * 10**9, architecture="aarch64")
RTX = Target("cuda", "NVIDIA GeForce RTX 5090", (12, 0), memory=32 * 2**30)
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
    (backend,) = nanochat_cce.nanochat_loss()
    registry.add(Registered(backend, "cce", "nanochat-cce", nanochat_cce.__version__))
    return registry


@pytest.mark.parametrize(
    ("target", "chosen"),
    [
        (H200, "chunked"),
        (A100, "chunked"),
        (B200, "chunked"),
        (GB10, "cce"),
        (RTX, "cce"),
        (T4, "chunked"),
        (CPU, "chunked"),
        (APPLE, "torch"),
        (TPU, "chunked"),
    ],
    ids=str,
)
def test_auto_follows_the_measurements(install, registry, target, chosen):
    install()
    choice = choose(registry, "loss", "auto", target, problem(device=target.kind))
    assert choice.backend.name == chosen
    assert not choice.warning


@pytest.mark.parametrize("target", [T4, CPU, APPLE, TPU, Target("cuda", "unknown")], ids=str)
def test_by_name_where_it_cannot_run_ends_with_the_reason(install, registry, target):
    install()
    with pytest.raises(UsageError, match=r"'cce' cannot run here: .*(NVIDIA GPU|capability 8\.0)"):
        choose(registry, "loss", "cce", target, problem(device=target.kind))


def test_not_installed_names_the_command(install, registry, monkeypatch):
    monkeypatch.setattr("nanochat.backend.installed_version", lambda name: None)
    with pytest.raises(UsageError, match="cut-cross-entropy is not installed") as error:
        choose(registry, "loss", "cce", GB10, problem())
    assert error.value.remedy == "pip install 'cut-cross-entropy>=25.1'"


def test_the_release_says_what_it_lacks(install, registry):
    install()
    choice = choose(registry, "loss", "auto", GB10, problem())
    assert "25.1.1 lacks the barrier" in choice.reason
    assert "pip install 'cut-cross-entropy @ git+" in choice.reason
    backend = CutCrossEntropy()
    assert not backend.supports(problem(dtype="float32"))
    assert not backend.supports(problem(tokens=2**21))  # 2^21 x 1280 passes 2^31
    assert backend.supports(problem(dtype="float16"))
    asked = CutCrossEntropy(Options(accumulate_float32=True)).check(GB10)
    assert "ACCUMULATE=float32 needs" in asked.reason


def test_the_main_branch_lacks_nothing(install_main):
    install_main()
    backend = CutCrossEntropy(Options(accumulate_float32=True))
    assert backend.check(GB10).ok
    assert backend.check(GB10).reason == ""
    assert backend.supports(problem(dtype="float32"))
    assert backend.supports(problem(tokens=2**21))
    assert not backend.supports(problem(dtype="float64"))


def test_unknown_signatures_are_refused(install):
    install("26.1", "do, e, c, a_new_world")
    support = CutCrossEntropy().check(GB10)
    assert "26.1 has no cce_backward_kernel" in support.reason
    assert support.remedy == "pip install 'cut-cross-entropy==25.1.1'"


@pytest.mark.parametrize("broken", ["cce_backward.py", "tl_utils.py"])
def test_unreadable_sources_are_refused(install, broken):
    package = install()
    (package / broken).write_text("def (:")
    assert not CutCrossEntropy().check(GB10)
    features_of.cache_clear()
    (package / broken).unlink()
    assert not CutCrossEntropy().check(GB10)


def test_small_softcaps_need_whole_tiles(install):
    install()
    backend = CutCrossEntropy()
    refused = backend.supports(problem(softcap=5.0, vocab=1000))
    assert "counts the padding" in refused.reason
    assert "multiple of 256" in refused.remedy
    assert backend.supports(problem(softcap=5.0, vocab=1024))
    assert backend.supports(problem(softcap=15.0, vocab=1000))
    assert backend.supports(problem(softcap=None, vocab=1000))


@pytest.mark.parametrize(
    ("filter_eps", "accumulate", "options"),
    [
        (None, None, Options("auto", False)),
        ("auto", "input", Options("auto", False)),
        ("None", "FLOAT32", Options(None, True)),
        ("1e-3", None, Options(1e-3, False)),
    ],
)
def test_the_environment_chooses(monkeypatch, filter_eps, accumulate, options):
    for name, value in (("FILTER_EPS", filter_eps), ("ACCUMULATE", accumulate)):
        if value is None:
            monkeypatch.delenv(f"NANOCHAT_CCE_{name}", raising=False)
        else:
            monkeypatch.setenv(f"NANOCHAT_CCE_{name}", value)
    assert options_from_environment() == options


@pytest.mark.parametrize(
    ("variable", "value"),
    [("FILTER_EPS", "high"), ("FILTER_EPS", "-1"), ("FILTER_EPS", "nan"), ("ACCUMULATE", "bf16")],
)
def test_a_senseless_environment_is_refused(install, registry, monkeypatch, variable, value):
    install()
    monkeypatch.setenv(f"NANOCHAT_CCE_{variable}", value)
    with pytest.raises(UsageError, match=f"NANOCHAT_CCE_{variable} is '{value}'"):
        choose(registry, "loss", "cce", GB10, problem())


def test_the_entry_module_is_light():
    code = "import nanochat_cce, sys, json; nanochat_cce.nanochat_loss(); print(json.dumps("
    code += "[m for m in ('torch', 'triton', 'cut_cross_entropy') if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.skipif(
    find_spec("cut_cross_entropy") is None, reason="cut-cross-entropy is not installed"
)
def test_the_installed_version_is_known():
    """The signature that is read is the one that runs, which the interpreted tests call."""
    features = installed_features()
    assert features is not None
    assert features.known, installed_version("cut-cross-entropy")
    if installed_version("cut-cross-entropy") == "25.1.1":
        assert len(features.missing) == 3
