"""Chooses the four backends of a run, by name, by priority or by measurement, and says why.

A choice never falls back in silence: a backend asked for by name runs or the command fails, and
every refusal of `auto` is kept with its reason and remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from nanochat.backend import (
    AttentionBackend,
    AttentionProblem,
    Backend,
    DeviceBackend,
    DeviceProblem,
    Hook,
    LossBackend,
    Problem,
    QuantizationBackend,
    Support,
    Target,
)
from nanochat.errors import UsageError
from nanochat.registry import Registered, Registry, one_line

B = TypeVar("B", bound=Backend)

How = Literal["asked", "auto", "measured"]
Problems = Mapping[Hook, Problem]
Measure = Callable[
    [Hook, Sequence[Registered], Problem],
    tuple[Registered, str] | tuple[Registered, str, Mapping[str, str]],
]
"""Times candidates at a problem. Returns the winner with a one-line reason, and if it likes why
each of the others lost, by name."""


@dataclass(frozen=True)
class Refusal:
    """A backend that was not taken, why, and what would mend it."""

    name: str
    reason: str
    remedy: str = ""


@dataclass(frozen=True)
class Choice(Generic[B]):
    """One chosen backend with its reason and everything that was passed over."""

    hook: Hook
    backend: B
    distribution: str
    version: str
    how: How
    reason: str
    warning: str = ""
    refusals: tuple[Refusal, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "backend": self.backend.name,
            "distribution": self.distribution,
            "version": self.version,
            "how": self.how,
            "reason": self.reason,
            "refused": {r.name: r.reason for r in self.refusals},
        }


@dataclass(frozen=True)
class Plan:
    """The four chosen backends of a run and the hardware they were chosen for."""

    target: Target
    dtype: str
    device: Choice[DeviceBackend]
    attention: Choice[AttentionBackend]
    loss: Choice[LossBackend]
    quantization: Choice[QuantizationBackend]
    problems: Problems = field(default_factory=dict, compare=False)

    def __iter__(self) -> Iterator[Choice[Any]]:
        yield from (self.device, self.attention, self.loss, self.quantization)

    def load(self) -> None:
        """Let every chosen backend do its heavy imports. Raises UsageError with the reason."""
        for choice in self:
            load_backend(choice.backend, choice.distribution)

    def as_dict(self) -> dict[str, Any]:
        """For checkpoints and run records: plain values only."""
        return {
            "target": str(self.target),
            "dtype": self.dtype,
            **{choice.hook: choice.as_dict() for choice in self},
        }


def load_backend(backend: Backend, distribution: str) -> None:
    """Load one backend; a failure names the backend and its distribution."""
    try:
        backend.load()
    except Exception as error:
        raise UsageError(
            f"{backend.hook} {backend.name!r} of {distribution} was chosen but did not load: "
            f"{one_line(error)}",
            f"Choose another with --{backend.hook}, or mend {distribution}",
        ) from error


def make_plan(
    registry: Registry,
    asked: Mapping[Hook, str],
    problems_for: Callable[[Target, str], Problems],
    *,
    dtype: str | None = None,
    measure: Measure | None = None,
) -> Plan:
    """Choose all four. `problems_for(target, dtype)` gives the shapes that the run needs there.

    Raises UsageError where a backend that was asked for by name cannot run, or none can.
    """
    device, target = choose_device(registry, asked.get("device", "auto"), dtype)
    dtype = dtype or device.backend.default_dtype(target)
    problems = problems_for(target, dtype)

    def pick(hook: Hook) -> Choice[Any]:
        return choose(registry, hook, asked.get(hook, "auto"), target, problems[hook], measure)

    return Plan(
        target=target,
        dtype=dtype,
        device=device,
        attention=pick("attention"),
        loss=pick("loss"),
        quantization=pick("quantization"),
        problems=problems,
    )


def choose_device(
    registry: Registry, asked: str, dtype: str | None = None
) -> tuple[Choice[DeviceBackend], Target]:
    """Probe the hardware and choose the device backend that drives it."""
    problem = DeviceProblem(dtype)
    found: list[tuple[Registered, Target, Support]] = []
    refusals: list[Refusal] = []
    if asked == "measure":
        raise UsageError("a device cannot be measured", "Use --device auto or name one")
    if asked == "auto":
        candidates = registry.backends("device")
    else:
        candidates = (_named(registry, "device", asked),)
    for registered in candidates:
        target, support = probe(registered, problem)
        if target is not None and support.ok:
            found.append((registered, target, support))
        else:
            refusals.append(Refusal(registered.backend.name, support.reason, support.remedy))
    if not found:
        raise _none_left("device", asked, refusals)
    found.sort(key=lambda f: (f[2].discouraged, -f[0].backend.priority(f[1])))
    registered, target, support = found[0]
    refusals += [Refusal(r.backend.name, "lower priority") for r, _, _ in found[1:]]
    reason = str(target) if asked == "auto" else f"asked for; {target}"
    return _choice(registered, asked, reason, support, refusals), target


def probe(registered: Registered, problem: DeviceProblem) -> tuple[Target | None, Support]:
    """Whether a device backend finds its hardware and may use it; its own failure is a no."""
    backend = registered.backend
    assert isinstance(backend, DeviceBackend)
    try:
        support = requirements(backend)
        if not support.ok:
            return None, support
        target = backend.probe()
        if target is None:
            return None, _support(backend.absent())
        if not isinstance(target, Target):
            raise TypeError(f"it found {target!r} where a Target is expected")
        return target, _ask(backend, target, problem)
    except Exception as error:
        return None, _failed("probe", registered, error)


def choose(
    registry: Registry,
    hook: Hook,
    asked: str,
    target: Target,
    problem: Problem,
    measure: Measure | None = None,
) -> Choice[Any]:
    """Choose the backend of one hook for a target and a problem."""
    if asked not in ("auto", "measure"):
        registered = _named(registry, hook, asked)
        support = examine(registered, target, problem)
        if not support.ok:
            refusal = Refusal(registered.backend.name, support.reason, support.remedy)
            raise _none_left(hook, asked, [refusal])
        # A slow yes becomes the choice's warning; any other reason belongs beside the name.
        more = f"; {support.reason}" if support.reason and not support.discouraged else ""
        return _choice(registered, asked, f"asked for{more}", support, [])

    able: list[tuple[Registered, Support]] = []
    refusals: list[Refusal] = []
    for registered in registry.backends(hook):
        support = examine(registered, target, problem)
        if support.ok:
            able.append((registered, support))
        else:
            refusals.append(Refusal(registered.backend.name, support.reason, support.remedy))
    if not able:
        raise _none_left(hook, asked, refusals)
    # sorted() is stable: among equals the core's own come first, then plugins by name.
    able = sorted(able, key=lambda a: (a[1].discouraged, -a[0].backend.priority(target)))
    if asked == "measure":
        if measure is None:
            raise UsageError(
                f"--{hook} measure is not possible here: nothing to time was given",
                f"Use --{hook} auto or name a backend",
            )
        winner, reason, *more = measure(hook, [r for r, _ in able], problem)
        lost = dict(*more)
        support = next(s for r, s in able if r is winner)
    else:
        winner, support = able[0]
        lost = {}
        reason = _why_first(able, target)
    for registered, other in able:
        if registered is not winner:
            why = other.reason if other.discouraged else "lower priority on this target"
            why = lost.get(registered.backend.name, why)
            refusals.append(Refusal(registered.backend.name, why, other.remedy))
    return _choice(winner, asked, reason, support, refusals)


def examine(registered: Registered, target: Target, problem: Problem) -> Support:
    """Everything a backend has to say about a target and a problem; its own failure is a no."""
    try:
        return _ask(registered.backend, target, problem)
    except Exception as error:
        return _failed("check", registered, error)


def _ask(backend: Backend, target: Target, problem: Problem) -> Support:
    """The first no; else the first yes that discourages; else the last answer's yes."""
    discouraged: Support | None = None
    for answer in (
        lambda: requirements(backend),
        lambda: _documents(backend, problem),
        lambda: backend.check(target),
        lambda: backend.supports(problem),
    ):
        support = _support(answer())
        if not support.ok:
            return support
        if support.discouraged and discouraged is None:
            discouraged = support
    # Asked here, where a failure has an owner, though it is used only when candidates are sorted.
    priority = backend.priority(target)
    if not isinstance(priority, int | float):
        raise TypeError(f"its priority is {priority!r}, not a number")
    return discouraged or support


