"""Tells the person at the terminal how the run goes."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Pace:
    """One finished step in numbers. `seconds_left` and `mfu` (0 to 1) are None while unknown."""

    step: int
    num_iterations: int
    loss: float
    tokens_per_second: float
    mfu: float | None
    memory_peak: int | None
    seconds_left: float | None

    def line(self) -> str:
        width = len(str(self.num_iterations))
        parts = [
            f"step {self.step + 1:{width}d}/{self.num_iterations}",
            f"loss {self.loss:.4f}",
            f"{self.tokens_per_second:,.0f} tokens/s",
        ]
        if self.mfu is not None:
            parts.append(f"MFU {100 * self.mfu:.1f}%")
        if self.memory_peak is not None:
            parts.append(f"peak {self.memory_peak / 2**30:.2f} GiB")
        if self.seconds_left is not None:
            parts.append(f"{duration(self.seconds_left)} left")
        return " · ".join(parts)


def duration(seconds: float) -> str:
    """42s, 3m05s, 2h07m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Progress:
    """A line that renews itself on a terminal, a line every `every` steps elsewhere."""

    def __init__(self, *, every: int, quiet: bool = False) -> None:
        self._every = every
        self._quiet = quiet
        self._live: Any = None
        self._console: Any = None

    def __enter__(self) -> Progress:
        if not self._quiet:
            from rich.console import Console

            self._console = Console(highlight=False, soft_wrap=True)
            if self._console.is_terminal:
                from rich.live import Live

                self._live = Live(console=self._console, refresh_per_second=4, transient=True)
                self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._console is not None:
            self._console.print(text, markup=False)

    def step(self, pace: Pace) -> None:
        """A step has ended."""
        if self._quiet:
            return
        last = pace.step + 1 == pace.num_iterations
        if self._live is not None:
            self._live.update(pace.line())
        if last or pace.step == 0 or (pace.step + 1) % self._every == 0:
            self.say(pace.line())
