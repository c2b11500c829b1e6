"""Runs checks and tells what came of each. A backend's failure never ends the run."""

from __future__ import annotations

from collections.abc import Iterator

from nanochat.backend import Backend, Hook
from nanochat.errors import UsageError
from nanochat.registry import Registry, discover, one_line
from nanochat.testing.contract import (
    Case,
    Check,
    ConformanceError,
    Measured,
    NotApplicable,
    Outcome,
    Refused,
    Result,
    Subject,
    worst,
)
from nanochat.testing.placing import place
from nanochat.testing.samples import is_refused

SHOWN = 3
"""Failing cases of a check that are told in full."""


def run_checks(
    hook: Hook,
    name: str | Backend,
    *,
    device: str = "auto",
    dtype: str = "",
    registry: Registry | None = None,
) -> Iterator[Result]:
    """Check one backend, given by name or as an instance; results come as they are found.

    `device` names a device backend; "auto" takes the best one that the backend runs on. A backend
    that cannot run there gives one result, refused. Raises UsageError for unknown names.
    """
    placed = place(registry or discover(), hook, name, device, dtype)
    if isinstance(placed, Refused):
        yield refusal(placed)
        return
    from nanochat.testing.catalogue import checks

    for check in checks(hook):
        yield run_check(check, placed)


def refusal(refused: Refused) -> Result:
    """The one result of a backend that cannot run here."""
    backend = refused.backend
    if refused.fault:
        return Result(backend.hook, backend.name, "machine", "failed", refused.fault)
    return Result(backend.hook, backend.name, "machine", "refused", str(refused))


def run_check(check: Check, subject: Subject) -> Result:
    """Run one check over all of its cases."""
    backend = subject.backend

    def result(outcome: Outcome, detail: str) -> Result:
        return Result(check.hook, backend.name, check.name, outcome, detail)

    failed: list[str] = []
    refused: list[str] = []
    measured: list[Measured] = []
    count = 0
    try:
        for case in check.cases(subject):
            count += 1
            try:
                found = _judge(case, subject)
            except ConformanceError as error:
                failed.append(f"{case.label}: {error}" if case.label else str(error))
            except _Refusal as error:
                refused.append(f"{case.label}: {error}" if case.label else str(error))
            else:
                measured += [found] if found is not None else []
    except NotApplicable as reason:
        return result("not applicable", str(reason))
    if failed:
        more = len(failed) - SHOWN
        shown = "; ".join(failed[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
        return result("failed", f"{len(failed)} of {count}: {shown}" if count > 1 else shown)
    if refused and len(refused) == count:
        return result("refused", refused[0])
    notes = [str(worst(measured))] if measured else []
    if refused:
        notes.append(f"{len(refused)} of {count} refused ({refused[0]})")
    return result("passed", "; ".join(notes))


class _Refusal(Exception):
    """The backend declared that it lacks a case, and kept to it."""


def _judge(case: Case, subject: Subject) -> Measured | None:
    """Verify a case. What is refused may be called as well, but must then raise or be right."""
    backend = subject.backend
    try:
        reason = is_refused(backend.supports(case.problem), case.problem)
    except Exception as error:
        raise ConformanceError(f"supports() failed: {one_line(error)}") from error
    if reason == "":
        raise ConformanceError("supports() refuses it without a reason")
    if reason is None and case.needs and case.needs not in backend.capabilities:
        reason = f"its capabilities do not name {case.needs!r}"
    if reason is None:
        try:
            return case.verify()
        except ConformanceError:
            raise
        except Exception as error:
            raise ConformanceError(f"it raised {one_line(error)}") from error
    try:
        case.verify()
    except ConformanceError as error:
        raise ConformanceError(
            f"it is refused ({reason}), but a call computes it wrong without a word: {error}"
        ) from error
    except Exception as error:  # to raise is what it should do
        if _device_is_lost(error):
            raise ConformanceError(
                f"it is refused ({reason}), but a call breaks the device: {one_line(error)}"
            ) from error
    raise _Refusal(reason)


def _device_is_lost(error: Exception) -> bool:
    """After an illegal access every later call fails too, so it cannot pass for a refusal."""
    text = str(error)
    return "CUDA error" in text and "out of memory" not in text


def parse_names(registry: Registry, names: list[str]) -> list[tuple[Hook, str]]:
    """(hook, name) pairs from `HOOK:NAME`, `HOOK` or `NAME`; nothing means every backend.

    Raises UsageError for what no backend is called.
    """
    every = [(r.backend.hook, r.backend.name) for r in registry]
    found: list[tuple[Hook, str]] = []
    for given in names:
        hook, _, name = given.rpartition(":")
        matches = [
            (r.backend.hook, r.backend.name)
            for r in registry
            if (not hook or r.backend.hook == hook)
            and (
                name in (r.backend.name, *r.backend.aliases)
                or (not hook and name == r.backend.hook)
            )
        ]
        if not matches:
            known = ", ".join(f"{h}:{n}" for h, n in every)
            raise UsageError(f"no backend is called {given!r}", f"There are: {known}")
        found += matches
    return list(dict.fromkeys(found)) if names else every
