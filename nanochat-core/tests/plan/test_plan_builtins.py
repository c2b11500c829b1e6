"""What the core's own backends say of machines that the tests only describe."""

import subprocess
import sys

import pytest

from nanochat.backend import DeviceProblem, Target
from nanochat.builtin.devices import Cpu, Cuda, Mps
from nanochat.errors import UsageError
from nanochat.model.config import GPTConfig
from nanochat.plan import choose
from nanochat.proof import prove
from nanochat.registry import discover
from nanochat.train.problems import problems_of

H200 = Target("cuda", "NVIDIA H200", (9, 0), memory=141 * 10**9, count=8, architecture="x86_64")
GB10 = Target("cuda", "NVIDIA GB10", (12, 1), memory=128 * 10**9, architecture="aarch64")
A100 = Target("cuda", "NVIDIA A100-SXM4-80GB", (8, 0), memory=80 * 2**30)
T4 = Target("cuda", "Tesla T4", (7, 5), memory=16 * 2**30)
CPU = Target("cpu", "a processor", memory=2**34)
APPLE = Target("mps", "Apple M3", architecture="arm64")
TPU = Target("tpu", "TPU", generation="v6e", count=4)
EVERYWHERE = [H200, GB10, A100, T4, CPU, APPLE, TPU]


@pytest.fixture(scope="module")
def registry():
    return discover("")


def pick(registry, hook, target, *, asked="auto", pattern="SSSL", dtype="bfloat16", **options):
    config = GPTConfig.from_depth(
        options.pop("depth", 12),
        vocab_size=32768,
        window_pattern=pattern,
        sequence_len=options.pop("sequence_len", 2048),
        head_dim=options.pop("head_dim", 128),
        document_token=options.pop("document_token", None),
    )
    problems = problems_of(config, options.pop("batch", 16), target, dtype, **options)
    return choose(registry, hook, asked, target, problems[hook])


@pytest.mark.parametrize(
    ("target", "windows", "full"),
    [
        (H200, "flex", "sdpa"),
        (GB10, "flex", "sdpa"),
        (A100, "flex", "sdpa"),
        (CPU, "sdpa", "sdpa"),
        (APPLE, "sdpa", "sdpa"),
        (TPU, "sdpa", "sdpa"),
    ],
    ids=str,
)
def test_attention_follows_the_windows(registry, target, windows, full):
    assert pick(registry, "attention", target, pattern="SSSL").backend.name == windows
    assert pick(registry, "attention", target, pattern="L").backend.name == full
    # A window as long as the sequence is none.
    assert pick(registry, "attention", target, sequence_len=128).backend.name == full


def test_masks_on_a_gpu_are_possible_but_warned_of(registry):
    choice = pick(registry, "attention", H200, asked="sdpa")
    assert choice.backend.name == "sdpa"
    assert "mask" in choice.warning
    assert "--attention flex" in choice.warning
    assert not pick(registry, "attention", H200, asked="sdpa", pattern="L").warning
    # Heads too small for the windowed kernels leave nothing else.
    small = pick(registry, "attention", H200, head_dim=8)
    assert small.backend.name == "sdpa"
    assert small.warning


@pytest.mark.parametrize(
    ("pattern", "documents", "seen"),
    [("L", None, "s"), ("SSSL", None, "sf"), ("SSSL", 0, "f"), ("L", 0, "f")],
)
def test_flex_is_proven_by_the_kernels_of_the_layers_there_are(registry, pattern, documents, seen):
    config = GPTConfig.from_depth(
        8, vocab_size=32768, window_pattern=pattern, document_token=documents
    )
    problem = problems_of(config, 16, H200, "bfloat16")["attention"]
    flex = registry.find("attention", "flex").backend
    names = {"s": "cudnn_sdpa_flash_fprop_kernel", "f": "triton_tem_fused_flex_attention_1"}
    backward = {"s": "cudnn_sdpa_flash_bprop", "f": "triton_tem_fused_flex_attention_backward_1"}
    for ran in ("s", "f", "sf"):
        verdict = prove(
            flex, [names[k] for k in ran], [backward[k] for k in ran], "kernels", problem=problem
        )
        assert (verdict.state == "proven") == (set(seen) <= set(ran)), (ran, verdict)


def test_documents_take_kernels_that_skip_what_is_not_seen(registry):
    options = {"pattern": "L", "document_token": 0}
    assert pick(registry, "attention", H200, **options).backend.name == "flex"
    assert pick(registry, "attention", CPU, **options).backend.name == "sdpa"
    assert "document mask" in pick(registry, "attention", H200, asked="sdpa", **options).warning


@pytest.mark.parametrize("target", [CPU, APPLE, TPU], ids=str)
def test_flex_is_refused_off_cuda_even_by_name(registry, target):
    with pytest.raises(UsageError, match="'flex' cannot run here") as error:
        pick(registry, "attention", target, asked="flex")
    assert error.value.remedy == "Use --attention sdpa"


