"""The device backends of the core: finding a CPU, NVIDIA GPUs or an Apple GPU without torch."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.backend import DeviceBackend, Support, Target, Variable, installed_version

if TYPE_CHECKING:
    import torch

    from nanochat.runtime import Runtime

BF16_CAPABILITY = (8, 0)
FP8_CAPABILITY = (8, 9)

# Dense bfloat16 operations a second, from the vendor's data sheets. The first line whose words
# are all words of the name (lower case) is taken: an "RTX A1000" is no "A100". 8-bit floats run
# at twice the rate from sm_89 on.
PEAK_BF16_FLOPS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("gb10",), 125e12),
    (("gb300",), 2.5e15),
    (("b300",), 2.25e15),
    (("gb200",), 2.5e15),
    (("b200",), 2.25e15),
    (("h200", "nvl"), 835e12),
    (("h200",), 989e12),
    (("h100", "nvl"), 835e12),
    (("h100", "pcie"), 756e12),
    (("h100",), 989e12),
    (("h800",), 989e12),
    (("h20",), 148e12),
    (("gh200",), 989e12),
    (("a100",), 312e12),
    (("a800",), 312e12),
    (("a30",), 165e12),
    (("a40",), 149.7e12),
    (("l40s",), 362e12),
    (("l40",), 181e12),
    (("l4",), 121e12),
    (("rtx", "5090"), 209.5e12),
    (("rtx", "4090"), 165.2e12),
    (("rtx", "3090"), 71e12),
)


class Cpu(DeviceBackend):
    """The processor. Always there."""

    name = "cpu"
    summary = "the processor, in float32"

    def priority(self, target: Target) -> int:
        return 0

    def probe(self) -> Target | None:
        return Target(
            kind="cpu",
            name=_processor_name(),
            memory=_host_memory(),
            architecture=platform.machine(),
        )

    def setup(self, target: Target, dtype: torch.dtype | None = None) -> Runtime:
        from nanochat.builtin.runtimes import CpuRuntime

        return CpuRuntime.start(dtype)


class Cuda(DeviceBackend):
    """NVIDIA GPUs, one process each."""

    name = "cuda"
    summary = "NVIDIA GPUs, in bfloat16 from compute capability 8.0"

    def priority(self, target: Target) -> int:
        return 20

    def probe(self) -> Target | None:
        if find_spec("pynvml") is None:
            return None
        import pynvml

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return None
        try:
            handles = _visible_gpus(pynvml)
            if not handles:
                return None
            first = handles[0]
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(first)
            return Target(
                kind="cuda",
                name=_text(pynvml.nvmlDeviceGetName(first)),
                capability=(major, minor),
                memory=_gpu_memory(pynvml, first),
                architecture=platform.machine(),
                count=len(handles),
            )
        finally:
            pynvml.nvmlShutdown()

    def absent(self) -> Support:
        if find_spec("pynvml") is None:
            return Support.no(
                "nvidia-ml-py, which finds NVIDIA GPUs, is not installed",
                "pip install nvidia-ml-py",
            )
        if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
            return Support.no("CUDA_VISIBLE_DEVICES hides every GPU", "Unset CUDA_VISIBLE_DEVICES")
        return Support.no("the NVIDIA driver shows no GPU")

    def check(self, target: Target) -> Support:
        if _torch_cuda_version() is None:
            return Support.no(
                f"there is a GPU ({target.name}), but the installed torch "
                f"{installed_version('torch')} was built without CUDA",
                "Install a CUDA build of torch",
            )
        return Support.yes()

    def environment(self, target: Target) -> Sequence[Variable]:
        return (
            Variable(
                "PYTORCH_ALLOC_CONF",
                "expandable_segments:True",
                "less memory lost between blocks of different sizes",
            ),
        )

    def default_dtype(self, target: Target) -> str:
        new = target.capability is not None and target.capability >= BF16_CAPABILITY
        return "bfloat16" if new else "float32"

    def peak_flops(self, target: Target, precision: str) -> float | None:
        factor = {"bfloat16": 1.0, "float16": 1.0, "float8": 2.0}.get(precision)
        if factor is None or (precision == "float8" and not _has_float8(target)):
            return None
        name = set(re.findall(r"[a-z0-9]+", target.name.lower()))
        if "laptop" in name:  # the name of a desktop GPU, with fewer and slower processors
            return None
        for words, flops in PEAK_BF16_FLOPS:
            if name.issuperset(words):
                return flops * factor
        return None

    def setup(self, target: Target, dtype: torch.dtype | None = None) -> Runtime:
        from nanochat.builtin.runtimes import CudaRuntime

        return CudaRuntime.start(dtype, self.default_dtype(target))


class Mps(DeviceBackend):
    """The GPU of an Apple chip."""

    name = "mps"
    summary = "the GPU of an Apple chip, in float32"

    def priority(self, target: Target) -> int:
        return 10

    def probe(self) -> Target | None:
        if platform.system() != "Darwin" or platform.machine() != "arm64":
            return None
        return Target(
            kind="mps",
            name=_processor_name(),
            memory=_host_memory(),
            architecture=platform.machine(),
        )

    def absent(self) -> Support:
        return Support.no(f"this is {platform.system()} on {platform.machine()}, no Apple chip")

    def setup(self, target: Target, dtype: torch.dtype | None = None) -> Runtime:
        from nanochat.builtin.runtimes import MpsRuntime

        return MpsRuntime.start(dtype)


def _has_float8(target: Target) -> bool:
    return target.capability is None or target.capability >= FP8_CAPABILITY


def _visible_gpus(pynvml: Any) -> list[Any]:
    """Handles of the GPUs that CUDA_VISIBLE_DEVICES leaves, in its order."""
    count = pynvml.nvmlDeviceGetCount()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
    handles = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.isdigit():
            if int(entry) >= count:
                break  # CUDA, too, ignores an invalid entry and all that follow it
            handles.append(pynvml.nvmlDeviceGetHandleByIndex(int(entry)))
        elif entry.startswith(("GPU-", "MIG-")):
            try:
                handles.append(pynvml.nvmlDeviceGetHandleByUUID(entry.encode()))
            except pynvml.NVMLError:
                break
        else:
            break
    return handles


def _gpu_memory(pynvml: Any, handle: Any) -> int | None:
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    except pynvml.NVMLError:  # unified memory (GB10) has none of its own
        return _host_memory()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _torch_cuda_version() -> str | None:
    """The CUDA version that torch was built for, read from its sources without importing it."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    for line in (Path(spec.origin).parent / "version.py").read_text().splitlines():
        if line.startswith("cuda"):
            value = line.partition("=")[2].strip().strip("'\"")
            return None if value == "None" else value
    return None


def _processor_name() -> str:
    if platform.system() == "Darwin":
        sysctl = shutil.which("sysctl")
        if sysctl:
            done = subprocess.run(
                [sysctl, "-n", "machdep.cpu.brand_string"], capture_output=True, text=True
            )
            return done.stdout.strip() or "Apple processor"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "processor"


def _host_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return None
