"""Finding hardware on a machine that need not have any: pynvml is a fake."""

import sys
import types

import pytest
import torch

from nanochat.backend import Target
from nanochat.builtin import devices
from nanochat.builtin.devices import Cpu, Cuda, Mps
from nanochat.builtin.runtimes import CpuRuntime, CudaRuntime, MpsRuntime, ranks
from nanochat.errors import UsageError


class FakeNvml(types.ModuleType):
    """Four GPUs whose handle is their number."""

    class NVMLError(Exception):
        pass

    names = ("NVIDIA H200", "NVIDIA A100-SXM4-80GB", "NVIDIA L4", "Tesla T4")
    capabilities = ((9, 0), (8, 0), (8, 9), (7, 5))
    memory = (141, 80, 24, 16)
    broken: str | None = None

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.open = 0

    def __getattribute__(self, name):
        if name.startswith("nvml") and name == super().__getattribute__("broken"):
            return self.fail
        return super().__getattribute__(name)

    def fail(self, *arguments):
        raise self.NVMLError(f"{self.broken} failed")

    def nvmlInit(self):
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlDeviceGetCount(self):
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, index):
        if not 0 <= index < len(self.names):
            raise self.NVMLError("Invalid Argument")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid):
        text = uuid.decode() if isinstance(uuid, bytes) else uuid
        if not text.startswith("GPU-000") or not text[7:].isdigit():
            raise self.NVMLError("Not Found")
        return int(text[7:])

    def nvmlDeviceGetName(self, handle):
        return self.names[handle]

    def nvmlDeviceGetCudaComputeCapability(self, handle):
        return self.capabilities[handle]

    def nvmlDeviceGetMemoryInfo(self, handle):
        return types.SimpleNamespace(total=self.memory[handle] * 2**30)


@pytest.fixture
def nvml(monkeypatch):
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(devices, "find_spec", lambda name: name)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake


@pytest.fixture
def alone(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def gpu(name="NVIDIA H200", capability=(9, 0)):
    return Target(kind="cuda", name=name, capability=capability)


@pytest.mark.parametrize(
    ("visible", "first", "count"),
    [
        (None, "NVIDIA H200", 4),
        ("0", "NVIDIA H200", 1),
        ("2,0", "NVIDIA L4", 2),
        (" 3 , 1 ", "Tesla T4", 2),
        ("GPU-0001", "NVIDIA A100-SXM4-80GB", 1),
        ("GPU-0002,0", "NVIDIA L4", 2),
        # CUDA ignores an invalid entry and everything after it.
        ("1,9,0", "NVIDIA A100-SXM4-80GB", 1),
        ("1,-1,0", "NVIDIA A100-SXM4-80GB", 1),
        ("1,,0", "NVIDIA A100-SXM4-80GB", 1),
        ("1,GPU-ffff,0", "NVIDIA A100-SXM4-80GB", 1),
        ("1,nonsense", "NVIDIA A100-SXM4-80GB", 1),
        ("", None, 0),
        ("-1", None, 0),
        ("9", None, 0),
        ("GPU-ffff", None, 0),
        ("nonsense", None, 0),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(nvml, monkeypatch, visible, first, count):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    target = Cuda().probe()
    assert nvml.open == 0  # the driver is let go of, also where nothing was found
    if first is None:
        assert target is None
        return
    assert target is not None
    assert (target.kind, target.name, target.count) == ("cuda", first, count)
    number = nvml.names.index(first)
    assert target.capability == nvml.capabilities[number]
    assert target.memory == nvml.memory[number] * 2**30


def test_names_come_as_text_from_old_bindings_too(nvml):
    nvml.names = (b"NVIDIA H200",)
    target = Cuda().probe()
    assert target is not None
    assert target.name == "NVIDIA H200"


def test_unified_memory_is_the_hosts(nvml, monkeypatch):
    nvml.broken = "nvmlDeviceGetMemoryInfo"
    monkeypatch.setattr(devices, "_host_memory", lambda: 128 * 2**30)
    target = Cuda().probe()
    assert target is not None
    assert target.memory == 128 * 2**30


def test_without_a_driver_there_is_no_gpu(nvml):
    nvml.broken = "nvmlInit"
    assert Cuda().probe() is None
    assert nvml.open == 0
    assert "driver shows no GPU" in Cuda().absent().reason


def test_a_hidden_gpu_is_explained(nvml, monkeypatch):
    for value in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        absent = Cuda().absent()
        assert not absent.ok
        assert "hides every GPU" in absent.reason
        assert "Unset CUDA_VISIBLE_DEVICES" in absent.remedy


def test_without_nvml_bindings_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    assert Cuda().probe() is None
    assert Cuda().absent().remedy == "pip install nvidia-ml-py"


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("cuda: Optional[str] = None", None),
        ("cuda: Optional[str] = '12.8'", "12.8"),
        ('cuda = "13.0"', "13.0"),
        ("hip: Optional[str] = '6.4'", None),
    ],
)
def test_a_torch_without_cuda_beside_a_gpu_is_told(monkeypatch, tmp_path, line, version):
    (tmp_path / "version.py").write_text(
        f"__version__ = '2.13.0'\n{line}\ngit_version = 'c0ffee'\n"
    )
    origin = types.SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(devices, "find_spec", lambda name: origin)
    assert devices._torch_cuda_version() == version
    support = Cuda().check(gpu())
    assert support.ok is (version is not None)
    if version is None:
        assert "NVIDIA H200" in support.reason
        assert "built without CUDA" in support.reason
        assert "CUDA build of torch" in support.remedy


def test_the_installed_torch_is_read_rightly():
    assert devices._torch_cuda_version() == torch.version.cuda


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [
        ((7, 5), "float32"),
        ((8, 0), "bfloat16"),
        ((8, 9), "bfloat16"),
        ((12, 1), "bfloat16"),
        (None, "float32"),
    ],
)
def test_dtype_of_activations(capability, dtype):
    assert Cuda().default_dtype(gpu(capability=capability)) == dtype
    assert Cpu().default_dtype(Target(kind="cpu", name="processor")) == "float32"


