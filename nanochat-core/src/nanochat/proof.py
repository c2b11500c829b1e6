"""Whether the kernels that a backend declares are among those that a profiler saw.

Evidence is of two kinds. On a device whose profiler names kernels ("kernels"), a pattern that
nothing matches means that the backend did not do the work: unproven. Elsewhere, as on a CPU, there
are only the names of operators ("operators"): a match proves that the operator was called, and no
match proves nothing, because patterns name kernels that such a device does not have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from nanochat.backend import Backend, Problem

Evidence = Literal["kernels", "operators"]
Verdicts = Literal["proven", "unproven", "not provable", "nothing to prove"]

GROUPS = ("matmul", "attention", "loss", "quantise and transpose", "optimiser", "rest")
QUANTISE_LIMIT = 0.10
"""Share of the time above which quantising and transposing eats what a narrow format saves."""

# In this order: a fused attention is built of matrix products, a cast names its formats.
_WORDS = (
    ("attention", re.compile(r"flash|fmha|sdpa|attention|attn", re.IGNORECASE)),
    (
        "loss",
        re.compile(r"cross_?entropy|softmax|logsumexp|nll_loss|_cce_|liger", re.IGNORECASE),
    ),
    (
        "matmul",
        re.compile(
            r"gemm|nvjet|cutlass|cublas|splitk|xmma|_mm\b|mm_kernel|symmetric_product"
            r"|::(mm|bmm|addmm|baddbmm|linear|matmul|_scaled_mm)\b",
            re.IGNORECASE,
        ),
    ),
    (
        "quantise and transpose",
        re.compile(
            r"quanti[sz]|cast_both_ways|amax|float8|(cast|batch|nvte.*)_transpose|transpose_kernel|fp8|fp4|e4m3|e5m2",
            re.IGNORECASE,
        ),
    ),
)


@dataclass(frozen=True)
class Kernel:
    """What ran in a phase (forward, backward, update): milliseconds and calls of one round."""

    name: str
    phase: str
    ms: float
    calls: int

    @property
    def group(self) -> str:
        """The kind of work. Whatever runs in the optimiser's phase is the optimiser's."""
        if self.phase == "update":
            return "optimiser"
        return next((group for group, words in _WORDS if words.search(self.name)), "rest")


@dataclass(frozen=True)
class Verdict:
    """What the profiler says of one backend, and why."""

    hook: str
    backend: str
    state: Verdicts
    reason: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)

    def __str__(self) -> str:
        told = f"{self.hook} {self.backend}: {self.state}"
        return f"{told} ({self.reason})" if self.reason else told


def prove(
    backend: Backend,
    forward: Iterable[str],
    backward: Iterable[str],
    evidence: Evidence,
    *,
    problem: Problem | None = None,
    in_use: bool = True,
) -> Verdict:
    """Look for every pattern declared for the problem among the names of each phase.

    `in_use=False` says that the backend had nothing to do, such as no layer to quantise.
    """
    hook, name = backend.hook, backend.name
    kernels = backend.kernels_of(problem)
    wanted = (
        ("forward", kernels.forward, list(forward)),
        ("backward", kernels.backward, list(backward)),
    )
    if not in_use:
        return Verdict(hook, name, "nothing to prove", "it changed nothing")
    if not any(patterns for _, patterns, _ in wanted):
        if evidence == "kernels":
            return Verdict(hook, name, "unproven", "it declares no kernels")
        return Verdict(hook, name, "not provable", "it declares no kernels")
    missing = [
        f"{phase}: nothing matches {pattern}"
        for phase, patterns, seen in wanted
        for pattern in patterns
        if not any(re.search(pattern, one) for one in seen)
    ]
    if not missing:
        return Verdict(hook, name, "proven", f"by the names of {evidence}")
    if evidence == "kernels":
        return Verdict(hook, name, "unproven", "; ".join(missing))
    return Verdict(hook, name, "not provable", "this device names operators, not kernels")


def shares(kernels: Sequence[Kernel]) -> dict[str, float]:
    """The share of each group in the time of all kernels; empty if nothing took time."""
    total = sum(k.ms for k in kernels)
    if total <= 0:
        return {}
    return {g: sum(k.ms for k in kernels if k.group == g) / total for g in GROUPS}
