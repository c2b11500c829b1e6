"""The memory that a loss with the capability `chunked` saves, by every allocation that is made."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from nanochat.backend import LossProblem
from nanochat.testing.contract import Case, ConformanceError, Measured, NotApplicable, Subject
from nanochat.testing.loss import inputs
from nanochat.testing.samples import sample

SHAPES: dict[str, dict[str, int]] = {
    # Many rows: chunks of some thousand rows are to be a small part of them.
    "cpu": {"tokens": 2**17, "hidden": 16, "vocab": 256},
    "cuda": {"tokens": 2**16, "hidden": 256, "vocab": 2**14},
}
PART = 0.6
"""The part of the logits' bytes that may be held besides the gradients."""


def logits_are_not_held(subject: Subject) -> Iterator[Case]:
    """With the capability `chunked`: peak memory stays well below that of the logits."""
    if "chunked" not in subject.backend.capabilities:
        raise NotApplicable("it does not claim to be chunked")
    kind = subject.device.type
    if kind not in SHAPES:
        raise NotApplicable(f"peak memory cannot be read on {kind}")
    for softcap in (None, 15.0):
        problem = sample("loss", subject.kind, subject.dtype, softcap=softcap, **SHAPES[kind])
        yield Case(f"softcap {softcap}", problem, lambda p=problem: _measure(subject, p))


def _measure(subject: Subject, problem: LossProblem) -> Measured:
    hidden, weight, targets = inputs(subject, problem)
    both = [hidden.requires_grad_(), weight.requires_grad_()]

    def step() -> tuple[torch.Tensor, ...]:
        y = subject.backend.linear_cross_entropy(  # type: ignore[attr-defined]
            *both, targets, softcap=problem.softcap
        )
        return torch.autograd.grad(y, both)

    peak = _cuda_peak(step, subject.device) if hidden.is_cuda else _cpu_peak(step)
    # A CPU runs the operations one by one, in float32; on a GPU they are fused, logits stay narrow.
    size = hidden.element_size() if hidden.is_cuda else 4
    logits = problem.tokens * problem.vocab * size
    # Gradients, once more in float32 while they are summed.
    gradients = sum(x.numel() * (x.element_size() + 4) for x in both)
    measured = Measured(
        "held besides gradients, as a part of the logits", (peak - gradients) / logits, PART
    )
    if measured.error > PART:
        raise ConformanceError(
            f"it claims `chunked` but holds {peak / 2**20:.0f} MiB for logits of "
            f"{logits / 2**20:.0f} MiB and gradients of {gradients / 2**20:.0f} MiB"
        )
    return measured


def _cuda_peak(step: Callable[[], Any], device: torch.device) -> int:
    step()  # what is compiled or tuned at the first call is not part of it
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _cpu_peak(step: Callable[[], Any]) -> int:
    """From the profiler's record of every allocation, those within operators too."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(file))
        trace = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    totals = [e["args"]["Total Allocated"] for e in trace if e["name"] == "[memory]"]
    return max(totals) - totals[0] if totals else 0


CHECKS = (logits_are_not_held,)