def _support(answer: object) -> Support:
    if not isinstance(answer, Support):
        raise TypeError(f"it answered {answer!r} where a Support is expected")
    return answer


def requirements(backend: Backend) -> Support:
    """The first requirement that installed metadata does not meet, or yes."""
    for requirement in backend.requires:
        support = requirement.check()
        if not support.ok:
            return support
    return Support.yes()


def _documents(backend: Backend, problem: Problem) -> Support:
    """No, where documents share rows and the backend does not say that it keeps them apart.

    Asked here and not of `supports`: a backend that has never heard of them would say yes.
    """
    wanted = isinstance(problem, AttentionProblem) and problem.documents
    if wanted and "documents" not in backend.capabilities:
        return Support.no(
            "it cannot keep the documents of a row apart",
            "Use --attention sdpa, or leave out --document-mask",
        )
    return Support.yes()


def _failed(what: str, registered: Registered, error: Exception) -> Support:
    return Support.no(f"its {what} failed: {one_line(error)}", f"Mend {registered.distribution}")


def _why_first(able: Sequence[tuple[Registered, Support]], target: Target) -> str:
    first, support = able[0]
    if len(able) == 1:
        reason = "the only one that can run here"
    elif able[1][1].discouraged and not support.discouraged:
        reason = "the others are slow at this"
    else:
        mine, next_ = first.backend.priority(target), able[1][0].backend.priority(target)
        reason = (
            f"highest priority here ({mine}, then {able[1][0].backend.name} {next_})"
            if mine > next_
            else f"first of equal priority ({mine})"
        )
    return f"{reason}; {support.reason}" if support.reason else reason