@pytest.mark.parametrize("target", EVERYWHERE, ids=str)
def test_the_loss_holds_no_more_logits_than_it_needs(registry, target):
    name = pick(registry, "loss", target).backend.name
    assert name == ("torch" if target is APPLE else "chunked")
    assert pick(registry, "loss", target, asked="current").backend.name == "torch"
    assert pick(registry, "loss", target, asked="torch").backend.name == "torch"


@pytest.mark.parametrize("target", EVERYWHERE, ids=str)
def test_auto_never_quantizes(registry, target):
    choice = pick(registry, "quantization", target)
    assert choice.backend.name == "none"
    assert {r.name for r in choice.refusals} == {"fp8", "fp8-rowwise"}


@pytest.mark.parametrize("name", ["fp8", "fp8-rowwise"])
def test_fp8_by_name(registry, name):
    for target in (H200, GB10):
        choice = pick(registry, "quantization", target, asked=name)
        assert (choice.backend.name, choice.warning) == (name, "")
    for target in (A100, T4):
        with pytest.raises(UsageError, match=r"compute capability 8.9"):
            pick(registry, "quantization", target, asked=name)
    for target in (APPLE, TPU):
        with pytest.raises(UsageError, match="no 8-bit products"):
            pick(registry, "quantization", target, asked=name)


@pytest.mark.parametrize("name", ["fp8", "fp8-rowwise"])
def test_fp8_that_does_not_pay_off_is_warned_of(registry, name):
    assert "emulates" in pick(registry, "quantization", CPU, asked=name).warning
    uncompiled = pick(registry, "quantization", H200, asked=name, compiled=False)
    assert "uncompiled" in uncompiled.warning


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dtype": "float16"}, "not float16"),
        ({"depth": 1}, "no linear layer"),
        ({"batch": 1, "sequence_len": 120}, "120 tokens, not a multiple of 16"),
    ],
)
def test_fp8_refuses_what_it_cannot_compute(registry, options, reason):
    if "depth" in options:
        options = {**options, "head_dim": 64}
    with pytest.raises(UsageError, match=reason):
        pick(registry, "quantization", H200, asked="fp8", **options)


def test_rowwise_fp8_on_cuda_wants_bfloat16(registry):
    with pytest.raises(UsageError, match="return bfloat16") as error:
        pick(registry, "quantization", H200, asked="fp8-rowwise", dtype="float32")
    assert error.value.remedy == "Use --dtype bfloat16"
    assert pick(registry, "quantization", H200, asked="fp8", dtype="float32").backend


@pytest.mark.parametrize(
    ("device", "target", "dtype"),
    [
        (Cuda(), H200, "bfloat16"),
        (Cuda(), GB10, "bfloat16"),
        (Cuda(), A100, "bfloat16"),
        (Cuda(), T4, "float32"),
        (Cpu(), CPU, "float32"),
        (Mps(), APPLE, "float32"),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_the_dtype_when_none_is_asked_for(device, target, dtype):
    assert device.default_dtype(target) == dtype


def test_peak_rates_come_from_the_name():
    def peak(name, precision="bfloat16"):
        return Cuda().peak_flops(Target("cuda", name), precision)

    assert peak("NVIDIA H200") == 989e12
    assert peak("NVIDIA H200 NVL") == 835e12
    assert peak("NVIDIA H20") == 148e12
    assert peak("NVIDIA L40S") == 362e12
    assert peak("NVIDIA L4") == 121e12
    assert peak("NVIDIA GB10") == 125e12
    assert peak("NVIDIA H200", "float8") == 2 * 989e12
    assert peak("NVIDIA H200", "float32") is None
    assert peak("A card of next year") is None
    assert Cpu().peak_flops(CPU, "bfloat16") is None


def test_a_cpu_is_always_found():
    target = Cpu().probe()
    assert target.kind == "cpu"
    assert target.name
    assert Cpu().supports(DeviceProblem()).ok


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_hidden_gpus_are_said_to_be_hidden(monkeypatch, hidden):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    support = Cuda().absent()
    assert not support.ok
    assert support.reason


HEAVY = "{'torch', 'numpy', 'rich', 'pyarrow', 'matplotlib', 'triton'}"


@pytest.mark.parametrize(
    "work",
    [
        "import nanochat",
        "import nanochat.backend, nanochat.registry, nanochat.plan, nanochat.listing",
        "from nanochat.registry import discover; discover('')",
        # The whole plan, device included, is made before torch is imported.
        "from nanochat.registry import discover\n"
        "from nanochat.plan import make_plan\n"
        "from nanochat.train.problems import problems_of\n"
        "from nanochat.model.config import GPTConfig\n"
        "config = GPTConfig()\n"
        "plan = make_plan(discover(''), {}, lambda t, d: problems_of(config, 1, t, d))\n"
        "plan.as_dict(); plan.device.backend.environment(plan.target)",
    ],
)
def test_planning_imports_nothing_heavy(work):
    check = f"\nimport sys\nheavy = {HEAVY} & set(sys.modules)\nassert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", work + check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
