"""What the ranks of a run settle among themselves before it starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn, TypeVar

import torch

from nanochat import __version__
from nanochat.errors import NanochatError, UsageError
from nanochat.plan import Plan
from nanochat.runtime import Runtime
from nanochat.train.config import TrainConfig
from nanochat.train.folder import Resume

T = TypeVar("T")


def agree(runtime: Runtime, config: TrainConfig, plan: Plan, resume: Resume | None) -> None:
    """Make sure that all ranks are about to do the same. Raises UsageError if they are not."""
    mine = {
        **{f"--{k.replace('_', '-')}": v for k, v in config.as_dict().items()},
        **{c.hook: f"{c.backend.name} ({c.distribution} {c.version})" for c in plan},
        "dtype": plan.dtype,
        "the checkpoint": str(resume.checkpoint) if resume else None,
        "nanochat": __version__,
        "torch": str(torch.__version__),
    }
    first, *others = runtime.all_gather_object(mine)
    for rank, other in enumerate(others, start=1):
        different = [k for k in {**first, **other} if other.get(k) != first.get(k)]
        if different:
            told = "; ".join(f"{k}: {first.get(k)} and {other.get(k)}" for k in different)
            speak(
                runtime,
                UsageError(
                    f"rank 0 and rank {rank} do not agree on {told}",
                    "Start all ranks with the same command in the same environment",
                ),
            )


def speak(runtime: Runtime, error: NanochatError) -> NoReturn:
    """End all ranks with an error that they share: the first tells it, the others are quiet."""
    if runtime.rank == 0:
        raise error
    raise SystemExit(error.status)


def on_first_rank(runtime: Runtime, action: Callable[[], T]) -> T:
    """The result of an action that rank 0 does for all; a failure raised or returned ends all."""
    outcome: T | NanochatError | None = None
    if runtime.rank == 0:
        try:
            outcome = action()
        except NanochatError as error:
            outcome = error
    shared = runtime.all_gather_object(outcome)[0]
    if isinstance(shared, NanochatError):
        speak(runtime, shared)
    return shared