def _choice(
    registered: Registered, asked: str, reason: str, support: Support, refusals: list[Refusal]
) -> Choice[Any]:
    how: How = "auto" if asked == "auto" else "measured" if asked == "measure" else "asked"
    warning = support.reason if support.discouraged else ""
    if warning and support.remedy:
        warning = f"{warning}. {support.remedy}"
    return Choice(
        hook=registered.backend.hook,
        backend=registered.backend,
        distribution=registered.distribution,
        version=registered.version,
        how=how,
        reason=reason,
        warning=warning,
        refusals=tuple(refusals),
    )


# Where a well-known name is found when its plugin is not installed.
KNOWN_ELSEWHERE = {
    "cce": "cce",
    "liger": "liger",
    "fa3": "fa3",
    "te": "te",
    "gb10": "gb10",
    "tpu": "xla",
    "pallas": "xla",
    "xla-flash": "xla",
}


def _named(registry: Registry, hook: Hook, name: str) -> Registered:
    registered = registry.find(hook, name)
    if registered is not None:
        return registered
    for broken in registry.broken:
        if name in (broken.name, broken.plugin) and broken.hook in (hook, None):
            raise UsageError(
                f"{hook} {name!r} of {broken.distribution} is broken: {broken.reason}",
                broken.remedy,
            )
    known = ", ".join(r.backend.name for r in registry.backends(hook))
    extra = KNOWN_ELSEWHERE.get(name)
    remedy = (
        f"It comes with a plugin: pip install 'nanochat-core[{extra}]'"
        if extra
        else "See nanochat-train --list-backends"
    )
    raise UsageError(f"no {hook} backend is called {name!r} (there are: {known})", remedy)


def _none_left(hook: Hook, asked: str, refusals: Sequence[Refusal]) -> UsageError:
    if len(refusals) == 1:
        only = refusals[0]
        return UsageError(f"{hook} {only.name!r} cannot run here: {only.reason}", only.remedy)
    reasons = "; ".join(f"{r.name}: {r.reason}" for r in refusals) or "no backend is registered"
    return UsageError(f"no {hook} backend can run here ({asked}): {reasons}")
