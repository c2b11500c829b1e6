"""The words of the suite: what is checked, on what, and what came of it. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from nanochat.backend import Backend, Hook, Problem, Support, Target

if TYPE_CHECKING:
    import torch

Outcome = Literal["passed", "failed", "refused", "not applicable"]


class ConformanceError(AssertionError):
    """A backend computed, but not what its contract says. The message tells what and by how far."""


class NotApplicable(Exception):
    """A check has nothing to look at; the message says why."""


class Measured(NamedTuple):
    """One comparison that passed: what was measured and how large it might have been."""

    what: str
    error: float
    allowed: float

    def __str__(self) -> str:
        return f"{self.what}: {self.error:.1e} (at most {self.allowed:.1e})"


def worst(measured: Iterable[Measured]) -> Measured:
    """The comparison that came closest to failing."""
    return max(measured, key=lambda m: m.error / m.allowed)


@dataclass(frozen=True)
class Subject:
    """A loaded backend and where it is checked.

    `dtype` is the name of the torch dtype of all checks but the one of dtypes: the device's
    default where the backend takes it.
    """

    backend: Backend
    target: Target
    device: torch.device
    dtype: str

    @property
    def kind(self) -> str:
        """The device as problems name it."""
        return self.target.kind

    def stated(self, what: str) -> float:
        """The relative error that the backend itself states in `error_bounds`, or 0."""
        bounds = self.backend.error_bounds
        return float(bounds.get(what, 0.0))


@dataclass(frozen=True)
class Case:
    """One variant of a check.

    `verify` computes and compares. It raises ConformanceError where the result is wrong; any
    other exception is the backend's own. `problem` is what the backend is asked about before,
    `needs` a capability word without which it counts as refused.
    """

    label: str
    problem: Problem
    verify: Callable[[], Measured | None]
    needs: str = ""


@dataclass(frozen=True)
class Check:
    """A named question about backends of one hook: a function that makes its cases."""

    hook: Hook
    cases: Callable[[Any], Iterable[Case]]

    @property
    def name(self) -> str:
        return self.cases.__name__

    @property
    def about(self) -> str:
        """What it asks, in one line."""
        return (self.cases.__doc__ or "").strip().splitlines()[0]


@dataclass(frozen=True)
class Result:
    """What came of one check of one backend."""

    hook: Hook
    backend: str
    check: str
    outcome: Outcome
    detail: str


@dataclass(frozen=True)
class Refused:
    """A backend that cannot run on this machine at all, in its own words."""

    backend: Backend
    target: Target | None
    support: Support

    def __str__(self) -> str:
        name = f"{self.backend.hook} {self.backend.name!r}"
        where = f"on {self.target}" if self.target is not None else "here"
        told = f"{name} cannot run {where}: {self.support.reason}".rstrip(".")
        return f"{told}. {self.support.remedy}" if self.support.remedy else told

    @property
    def fault(self) -> str:
        """What is wrong with the refusal itself, or nothing."""
        if not self.support.reason:
            return "it refuses this machine without a reason"
        if not self.support.remedy and self.backend.hook != "device":
            return f"it refuses this machine ({self.support.reason}) without a remedy"
        return ""
