"""Verifying a whole output."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Report:
    """The rates of one verification."""

    documents: int = 0
    alone: int = 0
    with_includes: int | None = None

    def lines(self) -> list[str]:
        return [f"{self.alone} of {self.documents} documents compile alone"]

    def to_json(self) -> dict[str, Any]:
        return {"documents": self.documents, "alone": self.alone}


def verify_output(
    output: Path,
    *,
    sample: int | None = None,
    include_dirs: Sequence[Path] = (),
    compiler: str | None = None,
    annotate: bool = False,
    workers: int = 1,
    seed: int = 42,
    timeout_s: float = 60.0,
    memory_mb: int = 4096,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Compiles documents of `output`. Still a stub."""
    return Report()
