"""What a backend is: one named implementation of one hook, and the words it is asked in.

Nothing here imports torch. A backend answers two questions without side effects, `check(target)`
(can this machine run it?) and `supports(problem)` (can it compute this?), and does its heavy
imports in `load()`, once, after it was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from nanochat.runtime import Runtime

API_VERSION = 1
"""The version of this contract. A backend with another `api` is listed as broken."""

HOOKS = ("attention", "loss", "quantization", "device")

Hook = Literal["attention", "loss", "quantization", "device"]
Reduction = Literal["mean", "sum", "none"]


@dataclass(frozen=True)
class Target:
    """The hardware that was found. Plain facts, so that a test can describe any machine.

    `memory` is in bytes, `capability` is a CUDA compute capability such as (9, 0), `generation` a
    TPU generation such as "v6e", `architecture` the processor's (`platform.machine()`), `count`
    the devices of this kind on the host.
    """

    kind: str
    name: str
    capability: tuple[int, int] | None = None
    generation: str | None = None
    memory: int | None = None
    multiprocessors: int | None = None
    architecture: str = ""
    count: int = 1

    def __str__(self) -> str:
        facts = [self.name]
        if self.capability is not None:
            facts.append(f"sm_{self.capability[0]}{self.capability[1]}")
        if self.generation is not None:
            facts.append(self.generation)
        if self.memory is not None:
            facts.append(f"{self.memory / 2**30:.0f} GiB")
        if self.count > 1:
            facts.append(f"x{self.count}")
        return ", ".join(facts)


@dataclass(frozen=True)
class AttentionProblem:
    """Causal self-attention as a run needs it.

    `windows` holds each distinct window of the model's layers: the number of earlier positions a
    query sees, or None for all of them. `dtype` is the name of a torch dtype. With `documents`,
    rows hold several documents that must not see each other.
    """

    device: str
    batch: int
    sequence_len: int
    heads: int
    kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...] = (None,)
    dtype: str = "bfloat16"
    training: bool = True
    documents: bool = False

    @property
    def windowed(self) -> bool:
        """True if some layer sees less than the whole sequence."""
        return any(self.sees_part(w) for w in self.windows)

    def sees_part(self, window: int | None) -> bool:
        """True if a layer of that window sees less than the whole sequence."""
        return window is not None and window < self.sequence_len - 1


@dataclass(frozen=True)
class LossProblem:
    """Linear cross-entropy as a run needs it: (tokens, hidden) against (vocab, hidden)."""

    device: str
    tokens: int
    hidden: int
    vocab: int
    dtype: str = "bfloat16"
    softcap: float | None = None


@dataclass(frozen=True)
class QuantizationProblem:
    """The linear layers of a run, as distinct (out_features, in_features), and rows a forward."""

    device: str
    tokens: int
    layers: tuple[tuple[int, int], ...]
    dtype: str = "bfloat16"
    compiled: bool = True


@dataclass(frozen=True)
class DeviceProblem:
    """What a run asks of a device: the dtype of its activations, if the user named one."""

    dtype: str | None = None


Problem = AttentionProblem | LossProblem | QuantizationProblem | DeviceProblem


@dataclass(frozen=True)
class Support:
    """The answer of a backend: yes, or no with a reason and what would mend it.

    `discouraged` marks a yes that works but that `auto` should pass over while anything else
    supports the problem; its reason is shown as a warning when the user asks for it by name.
    """

    ok: bool
    reason: str = ""
    remedy: str = ""
    discouraged: bool = False

    @classmethod
    def yes(cls, reason: str = "") -> Support:
        return cls(True, reason)

    @classmethod
    def no(cls, reason: str, remedy: str = "") -> Support:
        return cls(False, reason, remedy)

    @classmethod
    def slow(cls, reason: str, remedy: str = "") -> Support:
        return cls(True, reason, remedy, discouraged=True)

    def __bool__(self) -> bool:
        return self.ok


@dataclass(frozen=True)
class Requirement:
    """An installed distribution that a backend needs, e.g. Requirement("liger-kernel", ">=0.8").

    `remedy` is the command that installs it; the default is a plain `pip install`.
    """

    distribution: str
    specifier: str = ""
    remedy: str = ""

    def check(self) -> Support:
        """Look the distribution up in installed metadata. Imports nothing of it."""
        remedy = self.remedy or f"pip install '{self.distribution}{self.specifier}'"
        found = installed_version(self.distribution)
        if found is None:
            return Support.no(f"{self.distribution} is not installed", remedy)
        if self.specifier:
            from packaging.specifiers import SpecifierSet

            if not SpecifierSet(self.specifier).contains(found, prereleases=True):
                return Support.no(
                    f"{self.distribution} {found} is installed, {self.specifier} is needed", remedy
                )
        return Support.yes()


@lru_cache
def installed_version(distribution: str) -> str | None:
    """The installed version of a distribution, from its metadata, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class KernelPatterns:
    """Regular expressions of kernel names that a profiler must see when the backend ran."""

    forward: tuple[str, ...] = ()
    backward: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variable:
    """An environment variable that a device wants before torch is imported, and why."""

    name: str
    value: str
    reason: str


