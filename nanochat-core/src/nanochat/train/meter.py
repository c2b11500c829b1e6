"""What is counted along a run: the smoothed loss, time, speed and the best validation."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass

SMOOTHING = 0.9
RECENT = 20
"""Steps whose median pace tells the time left: the first, which compiles, soon drops out."""


@dataclass
class Meter:
    """Plain numbers that a checkpoint carries. `seconds` are those of training steps alone."""

    updates: int = 0
    average: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    val_bpb: float | None = None
    best_val_bpb: float | None = None
    core_metric: float | None = None

    def __post_init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=RECENT)

    @classmethod
    def from_dict(cls, values: Mapping[str, float]) -> Meter:
        known = cls.__dataclass_fields__
        return cls(**{k: v for k, v in values.items() if k in known})  # type: ignore[arg-type]

    def as_dict(self) -> dict[str, float | int | None]:
        return asdict(self)

    @property
    def smooth_loss(self) -> float:
        """The exponential average of the loss, without the bias towards its start at zero."""
        return self.average / (1 - SMOOTHING**self.updates)

    def count(self, loss: float, tokens: int, seconds: float) -> None:
        """One more step."""
        self.updates += 1
        self.average = SMOOTHING * self.average + (1 - SMOOTHING) * loss
        self.tokens += tokens
        self.seconds += seconds
        self._recent.append(seconds)

    def validated(self, bpb: float) -> None:
        """One more validation."""
        self.val_bpb = bpb
        self.best_val_bpb = bpb if self.best_val_bpb is None else min(bpb, self.best_val_bpb)

    def seconds_for(self, steps: int) -> float | None:
        """How long that many steps will take, or None before a step without compilation ended."""
        if len(self._recent) < 2:
            return None
        return steps * statistics.median(self._recent)