@pytest.mark.parametrize(
    ("name", "capability", "bfloat16"),
    [
        ("NVIDIA H200", (9, 0), 989e12),
        ("NVIDIA H200 NVL", (9, 0), 835e12),
        ("NVIDIA H100 80GB HBM3", (9, 0), 989e12),
        ("NVIDIA H100 PCIe", (9, 0), 756e12),
        ("NVIDIA H100 NVL", (9, 0), 835e12),
        ("NVIDIA H20", (9, 0), 148e12),
        ("NVIDIA GH200 480GB", (9, 0), 989e12),
        ("NVIDIA B200", (10, 0), 2.25e15),
        ("NVIDIA GB200", (10, 0), 2.5e15),
        ("NVIDIA GB10", (12, 1), 125e12),
        ("NVIDIA A100-SXM4-80GB", (8, 0), 312e12),
        ("NVIDIA L4", (8, 9), 121e12),
        ("NVIDIA L40", (8, 9), 181e12),
        ("NVIDIA L40S", (8, 9), 362e12),
        ("NVIDIA GeForce RTX 4090", (8, 9), 165.2e12),
        # Names that hold the name of another.
        ("NVIDIA RTX A1000", (8, 6), None),
        ("NVIDIA RTX A4000", (8, 6), None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", (8, 9), None),
        ("Tesla T4", (7, 5), None),
        ("Graphics Device", (13, 0), None),
    ],
)
def test_peak_operations_of_known_gpus(name, capability, bfloat16):
    target = gpu(name, capability)
    assert Cuda().peak_flops(target, "bfloat16") == bfloat16
    eight = 2 * bfloat16 if bfloat16 and capability >= (8, 9) else None
    assert Cuda().peak_flops(target, "float8") == eight
    assert Cuda().peak_flops(target, "float4") is None


def test_no_peak_is_claimed_for_a_processor():
    assert Cpu().peak_flops(Target(kind="cpu", name="processor"), "float32") is None


def test_environment_of_a_gpu_names_its_reasons():
    variables = Cuda().environment(gpu())
    assert {v.name: v.value for v in variables} == {
        "PYTORCH_ALLOC_CONF": "expandable_segments:True"
    }
    assert all(v.reason for v in variables)
    assert not Cpu().environment(Target(kind="cpu", name="processor"))


def test_the_processor_is_always_there():
    target = Cpu().probe()
    assert target is not None
    assert target.kind == "cpu"
    assert target.name
    assert Cpu().check(target).ok


def test_an_apple_gpu_is_found_on_apple_chips_alone(monkeypatch):
    for system, machine in (("Linux", "x86_64"), ("Linux", "arm64"), ("Darwin", "x86_64")):
        monkeypatch.setattr(devices.platform, "system", lambda system=system: system)
        monkeypatch.setattr(devices.platform, "machine", lambda machine=machine: machine)
        assert Mps().probe() is None
        assert f"{system} on {machine}" in Mps().absent().reason
    monkeypatch.setattr(devices.platform, "machine", lambda: "arm64")
    target = Mps().probe()
    assert target is not None
    assert target.kind == "mps"


def test_devices_are_wanted_in_the_order_gpu_apple_processor():
    target = Target(kind="cpu", name="processor")
    assert Cuda().priority(target) > Mps().priority(target) > Cpu().priority(target)


def test_ranks_come_from_torchrun(monkeypatch, alone):
    assert ranks() == (0, 0, 1)
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert ranks() == (0, 0, 1)  # not torchrun's: it sets all three
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert ranks() == (5, 1, 8)


def test_cpu_runtime(alone):
    runtime = Cpu().setup(Target(kind="cpu", name="processor"))
    assert runtime.device == torch.device("cpu")
    assert runtime.dtype == torch.float32
    assert not runtime.pinned
    assert runtime.place(torch.ones(2)).device.type == "cpu"
    assert runtime.memory_peak() > 2**20
    assert CpuRuntime.start(torch.bfloat16).dtype == torch.bfloat16


def test_compiling_without_a_compiler_says_what_to_do(monkeypatch, alone, tmp_path):
    runtime = CpuRuntime.start(None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UsageError, match="needs a C\\+\\+ compiler") as caught:
        runtime.compile_model(torch.nn.Identity())
    assert "--no-compile" in caught.value.remedy
    compiler = tmp_path / "my-g++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    # Not the real one, which would remember this compiler for the tests that follow.
    monkeypatch.setattr(torch, "compile", lambda model, **options: options)
    assert runtime.compile_model(torch.nn.Identity()) == {"dynamic": False, "fullgraph": True}


def test_a_gpu_that_torch_cannot_use_is_a_usage_error(monkeypatch, alone):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="torch cannot use it"):
        Cuda().setup(gpu())


def test_more_ranks_than_gpus_is_a_usage_error(monkeypatch):
    for name, value in (("RANK", "3"), ("LOCAL_RANK", "3"), ("WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match="local rank 3 has no GPU, 2 are visible"):
        CudaRuntime.start(None, "bfloat16")
    with pytest.raises(UsageError, match="one process"):
        MpsRuntime.start(None)
