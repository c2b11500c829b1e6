"""Every backend and its state, for `--list-backends`. Imports neither torch nor rich."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from dataclasses import asdict, dataclass
from typing import Any, TextIO

from nanochat.backend import HOOKS, DeviceBackend, Hook, Problem, Support, Target
from nanochat.errors import NanochatError
from nanochat.plan import Choice, choose, choose_device, examine, probe
from nanochat.registry import Registered, Registry, discover
from nanochat.train.config import TrainConfig
from nanochat.train.problems import problems_of

DEFAULT_VOCABULARY = 32768
"""Assumed where there is no tokenizer yet."""

SELECTED, AVAILABLE, UNAVAILABLE, BROKEN = "selected", "available", "unavailable", "broken"


@dataclass(frozen=True)
class Entry:
    """One backend. `hook` and `name` of a plugin that did not even load are "" and its own."""

    hook: str
    name: str
    distribution: str
    version: str
    state: str
    reason: str
    remedy: str
    capabilities: tuple[str, ...] = ()


def show(config: TrainConfig, *, as_json: bool = False, out: TextIO | None = None) -> int:
    """Print the listing. Returns 2 where what the flags ask for cannot be had, told on stderr."""
    out = out or sys.stdout
    found, complaints = entries(discover(), config)
    if as_json:
        json.dump([asdict(e) for e in found], out, indent=1)
        out.write("\n")
    else:
        width = shutil.get_terminal_size().columns if out.isatty() else 100
        out.write(table(found, width))
    out.flush()
    for complaint in complaints:
        print(f"error: {complaint}", file=sys.stderr)
    return 2 if complaints else 0


def entries(registry: Registry, config: TrainConfig) -> tuple[list[Entry], list[str]]:
    """Every backend and broken plugin, and what would end a training command with these flags."""
    complaints: list[str] = []
    device, target = _device(registry, config, complaints)
    found: list[Entry] = []
    problems: dict[Hook, Problem] = {}
    if target is not None:
        backend = device.backend if device is not None else None
        dtype = config.dtype or (backend.default_dtype(target) if backend else "float32")
        try:
            model = config.model_config(_vocabulary(config))
            problems = dict(
                problems_of(model, config.device_batch_size, target, dtype, compiled=config.compile)
            )
        except NanochatError as error:
            complaints.append(str(error))
    for hook in HOOKS:
        chosen: Choice[Any] | None = device if hook == "device" else None
        if hook != "device" and target is not None and problems:
            asked = config.asked[hook]
            try:
                # What `measure` would find is not known before it has measured.
                chosen = choose(
                    registry, hook, "auto" if asked == "measure" else asked, target, problems[hook]
                )
            except NanochatError as error:
                complaints.append(str(error))
        for registered in registry.backends(hook):
            found.append(_entry(registered, chosen, target, problems.get(hook), config))
    for broken in registry.broken:
        found.append(
            Entry(
                hook=broken.hook or "",
                name=broken.name or broken.plugin,
                distribution=broken.distribution,
                version=broken.version,
                state=BROKEN,
                reason=broken.reason,
                remedy=broken.remedy,
            )
        )
    return found, complaints


def _device(
    registry: Registry, config: TrainConfig, complaints: list[str]
) -> tuple[Choice[DeviceBackend] | None, Target | None]:
    """The device that the flags choose, or the one that `auto` would, to say something of the
    others."""
    for asked in dict.fromkeys((config.device, "auto")):
        try:
            choice, target = choose_device(registry, asked, config.dtype or None)
        except NanochatError as error:
            complaints.append(str(error))
        else:
            return (choice if asked == config.device else None), target
    return None, None


def _entry(
    registered: Registered,
    chosen: Choice[Any] | None,
    target: Target | None,
    problem: Problem | None,
    config: TrainConfig,
) -> Entry:
    backend = registered.backend
    if chosen is not None and chosen.backend is backend:
        state, support = SELECTED, Support.yes(chosen.warning or chosen.reason)
    else:
        support = _support(registered, target, problem)
        state = AVAILABLE if support.ok else UNAVAILABLE
        if support.ok and not support.reason and chosen is not None:
            refused = {r.name: r for r in chosen.refusals}
            if backend.name in refused:
                support = Support.yes(refused[backend.name].reason)
    return Entry(
        hook=backend.hook,
        name=backend.name,
        distribution=registered.distribution,
        version=registered.version,
        state=state,
        reason=support.reason,
        remedy=support.remedy,
        capabilities=tuple(backend.capabilities),
    )


def _support(registered: Registered, target: Target | None, problem: Problem | None) -> Support:
    if isinstance(registered.backend, DeviceBackend):
        from nanochat.backend import DeviceProblem

        found, support = probe(registered, DeviceProblem())
        return Support.yes(str(found)) if support.ok and found is not None else support
    if target is None:
        return Support.no("there is no device to run on")
    if problem is None:
        return Support.no("the shapes of the run are not valid")
    return examine(registered, target, problem)


def _vocabulary(config: TrainConfig) -> int:
    try:
        path = config.tokenizer_path()
    except NanochatError:
        return DEFAULT_VOCABULARY
    # Not through `data.tokenizer`: numpy alone would take longer to import than all the rest.
    from nanochat.data import tokenizer_json

    file = tokenizer_json.locate(path)
    return tokenizer_json.parse(tokenizer_json.read(file), str(file)).vocab_size


def table(found: list[Entry], width: int) -> str:
    """The entries by hook, in aligned columns, reasons wrapped to a width."""
    if not found:
        return "no backends\n"
    names = max(len(e.name) for e in found)
    states = max(len(e.state) for e in found)
    origins = max(len(_origin(e)) for e in found)
    indent = 2 + names + 2 + states + 2 + origins + 2
    narrow = width - indent < 30
    lines: list[str] = []
    for hook in (*HOOKS, ""):
        of_hook = [e for e in found if e.hook == hook]
        if not of_hook:
            continue
        lines.append(hook or "plugins that did not load")
        for entry in of_hook:
            head = (
                f"  {entry.name:<{names}}  {entry.state:<{states}}  {_origin(entry):<{origins}}  "
            )
            told = _told(entry)
            if narrow:
                lines.append(head.rstrip())
                lines += textwrap.wrap(
                    told, max(width, 40), initial_indent=" " * 4, subsequent_indent=" " * 4
                )
            else:
                wrapped = textwrap.wrap(told, width - indent) or [""]
                lines.append((head + wrapped[0]).rstrip())
                lines += [" " * indent + more for more in wrapped[1:]]
        lines.append("")
    return "\n".join(lines)


def _origin(entry: Entry) -> str:
    return f"{entry.distribution} {entry.version}"


def _told(entry: Entry) -> str:
    told = entry.reason
    if entry.remedy:
        told = f"{told.rstrip('.')}. {entry.remedy}"
    if entry.capabilities:
        told = f"{told} [{', '.join(entry.capabilities)}]".strip()
    return told
