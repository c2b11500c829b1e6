"""`nanochat-train --check-backends`: the conformance suite on the user's own machine."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TextIO

from nanochat.errors import UsageError
from nanochat.plan import choose_device
from nanochat.registry import Registry, discover
from nanochat.testing.contract import Result
from nanochat.testing.runner import parse_names, run_checks
from nanochat.train import environment


def check(
    names: Sequence[str],
    *,
    device: str = "auto",
    dtype: str = "",
    as_json: bool = False,
    out: TextIO | None = None,
) -> int:
    """Check the named backends (`HOOK:NAME`, `HOOK` or `NAME`), or all of them, and print a table.

    Returns 1 if a check fails, or if a backend that was named alone cannot run here: what was
    asked for was not shown. Raises UsageError for unknown names.
    """
    out = out or sys.stdout
    registry = discover()
    wanted = parse_names(registry, list(names))
    driver, target = choose_device(registry, device)
    environment.apply(driver.backend.environment(target), os.environ)  # before torch is imported
    results: list[Result] = []
    status = 0
    for hook, name in wanted:
        try:
            for result in run_checks(hook, name, device=device, dtype=dtype, registry=registry):
                results.append(result)
                if not as_json:
                    out.write(_line(result))
                    out.flush()
        except UsageError as error:  # it did not load: that is a finding like any other
            results.append(Result(hook, name, "load", "failed", str(error)))
            if not as_json:
                out.write(_line(results[-1]))
        last = results[-1]
        if last.check == "machine" and last.outcome == "refused" and _named(registry, names, name):
            print(f"error: {last.detail}", file=sys.stderr)
            status = 1
    if as_json:
        json.dump([asdict(r) for r in results], out, indent=1)
        out.write("\n")
    else:
        counts = Counter(r.outcome for r in results)
        told = ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items()))
        out.write(f"\n{told or 'nothing to check'} (on {target})\n")
    out.flush()
    return 1 if any(r.outcome == "failed" for r in results) else status


def _named(registry: Registry, names: Sequence[str], name: str) -> bool:
    """True if the user asked for this backend itself, not for all of a hook."""
    asked = {given.rpartition(":")[2] for given in names}
    return any(r.backend.name == name and asked & {name, *r.backend.aliases} for r in registry)


def _line(result: Result) -> str:
    backend = f"{result.hook}:{result.backend}"
    return f"{backend:<24} {result.check:<24} {result.outcome:<14} {result.detail}".rstrip() + "\n"
