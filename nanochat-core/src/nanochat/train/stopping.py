"""Ctrl-C and SIGTERM: finish the step, save, say so. A second signal ends the process at once,
but for another SIGTERM soon after the first: a machine that is shut down sends several."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from nanochat.errors import NanochatError

T = TypeVar("T")


class Stopped(NanochatError):
    """The run was asked to stop; its status is that of a process which the signal ended."""

    def __init__(self, signal_number: int, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.status = 128 + signal_number

    def __reduce__(self) -> tuple[Any, ...]:
        return Stopped, (self.status - 128, self.message, self.remedy)  # ranks hand it on


class CutShort(Exception):
    """Raised where a signal cuts a wait or an evaluation short."""


class StopRequest:
    """Remembers the first SIGINT or SIGTERM while it is entered as a context.

    `cuts` says whether waits and evaluations may be cut short: not where other ranks take part.
    `notice` is written to standard error when the signal comes.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)
    REPEATS = 30.0
    """Seconds in which SIGTERM may come again: to the group, to the process, from its launcher."""

    def __init__(self, *, cuts: bool, notice: str = "") -> None:
        self.signal: int | None = None
        self.because = ""
        """What a watcher found out before it raised the signal, for the last message."""
        self._since = 0.0
        self._cuts = cuts
        self._notice = notice.encode()
        self._waiting = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        # Python takes signals in the main thread alone; elsewhere the host program keeps them.
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    @property
    def armed(self) -> bool:
        """True while signals come here."""
        return bool(self._before)

    def told_by_another(self) -> None:
        """Take over the signal that another rank was sent."""
        if self.signal is None:
            self.signal, self._since = signal.SIGTERM, time.monotonic()

    def left(self, grace: float) -> float | None:
        """Seconds until a machine that sent SIGTERM is gone; None if it did not."""
        if self.signal != signal.SIGTERM:
            return None
        return self._since + grace - time.monotonic()

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        self._since = time.monotonic()
        os.write(2, self._notice)  # a handler may not print: it may have interrupted a print
        signal.signal(signal.SIGINT, signal.default_int_handler)
        again = self._repeated if number == signal.SIGTERM else signal.SIG_DFL
        signal.signal(signal.SIGTERM, again)
        if self._waiting:
            raise CutShort

    def _repeated(self, number: int, _: FrameType | None) -> None:
        if time.monotonic() - self._since > self.REPEATS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def __bool__(self) -> bool:
        return self.signal is not None

    @contextmanager
    def wait(self) -> Iterator[None]:
        """Within it a signal raises CutShort at once: for waits that may take long."""
        self.check()
        self._waiting = self._cuts
        try:
            yield
        finally:
            self._waiting = False

    def check(self, *_: object) -> None:
        """Raise CutShort if there was a signal: for places where work can be given up."""
        if self and self._cuts:
            raise CutShort

    def watch(self, items: Iterable[T]) -> Iterator[T]:
        """The items, until a signal raises CutShort between two of them."""
        for item in items:
            self.check()
            yield item
