"""Which backend a call of `nanochat.kernels` gets: the process's choice, or that of a `with` block.

A function under `torch.compile` keeps the backend that was chosen when it was traced.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from nanochat.backend import AttentionProblem, Hook, LossProblem, Problem, Target
from nanochat.errors import UsageError
from nanochat.plan import (
    KNOWN_ELSEWHERE,
    Choice,
    choose,
    choose_device,
    load_backend,
    requirements,
)
from nanochat.registry import Registry, discover


@dataclass(frozen=True)
class Selection:
    """The names asked for, one a hook: `auto` or a backend's."""

    attention: str = "auto"
    loss: str = "auto"


class _Process:
    """What all threads of the process share. Replaced whole under the lock, read without it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.selection = Selection()
        self.loaded: dict[str, Any] = {}


_process = _Process()
_scoped: ContextVar[Selection | None] = ContextVar("nanochat_kernels", default=None)


def set_kernel_backend(name: str) -> None:
    """Choose a backend for the whole process, by its name or alias; `auto` undoes every choice.

    The name says which hook it belongs to. Raises UsageError if no attention or loss backend is
    called so, or if it cannot run on this machine.
    """
    with _process.lock:
        if name == "auto":
            _process.selection = Selection()
            return
        hook = _hook_of(name)
        _check_here(hook, name)
        _process.selection = replace(_process.selection, **{hook: name})


@contextmanager
def use(*, attention: str | None = None, loss: str | None = None) -> Iterator[None]:
    """Choose backends within a `with` block, for this thread (or asynchronous task) alone."""
    asked = {h: n for h, n in (("attention", attention), ("loss", loss)) if n is not None}
    for hook, name in asked.items():
        if name != "auto":
            _check_here(hook, name)  # type: ignore[arg-type]
    token = _scoped.set(replace(_selection(), **asked))
    try:
        yield
    finally:
        _scoped.reset(token)


def choice_for(problem: Problem) -> Choice[Any]:
    """The backend that a problem gets under the present selection, with its reasons."""
    hook: Hook = "attention" if isinstance(problem, AttentionProblem) else "loss"
    return _choice(hook, getattr(_selection(), hook), problem)


def _selection() -> Selection:
    return _scoped.get() or _process.selection


# A function that is being traced calls these with plain values and keeps the answer, a plain
# string: the tracer follows neither context variables nor objects made on the way.


@torch.compiler.assume_constant_result
def loss_name(*facts: Any) -> str:
    return _loaded_name(LossProblem(*facts))


@torch.compiler.assume_constant_result
def attention_name(
    *facts: Any, windows: tuple[int | None], training: bool, documents: bool = False
) -> str:
    *shape, dtype = facts
    return _loaded_name(
        AttentionProblem(
            *shape, windows=windows, dtype=dtype, training=training, documents=documents
        )
    )


def loaded(name: str) -> Any:
    """The backend of a name that `loss_name` or `attention_name` gave."""
    return _process.loaded[name]


def _loaded_name(problem: Problem) -> str:
    backend = choice_for(problem).backend
    name = f"{backend.hook}:{backend.name}"
    _process.loaded[name] = backend
    return name


@lru_cache(maxsize=1024)
def _choice(hook: Hook, asked: str, problem: Problem) -> Choice[Any]:
    choice = choose(_registry(), hook, asked, _target(problem.device), problem)  # type: ignore[union-attr]
    load_backend(choice.backend, choice.distribution)
    return choice


@lru_cache(maxsize=1)
def _registry() -> Registry:
    return discover()


@lru_cache(maxsize=8)
def _target(kind: str) -> Target:
    """The hardware of a torch device kind, which need not be the one that `auto` would take."""
    for registered in _registry().backends("device"):
        backend = registered.backend
        target = backend.probe() if backend.name == kind else None  # type: ignore[attr-defined]
        if target is not None:
            return target
    _, target = choose_device(_registry(), "auto")
    return target


def _hook_of(name: str) -> Hook:
    for hook in ("loss", "attention"):
        if _registry().find(hook, name) is not None:  # type: ignore[arg-type]
            return hook  # type: ignore[return-value]
    known = ", ".join(
        r.backend.name
        for h in ("attention", "loss")
        for r in _registry().backends(h)  # type: ignore[arg-type]
    )
    extra = KNOWN_ELSEWHERE.get(name)
    raise UsageError(
        f"no attention or loss backend is called {name!r} (there are: {known})",
        f"It comes with a plugin: pip install 'nanochat-core[{extra}]'"
        if extra
        else "See nanochat-train --list-backends",
    )


def _check_here(hook: Hook, name: str) -> None:
    """Refuse at once what could not run on this machine, whatever the tensors."""
    _, target = choose_device(_registry(), "auto")
    registered = _registry().find(hook, name)
    if registered is None:
        raise UsageError(
            f"no {hook} backend is called {name!r}", "See nanochat-train --list-backends"
        )
    support = requirements(registered.backend)
    if support.ok:
        support = registered.backend.check(target)
    if not support.ok:
        raise UsageError(f"{hook} {name!r} cannot run here: {support.reason}", support.remedy)
