"""What the plugin says of machines with and without TPUs. Needs neither torch_xla nor jax."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from nanochat import builtin
from nanochat.backend import AttentionProblem, Support, Target
from nanochat.plan import choose
from nanochat.registry import Registered, Registry
from nanochat_xla import nanochat_attention, nanochat_device, stacks
from nanochat_xla.hardware import GENERATIONS, find_chips

V6E = Target("tpu", "TPU v6e", generation="v6e", memory=32 * 2**30, count=4)
CPU = Target("cpu", "a processor")

TORCH_XLA = {
    "torch_xla": "2.9.0",
    "torch": "2.9.1",
    "jax": "0.7.0",
    "jaxlib": "0.7.0",
    "libtpu": "0.0.21",
}
TORCH_TPU = {"torch-tpu": "0.2.0", "torch": "2.13.0", "jax": "0.10.2", "libtpu": "0.0.52"}


@pytest.fixture
def environment(monkeypatch):
    """Say which distributions are installed, in the eyes of `Requirement` and of the stacks."""

    def install(**versions: str) -> None:
        found = {name.replace("_", "-"): version for name, version in versions.items()}

        def version_of(distribution: str) -> str | None:
            return found.get(distribution.replace("_", "-"))

        monkeypatch.setattr("nanochat.backend.installed_version", version_of)
        monkeypatch.setattr("nanochat_xla.stacks.installed_version", version_of)

    return install


def pallas():
    (backend,) = nanochat_attention()
    return backend


def problem(**changes):
    facts = {"device": "tpu", "batch": 1, "sequence_len": 16384, "heads": 8, "kv_heads": 8}
    return AttentionProblem(**{**facts, "head_dim": 128, "windows": (4096, None), **changes})


def test_each_stack_is_recognised(environment):
    environment(**TORCH_XLA)
    assert stacks.installed() is stacks.TORCH_XLA
    environment(**TORCH_TPU)
    assert stacks.installed() is stacks.TORCH_TPU


def test_no_stack_names_the_extra_that_brings_one(environment):
    environment(torch="2.13.0")
    support = pallas().check(V6E)
    assert not support.ok
    assert support.remedy == "pip install 'nanochat-xla[torch-xla]'"


@pytest.mark.parametrize(
    ("versions", "told"),
    [
        ({**TORCH_XLA, "jax": "0.7.1", "jaxlib": "0.7.1"}, "jax 0.7.1 is installed, ==0.7.0"),
        ({**TORCH_XLA, "libtpu": "0.0.52"}, "libtpu 0.0.52"),
        ({**TORCH_XLA, "torch": "2.13.0"}, "torch 2.13.0"),
        ({k: v for k, v in TORCH_XLA.items() if k != "jax"}, "jax is not installed"),
        ({**TORCH_TPU, "jax": "0.7.0"}, "jax 0.7.0"),
        ({**TORCH_XLA, **TORCH_TPU}, "both installed"),
    ],
    ids=["the broken pair", "libtpu", "torch", "no jax", "old jax", "both"],
)
def test_versions_that_do_not_fit_are_refused(environment, versions, told):
    environment(**versions)
    support = stacks.installed()
    assert isinstance(support, Support)
    assert not support.ok
    assert told in support.reason
    assert support.remedy


@pytest.mark.parametrize(
    ("changes", "ok"),
    [
        ({}, True),
        ({"dtype": "float32"}, True),
        ({"dtype": "float16"}, False),
        ({"head_dim": 256}, True),
        ({"head_dim": 512}, False),
        ({"kv_heads": 2}, True),
        ({"kv_heads": 3}, False),
        ({"sequence_len": 1000}, True),
        ({"training": False}, True),
    ],
    ids=str,
)
def test_what_it_can_compute(environment, changes, ok):
    environment(**TORCH_XLA)
    backend = pallas()
    assert backend.check(V6E).ok
    support = backend.supports(problem(**changes))
    assert support.ok is ok
    assert support.reason
    assert support.ok or support.remedy


def test_the_plan_says_which_blocks_it_takes(environment):
    environment(**TORCH_XLA)
    backend = pallas()
    backend.check(V6E)
    reason = backend.supports(problem()).reason
    assert reason == "window 4096 in blocks of 512 x 512, full context in blocks of 1024 x 512"
    assert "rows padded from 1000 to 1024" in backend.supports(problem(sequence_len=1000)).reason


def test_a_processor_is_refused_and_its_xla_device_discouraged(environment):
    environment(**TORCH_XLA)
    refused = pallas().check(CPU)
    assert not refused.ok
    assert refused.remedy == "Use --attention sdpa"
    host = pallas().check(Target("xla", "the processor behind XLA"))
    assert host.ok
    assert host.discouraged


@pytest.mark.parametrize(
    ("kind", "asked", "chosen"),
    [
        ("tpu", "auto", "pallas"),
        ("tpu", "xla-flash", "pallas"),
        ("xla", "auto", "sdpa"),
        ("xla", "pallas", "pallas"),
    ],
)
def test_the_plan_takes_it_on_tpus(environment, kind, asked, chosen):
    environment(**TORCH_XLA)
    registry = Registry()
    for backend in builtin.nanochat_attention():
        registry.add(Registered(backend, "builtin", "nanochat-core", "0.1.0"))
    registry.add(Registered(pallas(), "xla", "nanochat-xla", "0.1.0"))
    target = V6E if kind == "tpu" else Target("xla", "the processor behind XLA")
    choice = choose(registry, "attention", asked, target, problem(device=kind))
    assert choice.backend.name == chosen
    assert bool(choice.warning) is (kind == "xla" and chosen == "pallas")
    if kind == "tpu":
        assert "window 4096 in blocks of 512 x 512" in choice.reason


def chips(folder, *ids, vendor="0x1ae0"):
    for index, device in enumerate(ids):
        place = folder / f"0000:00:{index:02x}.0"
        place.mkdir()
        (place / "vendor").write_text(vendor + "\n")
        (place / "device").write_text(device + "\n")


def test_chips_are_found_on_the_pci_bus(tmp_path):
    chips(tmp_path, *["0x006f"] * 4)
    assert find_chips(tmp_path) == ("v6e",) * 4


@pytest.mark.parametrize(
    ("vendor", "device", "found"),
    [
        ("0x1ae0", "0x0062", ("v5p",)),
        ("0x1ae0", "0x0063", ("v5e",)),
        ("0x1ae0", "0x0042", ()),  # Google's network card
        ("0x10de", "0x006f", ()),
    ],
)
def test_other_devices_are_told_apart(tmp_path, vendor, device, found):
    chips(tmp_path, device, vendor=vendor)
    assert find_chips(tmp_path) == found


def test_a_machine_without_a_pci_bus_has_no_chips(tmp_path):
    assert find_chips(tmp_path / "none") == ()


def test_each_generation_has_its_peak_rate(environment):
    (device,) = nanochat_device()
    for name, generation in GENERATIONS.items():
        target = Target("tpu", f"TPU {name}", generation=name)
        assert device.peak_flops(target, "bfloat16") == generation.flops
        assert device.peak_flops(target, "float8") is None
    assert device.peak_flops(Target("tpu", "TPU v9", generation="v9"), "bfloat16") is None


def run(*arguments, **variables):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("NANOCHAT", "PJRT"))}
    return subprocess.run(
        [sys.executable, "-m", "nanochat.cli.train", *arguments],
        env=env | variables,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def listing():
    """The backends of this machine, which has no TPU, as the command line lists them."""
    if find_chips():
        pytest.skip("this machine has a TPU")
    done = run("--list-backends", "--json")
    assert done.returncode == 0, done.stderr
    return {(row["hook"], row["name"]): row for row in json.loads(done.stdout)}


def test_the_listing_says_what_keeps_each_from_running(listing):
    device, attention = listing["device", "tpu"], listing["attention", "pallas"]
    assert (device["state"], attention["state"]) == ("unavailable", "unavailable")
    assert "no TPU chip is on the PCI bus" in device["reason"]
    assert "its kernels need a TPU" in attention["reason"]
    assert device["remedy"]
    assert attention["remedy"]
    assert set(attention["capabilities"]) == {"gqa", "window", "kvcache", "documents"}


@pytest.mark.parametrize(
    "flags",
    [["--device", "tpu"], ["--attention", "pallas"], ["--xla_flash_attn"], ["--xla-flash-attn"]],
    ids=" ".join,
)
def test_what_was_asked_for_by_name_fails_without_a_tpu(listing, flags):
    device = [] if "--device" in flags else ["--device", "cpu"]
    done = run("--list-backends", *device, *flags)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert "cannot run here: " in line


def test_the_plugin_imports_neither_torch_nor_a_stack():
    code = (
        "import sys, nanochat_xla as p; from nanochat.backend import Target;"
        "b, = p.nanochat_attention(); d, = p.nanochat_device();"
        "b.check(Target('tpu', 'x', generation='v6e')); d.probe(); d.absent();"
        "bad = {'torch', 'jax', 'torch_xla', 'torch_tpu', 'libtpu'} & set(sys.modules);"
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