class Backend:
    """Base of the four kinds. Subclasses set the attributes and answer the two questions.

    `capabilities` are words for the listing and the conformance suite, those of the kind and
    `deterministic` (equal inputs give equal bits). `error_bounds` states an approximation openly:
    {"output": x, "gradient": y}, relative errors that the suite then allows.
    """

    hook: ClassVar[Hook]
    name: str
    summary: str
    api: int = API_VERSION
    aliases: tuple[str, ...] = ()
    requires: tuple[Requirement, ...] = ()
    capabilities: tuple[str, ...] = ()
    kernels: KernelPatterns = KernelPatterns()
    error_bounds: Mapping[str, float] = MappingProxyType({})

    def priority(self, target: Target) -> int:
        """How much `auto` wants this backend on a target. The plain PyTorch backends have 10."""
        return 0

    def check(self, target: Target) -> Support:
        """Can this machine run it? Must not import the wrapped library nor touch the device."""
        return Support.yes()

    def supports(self, problem: Problem) -> Support:
        """Can it compute this problem? Must not import the wrapped library."""
        return Support.yes()

    def load(self) -> None:
        """Import what it needs. Called once, before first use."""

    def kernels_of(self, problem: Problem | None) -> KernelPatterns:
        """What must have run to prove that a problem was computed; `kernels`, unless it depends."""
        return self.kernels

    def operator_samples(self, device: str) -> Sequence[tuple[object, ...]]:
        """(operator, arguments) or (operator, arguments, keywords) for `torch.library.opcheck`.

        Asked of a loaded backend by the conformance suite, one for each custom operator.
        """
        return ()

    def __deepcopy__(self, memo: dict[int, object]) -> Backend:
        return self  # so that a model that holds its backends can be copied


class AttentionBackend(Backend):
    """Causal self-attention. Capability words: window, gqa, kvcache, documents."""

    hook = "attention"

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        window: int | None,
        scale: float,
        documents: Tensor | None = None,
    ) -> Tensor:
        """Attend causally within each row, with a backward pass.

        q is (B, T, H, D), k and v are (B, T, H_kv, D) with H a multiple of H_kv. Position i sees
        positions j with i - window <= j <= i (`window=None`: all j <= i). Scores are multiplied
        by `scale` before the softmax. Returns (B, T, H, D) in q's dtype.

        `documents`, (B, T) int32, numbers the document of each position; the numbers of a row
        never decrease. Positions of different documents do not see each other. It is given only
        to a backend whose capabilities name `documents`: others need not take it.
        """
        raise NotImplementedError

    def attention_with_kvcache(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        cache_seqlens: Tensor,
        window: int | None,
        scale: float,
    ) -> Tensor:
        """Append k and v to the caches in place and attend to everything before and with them.

        q, k, v are (B, T_new, H or H_kv, D), the caches (B, T_max, H_kv, D), `cache_seqlens` (B,)
        int32 holds the positions already filled in each row, on the device. No backward pass.
        """
        raise NotImplementedError


class LossBackend(Backend):
    """The output layer fused with softmax cross-entropy. Capability words: softcap, chunked."""

    hook = "loss"

    def linear_cross_entropy(
        self,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        *,
        ignore_index: int = -1,
        softcap: float | None = None,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """Cross-entropy of softmax(cap(hidden @ weight.T)) against targets, with gradients.

        hidden is (N, D), weight (V, D), targets (N,) int64; cap(z) = softcap * tanh(z / softcap).
        Rows whose target is `ignore_index` count neither in the sum nor in the mean. Returns a
        float32 scalar, or (N,) for reduction "none". The mean over no rows at all is NaN, as in
        `torch.nn.functional.cross_entropy`.
        """
        raise NotImplementedError


class QuantizationBackend(Backend):
    """Linear layers in a narrower format. Parameters keep names, shapes and master dtype."""

    hook = "quantization"

    def prepare(self, model: nn.Module, include: Callable[[str, nn.Module], bool]) -> int:
        """Swap the linear layers that `include(name, module)` accepts, in place.

        Returns how many were swapped. A checkpoint cannot tell that it happened.
        """
        raise NotImplementedError

    def context(self) -> AbstractContextManager[None]:
        """Entered around each forward pass of training."""
        return nullcontext()

    def full_precision(self, model: nn.Module) -> AbstractContextManager[None]:
        """Within it the model computes without quantization (evaluation, sampling)."""
        return nullcontext()


class DeviceBackend(Backend):
    """A kind of hardware: how it is found, what it wants set, how it is driven."""

    hook = "device"

    def probe(self) -> Target | None:
        """Look for the hardware without importing torch. None where there is none."""
        raise NotImplementedError

    def absent(self) -> Support:
        """Why `probe` found nothing, and what would mend it."""
        return Support.no("no such hardware was found")

    def environment(self, target: Target) -> Sequence[Variable]:
        """Variables to set before torch is imported. The user's own values win over them."""
        return ()

    def default_dtype(self, target: Target) -> str:
        """The dtype of activations when the user names none, as the name of a torch dtype."""
        return "float32"

    def peak_flops(self, target: Target, precision: str) -> float | None:
        """Dense matmul operations a second at "bfloat16", "float8" or "float32", if known."""
        return None

    def setup(self, target: Target, dtype: torch.dtype | None = None) -> Runtime:
        """Claim the device and return what drives it."""
        raise NotImplementedError
