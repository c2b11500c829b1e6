"""The environment that the tests run in is the one that the workspace describes."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]


def constraints() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("constraint", constraints(), ids=str)
def test_installed_versions_are_those_of_the_constraints(constraint: Requirement) -> None:
    # A local part such as +cpu or +cu130 is the user's own choice.
    assert constraint.specifier.contains(metadata.version(constraint.name))
