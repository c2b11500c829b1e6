"""Finds plugins, loads each in safety, and knows where each backend came from.

One broken plugin never takes a command down: it is kept with its one-line reason, and every
command that lists backends shows it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import pluggy

from nanochat import __version__, builtin, hookspecs
from nanochat.backend import API_VERSION, HOOKS, Backend, Hook
from nanochat.errors import UsageError

ENTRY_POINT_GROUP = "nanochat"
ONLY_VARIABLE = "NANOCHAT_PLUGINS"
CORE_DISTRIBUTION = "nanochat-core"


@dataclass(frozen=True)
class Registered:
    """A backend and the plugin that brought it."""

    backend: Backend
    plugin: str
    distribution: str
    version: str

    @property
    def origin(self) -> str:
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True)
class Broken:
    """A plugin, or one hook or backend of it, that could not be used."""

    plugin: str
    distribution: str
    version: str
    reason: str
    remedy: str
    hook: Hook | None = None
    name: str | None = None


@dataclass
class Registry:
    """Every usable backend by hook, in order of registration, and everything that was not."""

    _backends: dict[Hook, list[Registered]] = field(
        default_factory=lambda: {hook: [] for hook in HOOKS}
    )
    broken: list[Broken] = field(default_factory=list)

    def backends(self, hook: Hook) -> tuple[Registered, ...]:
        return tuple(self._backends[hook])

    def __iter__(self) -> Iterator[Registered]:
        for hook in HOOKS:
            yield from self._backends[hook]

    def find(self, hook: Hook, name: str) -> Registered | None:
        """The backend of that name or alias. Names win over aliases."""
        candidates = self._backends[hook]
        for registered in candidates:
            if registered.backend.name == name:
                return registered
        for registered in candidates:
            if name in registered.backend.aliases:
                return registered
        return None

    def add(self, registered: Registered) -> None:
        self._backends[registered.backend.hook].append(registered)


def discover(only: str | None = None) -> Registry:
    """Load the core's own backends and every installed plugin.

    `only` is a comma-separated list of plugin names (entry point or distribution) to load; an
    empty string loads none. It defaults to the variable NANOCHAT_PLUGINS. Raises UsageError if it
    names a plugin that is not installed: a plugin that was asked for never goes missing in silence.
    """
    if only is None:
        only = os.environ.get(ONLY_VARIABLE)
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    registry = Registry()
    _load(registry, manager, builtin, "builtin", CORE_DISTRIBUTION, __version__)
    for entry_point in _wanted(metadata.entry_points(group=ENTRY_POINT_GROUP), only):
        _load_entry_point(registry, manager, entry_point)
    return registry


def _wanted(
    entry_points: Iterable[metadata.EntryPoint], only: str | None
) -> list[metadata.EntryPoint]:
    # Sorted, so that the outcome of a clash does not depend on the order of installation.
    found = sorted(entry_points, key=lambda e: (e.name, e.value))
    if only is None:
        return found
    names = [name.strip() for name in only.split(",") if name.strip()]
    chosen = [e for e in found if {e.name, _distribution(e)[0]} & set(names)]
    missing = [n for n in names if not any(n in (e.name, _distribution(e)[0]) for e in chosen)]
    if missing:
        installed = ", ".join(e.name for e in found) or "none"
        raise UsageError(
            f"{ONLY_VARIABLE} names {', '.join(missing)}, which is not an installed plugin "
            f"(installed: {installed})",
            f"Install it or mend {ONLY_VARIABLE}",
        )
    return chosen


def _distribution(entry_point: metadata.EntryPoint) -> tuple[str, str]:
    """The name and version of the distribution that an entry point comes from."""
    if entry_point.dist is None:
        return entry_point.name, "?"
    # A half removed distribution has an entry point but neither name nor version.
    return entry_point.dist.name or entry_point.name, entry_point.dist.version or "?"


def _load_entry_point(
    registry: Registry, manager: pluggy.PluginManager, entry_point: metadata.EntryPoint
) -> None:
    distribution, version = _distribution(entry_point)
    plugin = entry_point.name

    def broken(reason: str, remedy: str) -> None:
        registry.broken.append(Broken(plugin, distribution, version, reason, remedy))

    wants = _incompatible_core(entry_point.dist)
    if wants is not None:
        broken(
            f"it needs {CORE_DISTRIBUTION} {wants}, {__version__} is installed",
            f"pip install --upgrade {distribution} {CORE_DISTRIBUTION}",
        )
        return
    try:
        module = entry_point.load()
    except BaseException as error:  # a plugin may even call sys.exit() on import
        if isinstance(error, KeyboardInterrupt):
            raise
        broken(f"its import failed: {one_line(error)}", f"Mend or uninstall {distribution}")
        return
    _load(registry, manager, module, plugin, distribution, version)


def _load(
    registry: Registry,
    manager: pluggy.PluginManager,
    module: object,
    plugin: str,
    distribution: str,
    version: str,
) -> None:
    """Register one plugin and take its backends hook by hook."""
    remedy = f"Mend or uninstall {distribution}"

    def broken(reason: str, hook: Hook | None = None, name: str | None = None) -> None:
        registry.broken.append(Broken(plugin, distribution, version, reason, remedy, hook, name))

    try:
        manager.register(module, name=f"{distribution}:{plugin}")
    except Exception as error:
        broken(f"its hooks do not fit the hook specs: {one_line(error)}")
        return
    callers = manager.get_hookcallers(module) or []
    unknown = [c.name for c in callers if not c.has_spec()]
    if unknown:
        broken(f"it implements {', '.join(unknown)}, which nanochat does not define")
    if not callers:
        broken("it implements no hook of nanochat (is `nanochat.hookimpl` missing?)")
    for hook in HOOKS:
        caller = next((c for c in callers if c.name == f"nanochat_{hook}"), None)
        if caller is None:
            continue
        # One plugin at a time, so that a failure has an owner.
        implementations = [i for i in caller.get_hookimpls() if i.plugin is module]
        for implementation in implementations:
            try:
                answer: Any = implementation.function()
                offered = list(answer)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                broken(f"nanochat_{hook} failed: {one_line(error)}", hook)
                continue
            for backend in offered:
                name = None
                try:
                    name = getattr(backend, "name", None)
                    reason = _reason_to_refuse(registry, hook, backend)
                except Exception as error:
                    reason = f"it cannot describe itself: {one_line(error)}"
                if reason is None:
                    registry.add(Registered(backend, plugin, distribution, version))
                else:
                    broken(reason, hook, name if isinstance(name, str) else None)


def _reason_to_refuse(registry: Registry, hook: Hook, backend: object) -> str | None:
    """Why something that a hook returned cannot be a backend of it, or None."""
    if not isinstance(backend, Backend):
        what = "the class itself" if isinstance(backend, type) else f"a {type(backend).__name__}"
        return f"nanochat_{hook} returned {what} where an instance of Backend is expected"
    api = getattr(backend, "api", None)
    if api != API_VERSION:
        return f"it speaks api {api!r}, this core speaks {API_VERSION}"
    if getattr(backend, "hook", None) != hook:
        return f"nanochat_{hook} returned a backend of {getattr(backend, 'hook', None)!r}"
    if not isinstance(backend.aliases, (tuple, list)):
        return f"its aliases {backend.aliases!r} are not a tuple of names"
    for what, name in (
        ("name", getattr(backend, "name", None)),
        *(("alias", alias) for alias in backend.aliases),
    ):
        if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name):
            return f"its {what} {name!r} is not lower-case letters, digits, '-', '_' or '.'"
        if name in RESERVED_NAMES:
            return f"its {what} {name!r} is reserved"
    if not isinstance(getattr(backend, "summary", None), str):
        return "it has no summary"
    for taken in registry.backends(hook):
        theirs = {taken.backend.name, *taken.backend.aliases}
        clash = theirs & {backend.name, *backend.aliases}
        if clash:
            return f"the name {min(clash)!r} is already taken by {taken.origin}"
    return None


RESERVED_NAMES = frozenset({"auto", "measure"})


def _incompatible_core(distribution: metadata.Distribution | None) -> str | None:
    """The range of the core that a distribution demands, if this core is outside of it."""
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    for line in (distribution.requires or []) if distribution is not None else []:
        if canonicalize_name(line[: len(CORE_DISTRIBUTION)]) != CORE_DISTRIBUTION:
            continue  # parsing is slow enough to matter in a listing
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if canonicalize_name(requirement.name) != CORE_DISTRIBUTION or (
            requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})
        ):
            continue
        if not requirement.specifier.contains(__version__, prereleases=True):
            return str(requirement.specifier)
    return None


def one_line(error: BaseException) -> str:
    """An exception as one line: its type and the first line of its message."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
