"""Sets what a device wants in the environment, never over the user's own values."""

from __future__ import annotations

import sys
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass

from nanochat.backend import Variable


@dataclass(frozen=True)
class Applied:
    """A variable and what became of it."""

    variable: Variable
    kept: str | None
    too_late: bool

    def __str__(self) -> str:
        name, value = self.variable.name, self.variable.value
        if self.kept is not None:
            same = "" if self.kept == value else f" (the device would like {value})"
            return f"{name}={self.kept}: kept yours{same}"
        late = " (set late: torch was imported already)" if self.too_late else ""
        return f"{name}={value}: {self.variable.reason}{late}"


def apply(variables: Sequence[Variable], environ: MutableMapping[str, str]) -> list[Applied]:
    """Set the variables that the user has not. Call it before torch is imported."""
    applied = []
    too_late = "torch" in sys.modules
    for variable in variables:
        kept = environ.get(variable.name)
        if kept is None:
            environ[variable.name] = variable.value
        applied.append(Applied(variable, kept, too_late and kept is None))
    return applied
