"""Which provider a described machine gets, and what is said of the others."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys

import pytest

from nanochat import builtin
from nanochat.backend import AttentionProblem, Target
from nanochat.plan import choose
from nanochat.registry import Registered, Registry
from nanochat_fa3 import nanochat_attention
from nanochat_fa3.backend import FlashAttention
from nanochat_fa3.providers import (
    ORDER,
    PROVIDERS,
    can_compute,
    minus_one_window,
    none_window,
    select,
)

A100 = Target("cuda", "NVIDIA A100", (8, 0))
RTX_4090 = Target("cuda", "NVIDIA GeForce RTX 4090", (8, 9))
H200 = Target("cuda", "NVIDIA H200", (9, 0))
B200 = Target("cuda", "NVIDIA B200", (10, 0))
B300 = Target("cuda", "NVIDIA B300", (10, 3))
RTX_5090 = Target("cuda", "NVIDIA GeForce RTX 5090", (12, 0))
GB10 = Target("cuda", "NVIDIA GB10", (12, 1), architecture="aarch64")
CPU = Target("cpu", "a processor")
T4 = Target("cuda", "Tesla T4", (7, 5))
FUTURE = Target("cuda", "NVIDIA X100", (14, 0))

EXPECTED_ORDER = {
    A100: ["fa2", "hub"],
    RTX_4090: ["fa2", "hub"],
    H200: ["fa3", "fa2", "fa4", "hub"],
    B200: ["fa4", "fa2"],
    B300: ["fa4", "fa2"],
    RTX_5090: ["fa2", "fa4"],
    GB10: ["fa2", "fa4"],
}


def install(site, names):
    for name in names:
        getattr(site, name)()


@pytest.mark.parametrize("target", EXPECTED_ORDER, ids=lambda t: t.name)
def test_every_set_of_installed_providers_gives_the_first_of_the_order(tmp_path, target, site):
    order = EXPECTED_ORDER[target]
    for name in reversed(order):  # one more is installed each time, the best one last
        install(site, [name])
        selection = select(target)
        assert selection.provider is not None
        assert selection.provider.name == name
        for other in PROVIDERS:
            assert other == name or f"{other}: " in selection.reason


@pytest.mark.parametrize("target", [CPU, T4, FUTURE], ids=lambda t: t.name)
def test_other_hardware_is_refused_even_where_all_are_installed(site, target):
    install(site, PROVIDERS)
    support = FlashAttention().check(target)
    assert not support.ok
    assert "sdpa" in support.remedy


def test_a_missing_provider_is_told_with_its_wheel_and_never_a_compilation(site):
    for target in EXPECTED_ORDER:
        support = FlashAttention().check(target)
        assert not support.ok
        for name in EXPECTED_ORDER[target]:
            assert f"{name}: " in support.reason
        assert "nanochat-fa3[" in support.remedy or "wheel" in support.remedy
        assert not re.search(r"pip install '?flash.attn\b(?!-4)|no-build-isolation", support.remedy)
    remedy = FlashAttention().check(H200).remedy
    assert "wheel that matches your torch" in remedy
    assert "release page of Dao-AILab/flash-attention" in remedy


def test_fa4_alone_leaves_a_namespace_package_that_is_not_fa2(site):
    install(site, ["fa4"])
    assert PROVIDERS["fa2"].find().reason == "`flash_attn` holds FlashAttention-4 only"
    assert not FlashAttention().check(A100).ok
    assert FlashAttention().check(B200).ok


def test_an_empty_namespace_folder_is_nothing_at_all(site):
    for name in ("flash_attn", "flash_attn_3", "flash_attn_interface", "kernels"):
        (site.root / name).mkdir()
    assert not any(p.find().ok for p in PROVIDERS.values())


def test_fa4_beside_fa2_in_another_folder_needs_a_package_that_extends_its_path(
    site, tmp_path_factory, monkeypatch
):
    elsewhere = tmp_path_factory.mktemp("second")
    install(site, ["fa4"])
    (site.root / "flash_attn").rename(elsewhere / "flash_attn")
    install(site, ["fa2"])
    monkeypatch.setattr(sys, "path", [*sys.path, str(elsewhere)])
    assert not PROVIDERS["fa4"].find().ok  # `import flash_attn.cute` would fail too
    site.module("flash_attn/__init__.py", "__path__ = extend_path(__path__, __name__)\n")
    assert PROVIDERS["fa4"].find().ok


@pytest.mark.parametrize(
    ("name", "gone", "said"),
    [
        ("fa2", "flash_attn_2_cuda.py", "flash_attn_2_cuda"),
        ("fa3", "flash_attn_3/_C.abi3.so", "flash_attn_3"),
        ("fa4", "quack/__init__.py", "quack"),
        ("fa4", "cutlass/cute/__init__.py", "cutlass.cute"),
    ],
)
def test_half_an_installation_is_told(site, name, gone, said):
    install(site, [name])
    (site.root / gone).unlink()
    found = PROVIDERS[name].find()
    assert not found.ok
    assert said in found.reason


@pytest.mark.parametrize(("name", "version"), [("fa2", "2.6.3"), ("hub", "0.11.7")])
def test_versions_that_are_too_old_are_refused(site, name, version):
    getattr(site, name)(version)
    found = PROVIDERS[name].find()
    assert not found.ok
    assert f"{version} is too old" in found.reason


def test_a_build_without_metadata_is_taken(site):
    site.module("flash_attn/__init__.py")
    site.module("flash_attn/flash_attn_interface.py")
    site.module("flash_attn_2_cuda.py")
    support = FlashAttention().check(GB10)
    assert support.ok
    assert "FlashAttention-2 (flash-attn of unknown version)" in support.reason


@pytest.mark.parametrize("name", ["fa4", "FA4 "])
def test_the_variable_takes_another_provider(site, monkeypatch, name):
    install(site, PROVIDERS)
    monkeypatch.setenv("NANOCHAT_FA3_PROVIDER", name)
    selection = select(H200)
    assert selection.provider is PROVIDERS["fa4"]
    assert "as NANOCHAT_FA3_PROVIDER asks" in selection.reason
    assert "fa3: not asked for" in selection.reason


def test_the_variable_never_falls_back(site, monkeypatch):
    install(site, ["fa2"])
    monkeypatch.setenv("NANOCHAT_FA3_PROVIDER", "fa3")
    support = FlashAttention().check(H200)
    assert not support.ok
    assert "asked for" in support.reason
    monkeypatch.setenv("NANOCHAT_FA3_PROVIDER", "fa5")
    assert "fa5, which is not a provider" in FlashAttention().check(H200).reason
    monkeypatch.setenv("NANOCHAT_FA3_PROVIDER", "fa3")
    support = FlashAttention().check(GB10)
    assert "fa3, which has no kernels for sm_12x" in support.reason
    assert "fa2 or fa4" in support.remedy


def registry_with(backend):
    registry = Registry()
    for built_in in builtin.nanochat_attention():
        registry.add(Registered(built_in, "builtin", "nanochat-core", "0.1.0"))
    registry.add(Registered(backend, "fa3", "nanochat-fa3", "0.1.0"))
    return registry


def problem(**changes):
    facts = {"device": "cuda", "batch": 8, "sequence_len": 2048, "heads": 10, "kv_heads": 10}
    return AttentionProblem(**{**facts, "head_dim": 128, **changes})


WINDOWS = (512, None)


@pytest.mark.parametrize(
    ("target", "installed", "windows", "chosen"),
    [
        (H200, "fa3", (None,), "fa3"),
        (H200, "fa3", WINDOWS, "fa3"),
        (H200, "fa2", (None,), "sdpa"),  # cuDNN through sdpa is faster there
        (H200, "fa2", WINDOWS, "fa3"),
        (H200, "fa4", (None,), "fa3"),
        (B200, "fa4", WINDOWS, "fa3"),
        (A100, "fa2", (None,), "fa3"),
        (GB10, "fa2", (None,), "fa3"),
        (GB10, "fa4", (None,), "sdpa"),  # in doubt: only if asked for
        (GB10, "fa4", WINDOWS, "flex"),
        (RTX_4090, "hub", WINDOWS, "flex"),  # never a download that nobody asked for
        (H200, "", WINDOWS, "flex"),
    ],
    ids=str,
)
def test_auto_takes_it_where_it_is_the_best(site, target, installed, windows, chosen):
    install(site, installed.split())
    choice = choose(
        registry_with(FlashAttention()), "attention", "auto", target, problem(windows=windows)
    )
    assert choice.backend.name == chosen


def test_the_plan_names_the_provider_and_why_not_the_others(site):
    install(site, ["fa2", "hub"])
    plan = choose(
        registry_with(FlashAttention()), "attention", "auto", H200, problem(windows=WINDOWS)
    ).as_dict()
    assert "FlashAttention-2 (flash-attn 2.8.4)" in plan["reason"]
    assert "fa3: flash_attn_interface is not installed" in plan["reason"]
    assert "hub: behind fa2" in plan["reason"]


@pytest.mark.parametrize(
    ("target", "name", "changes", "ok"),
    [
        (H200, "fa3", {}, True),
        (H200, "fa3", {"dtype": "float16"}, True),
        (H200, "fa3", {"dtype": "float32"}, False),
        (H200, "fa3", {"head_dim": 60}, False),
        (H200, "fa3", {"head_dim": 256}, True),
        (H200, "fa3", {"head_dim": 264}, False),
        (H200, "fa4", {"head_dim": 192}, True),
        (H200, "fa4", {"head_dim": 80}, False),
        (H200, "fa3", {"head_dim": 80}, True),
        (B200, "fa4", {"head_dim": 192}, False),
        (B200, "fa4", {"head_dim": 256}, True),
        (GB10, "fa4", {"head_dim": 256}, False),
        (GB10, "fa2", {"head_dim": 256}, True),
        (GB10, "fa2", {"training": False, "kv_heads": 2}, True),
    ],
    ids=str,
)
def test_what_it_can_compute(site, target, name, changes, ok):
    install(site, [name])
    backend = FlashAttention()
    assert backend.check(target).ok
    support = backend.supports(problem(**changes))
    assert support.ok is ok
    assert support.reason
    assert support.ok or support.remedy
    assert support == can_compute(select(target), problem(**changes))


def test_patterns_follow_the_provider(site):
    backend = FlashAttention()
    fa2 = "void flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Flash_bwd_kernel_traits<128>>"
    fa3 = "void cutlass::device_kernel<flash::enable_sm90<flash::FlashAttnBwdSm90<flash::Mainloop>>"
    fa4 = "kernel_cutlass_kernel_flash_attncuteflash_bwd_sm90FlashAttentionBackwardSm90_object_at_"
    for name, target, kernel in (
        ("hub", A100, fa2),
        ("fa2", A100, fa2),
        ("hub", H200, fa2),
        ("fa4", B200, fa4),
        ("fa3", H200, fa3),
    ):
        install(site, [] if (site.root / "kernels").exists() and name == "hub" else [name])
        backend.check(target)
        patterns = backend.kernels
        assert any(re.search(p, kernel) for p in patterns.backward), name
        assert not any(re.search(p, kernel) for p in patterns.forward), name
        assert not any(re.search(p, "cunn_SoftMaxForward") for p in patterns.forward)


def test_standings_cover_the_order_and_what_is_in_doubt_is_checked():
    for family, order in ORDER.items():
        for name in order:
            standing = PROVIDERS[name].standings[family]
            assert bool(standing.doubt) is standing.checked
    assert PROVIDERS["fa4"].standings[12].checked
    assert all(s.checked for s in PROVIDERS["hub"].standings.values())
    assert not PROVIDERS["fa3"].standings[9].checked


def test_windows_are_translated_for_each_provider():
    for window, provider in itertools.product([None, *range(2049)], PROVIDERS.values()):
        left, right = provider.window(window)
        if window is not None:
            assert (left, right) == (window, 0)
        else:
            nothing = None if provider.name == "fa4" else -1
            assert (left, right) == (nothing, nothing)
    assert PROVIDERS["fa4"].window is none_window
    assert PROVIDERS["fa3"].window is minus_one_window


def test_the_plugin_imports_neither_torch_nor_a_provider():
    code = (
        "import sys, nanochat_fa3 as p; from nanochat.backend import Target;"
        "b, = p.nanochat_attention(); b.check(Target('cuda', 'x', (9, 0)));"
        "bad = {'torch', 'flash_attn', 'kernels', 'flash_attn_interface'} & set(sys.modules);"
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_hook_gives_one_backend_that_the_registry_takes():
    from nanochat.registry import _reason_to_refuse

    (backend,) = nanochat_attention()
    assert _reason_to_refuse(Registry(), "attention", backend) is None


def test_a_question_about_a_cpu_forgets_nothing_of_the_gpu(site):
    """The conformance suite asks about every device of the machine before it loads."""
    site.fa4()
    backend = FlashAttention()
    assert backend.check(H200).ok
    assert not backend.check(CPU).ok
    assert backend.supports(AttentionProblem("cuda", 1, 128, 2, 2, 64)).ok
    assert "Forward" in backend.kernels.forward[0]
