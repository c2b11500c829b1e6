"""The suite as classes for pytest: subclass one, name the backend, and that is the test."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from nanochat.backend import Hook
from nanochat.registry import discover
from nanochat.testing.catalogue import checks
from nanochat.testing.contract import Check, Refused, Subject
from nanochat.testing.placing import place
from nanochat.testing.runner import run_check

REFUSALS = pytest.StashKey[dict[str, None]]()
PLACED = pytest.StashKey[dict[type, Subject | Refused]]()


class Conformance:
    """Base of the four. `backend` is a name or alias, or an instance that is not installed.

    `device` names the device backend to check on; by default that of `--nanochat-device`, else
    the best one that the backend runs on. Where it cannot run, the tests ask for a reason and a
    remedy, and are skipped with them.
    """

    hook: ClassVar[Hook]
    backend: ClassVar[Any] = ""
    device: ClassVar[str] = ""
    dtype: ClassVar[str] = ""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "conformance_check" in metafunc.fixturenames:
            every = checks(self.hook)
            metafunc.parametrize("conformance_check", every, ids=[c.name for c in every])

    def test_conforms(self, conformance_check: Check, request: pytest.FixtureRequest) -> None:
        subject = self._placed(request.config)
        if isinstance(subject, Refused):
            if subject.fault:
                pytest.fail(subject.fault, pytrace=False)
            request.config.stash.setdefault(REFUSALS, {})[str(subject)] = None
            pytest.skip(str(subject))
        result = run_check(conformance_check, subject)
        if result.outcome == "failed":
            pytest.fail(f"{conformance_check.about}\n{result.detail}", pytrace=False)
        if result.outcome in ("refused", "not applicable"):
            pytest.skip(f"{result.outcome}: {result.detail}")

    @classmethod
    def _placed(cls, config: pytest.Config) -> Subject | Refused:
        """The backend, loaded once for all tests of the class."""
        placed = config.stash.setdefault(PLACED, {})
        if cls not in placed:
            if not cls.backend:
                pytest.fail(f"{cls.__name__} names no backend: set `backend`", pytrace=False)
            device = cls.device or config.getoption("--nanochat-device", default="auto")
            placed[cls] = place(discover(), cls.hook, cls.backend, device, cls.dtype)
        return placed[cls]


class AttentionConformance(Conformance):
    """The whole test of an attention backend."""

    hook = "attention"


class LossConformance(Conformance):
    """The whole test of a loss backend."""

    hook = "loss"


class QuantizationConformance(Conformance):
    """The whole test of a quantization backend."""

    hook = "quantization"


class DeviceConformance(Conformance):
    """The whole test of a device backend."""

    hook = "device"
