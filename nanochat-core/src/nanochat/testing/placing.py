"""Where a backend is checked: the best device that it runs on. Imports torch only to claim it."""

from __future__ import annotations

from nanochat.backend import (
    Backend,
    DeviceBackend,
    DeviceProblem,
    Hook,
    Support,
    Target,
)
from nanochat.errors import UsageError
from nanochat.plan import choose_device, load_backend, probe, requirements
from nanochat.registry import Registered, Registry, one_line
from nanochat.testing.contract import Refused, Subject
from nanochat.testing.samples import DTYPES, is_refused, sample


def place(
    registry: Registry, hook: Hook, which: str | Backend, device: str = "auto", dtype: str = ""
) -> Subject | Refused:
    """Load a backend on a device, or say in its own words why it cannot run there.

    `which` is a name or alias, or a backend itself. `device` names a device backend; "auto" takes
    the best one that this backend runs on. `dtype` is the dtype to check in; by default the
    device's, or the first that the backend takes. Raises UsageError for unknown names, and where
    the device or the backend fails to load.
    """
    backend, distribution = _find(registry, hook, which)
    if isinstance(backend, DeviceBackend):
        target, support = probe(Registered(backend, "", distribution, ""), DeviceProblem())
        if target is None or not support.ok:
            return Refused(backend, target, support)
        return _claim(backend, backend, distribution, target, dtype)
    refused: list[Refused] = []
    able: list[tuple[bool, DeviceBackend, Target]] = []
    for driver, target in _devices(registry, device):
        support = _examine(backend, target)
        if support.ok:
            able.append((support.discouraged, driver, target))
        else:
            refused.append(Refused(backend, target, support))
    if not able:
        return refused[0]
    _, driver, target = min(able, key=lambda a: a[0])
    return _claim(backend, driver, distribution, target, dtype)


def _find(registry: Registry, hook: Hook, which: str | Backend) -> tuple[Backend, str]:
    if isinstance(which, Backend):
        return which, "the caller"
    registered = registry.find(hook, which)
    if registered is None:
        for broken in registry.broken:
            if which in (broken.name, broken.plugin) and broken.hook in (hook, None):
                raise UsageError(f"{hook} {which!r} is broken: {broken.reason}", broken.remedy)
        known = ", ".join(r.backend.name for r in registry.backends(hook))
        raise UsageError(
            f"no {hook} backend is called {which!r} (there are: {known})",
            "See nanochat-train --list-backends",
        )
    return registered.backend, registered.distribution


def _devices(registry: Registry, device: str) -> list[tuple[DeviceBackend, Target]]:
    """The device of that name, or every one there is, the best first."""
    if device != "auto":
        choice, target = choose_device(registry, device)
        return [(choice.backend, target)]
    found = []
    for registered in registry.backends("device"):
        target, support = probe(registered, DeviceProblem())
        if target is not None and support.ok:
            assert isinstance(registered.backend, DeviceBackend)
            found.append((registered.backend, target))
    return sorted(found, key=lambda f: -f[0].priority(f[1]))


def _examine(backend: Backend, target: Target) -> Support:
    try:
        support = requirements(backend)
        return support if not support.ok else backend.check(target)
    except Exception as error:  # noqa: BLE001 - a stranger's code: its failure is a no
        return Support.no(f"its check failed: {one_line(error)}", "Mend the backend")


def _claim(
    backend: Backend, driver: DeviceBackend, distribution: str, target: Target, dtype: str
) -> Subject:
    """Set up the device as a run does, then load."""
    import torch

    runtime = driver.setup(target, getattr(torch, dtype) if dtype else None)
    load_backend(backend, distribution)
    default = dtype or driver.default_dtype(target)
    return Subject(backend, target, runtime.device, dtype or _dtype(backend, target, default))


def _dtype(backend: Backend, target: Target, default: str) -> str:
    """The device's default dtype, or the first other one that the backend takes."""
    for dtype in dict.fromkeys((default, *DTYPES)):
        problem = sample(backend.hook, target.kind, dtype)
        try:
            if is_refused(backend.supports(problem), problem) is None:
                return dtype
        except Exception:  # noqa: BLE001 - told by the check that asks the same
            break
    return default
