"""The conformance suite: does a backend keep the contract of its hook on this machine?

A plugin's whole test with pytest:

    from nanochat.testing import LossConformance

    class TestMine(LossConformance):
        backend = "mine"

The same from Python, as `nanochat-train --check-backends` does it:

    from nanochat.testing import run_checks

    for result in run_checks("loss", "mine"):
        print(result.check, result.outcome, result.detail)

Importing this package imports neither torch nor pytest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nanochat.testing.contract import (
    Case,
    Check,
    ConformanceError,
    Measured,
    NotApplicable,
    Outcome,
    Result,
    Subject,
)
from nanochat.testing.runner import run_checks

if TYPE_CHECKING:
    from nanochat.testing.suites import (
        AttentionConformance,
        DeviceConformance,
        LossConformance,
        QuantizationConformance,
    )

__all__ = [
    "AttentionConformance",
    "Case",
    "Check",
    "ConformanceError",
    "DeviceConformance",
    "LossConformance",
    "Measured",
    "NotApplicable",
    "Outcome",
    "QuantizationConformance",
    "Result",
    "Subject",
    "run_checks",
]


def __getattr__(name: str) -> Any:
    if name in __all__:  # the classes for pytest, which need pytest
        return getattr(import_module("nanochat.testing.suites"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
