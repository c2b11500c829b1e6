"""One timing in a process of its own: what is asked of it, what comes back. Imports no torch.

A process each keeps memory and compilation apart, and makes a crash a row instead of the end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from nanochat.backend import AttentionProblem, Hook, LossProblem, Problem, QuantizationProblem

Work = Literal["step", "attention", "loss", "quantization"]
State = Literal["ok", "refused", "out of memory", "failed"]

PROBLEMS: dict[str, type[Any]] = {
    "attention": AttentionProblem,
    "loss": LossProblem,
    "quantization": QuantizationProblem,
}
DOCUMENT_LENGTH = 512
"""How long the random documents of a job are on average, where rows hold several."""

OF_A_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Job:
    """What one process times: a whole step, or the kernel of one hook, forward and backward.

    A step is described by `model` (the fields of a GPTConfig) and `batch`, a kernel by `problem`
    (the fields of its hook's problem). `windows` lists every layer's window, so that attention
    is counted as often as the model runs it; empty means each window of the problem once.
    """

    work: Work
    backends: dict[Hook, str]
    device: str = "auto"
    dtype: str = ""
    problem: dict[str, Any] = field(default_factory=dict)
    windows: Sequence[int | None] = ()
    model: dict[str, Any] = field(default_factory=dict)
    batch: int = 1
    compile: bool = True
    warmup: int = 3
    repeats: int = 10
    profile: bool = False

    def problem_of(self) -> Problem:
        """The problem of a kernel's job, as its backend is asked about it."""
        values = dict(self.problem)
        for name in ("windows", "layers"):
            if name in values:
                values[name] = tuple(tuple(v) if isinstance(v, list) else v for v in values[name])
        problem: Problem = PROBLEMS[self.work](**values)
        return problem

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Outcome:
    """What came of a job. Times are in milliseconds, memory in bytes, shares add up to 1.

    `peak` is all that the device had allocated, `extra` what the timed work added to its inputs.
    `kernels` are (name, phase, group, milliseconds of one round, calls), the longest first.
    `verdicts` holds what the profiler says of each backend, see `proof.Verdict`.
    """

    state: State
    reason: str = ""
    ms: float | None = None
    spread: float | None = None
    tokens_per_second: float | None = None
    flops_per_second: float | None = None
    mfu: float | None = None
    peak: int | None = None
    extra: int | None = None
    compile_seconds: float | None = None
    evidence: str = ""
    verdicts: tuple[dict[str, str], ...] = ()
    shares: dict[str, float] = field(default_factory=dict)
    kernels: tuple[tuple[str, str, str, float, int], ...] = ()
    backends: dict[str, str] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.state == "ok"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Outcome:
        """Raises TypeError for anything that `as_dict` would not have made."""
        if not isinstance(values, Mapping) or set(values) - {f.name for f in fields(cls)}:
            raise TypeError("it is not the outcome of a timing")
        outcome = cls(**values)
        if outcome.ok and not isinstance(outcome.ms, float):
            raise TypeError("a timing has no time")
        return outcome


Runner = Callable[[Job], Outcome]


def run_job(job: Job, *, timeout: float = 1800, prefix: Sequence[str] = ()) -> Outcome:
    """Time a job in a fresh process of this Python; `prefix` is a command that wraps it.

    Never raises for what the process does: a crash is an outcome with its reason.
    """
    with tempfile.TemporaryDirectory(prefix="nanochat-bench-") as folder:
        result, log = Path(folder) / "outcome.json", Path(folder) / "log"
        command = [*prefix, sys.executable, "-m", "nanochat.bench.child", str(result)]
        with log.open("wb") as output:
            try:
                done = subprocess.run(
                    command,
                    input=job.to_json().encode(),
                    stdout=output,
                    stderr=output,
                    env=environment(os.environ),
                    timeout=timeout,
                )
            except subprocess.TimeoutExpired:
                return Outcome("failed", f"it was stopped after {timeout:.0f} s")
        if result.is_file():
            return Outcome.from_dict(json.loads(result.read_text(encoding="utf-8")))
        return _died(done.returncode, log.read_text(encoding="utf-8", errors="replace"))


def environment(of_this: Mapping[str, str]) -> dict[str, str]:
    """This process's environment, without what a launcher of several ranks has put there."""
    kept = {
        name: value
        for name, value in of_this.items()
        if name not in OF_A_LAUNCHER and not name.startswith("TORCHELASTIC_")
    }
    kept.setdefault("PYTHONSAFEPATH", "1")  # a torch.py of the working directory is not torch
    return kept


def _died(status: int, log: str) -> Outcome:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    last = lines[-1] if lines else "it said nothing"
    if status < 0:
        name = signal.Signals(-status).name if -status in set(signal.Signals) else str(-status)
        hint = ", most likely for lack of memory" if name == "SIGKILL" else ""
        return Outcome("failed", f"its process was ended by {name}{hint} ({last})")
    return Outcome("failed", f"its process ended with status {status}: {last}")
