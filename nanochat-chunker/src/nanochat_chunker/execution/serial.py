"""All work in the calling process: for debugging, and where processes cannot be started."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from nanochat_chunker.execution.attempt import Course, attempt, cpu_timer, no_timer
from nanochat_chunker.execution.jobs import Done, Event, ItemError, Job, Limits


class SerialPool:
    """Does each job at once. A time limit holds for Python code only; a crash is a crash."""

    shares_disk = True

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def run(self, jobs: Iterable[Job]) -> Iterator[Event]:
        with _time_limits() as timer:
            for job in jobs:
                yield from self._run(Course.of(job), timer)

    def _run(self, course: Course, timer: Callable[[float | None], None]) -> Iterator[Event]:
        job, more = course.job, True
        while more:
            more = False
            steps = attempt(job.task, job.payload, course.items(), self._limits.seconds, timer)
            for step in steps:
                if step.kind == "result":
                    yield course.result(step.place, step.value)
                elif step.kind == "error":
                    events, more = course.after_error(step.place, step.value, step.detail)
                    yield from events
                elif step.kind == "end":
                    yield Done(job)

    def __enter__(self) -> "SerialPool":
        return self

    def __exit__(self, *_: object) -> None:
        pass


@contextmanager
def _time_limits() -> Iterator[Callable[[float | None], None]]:
    """A timer that raises in the code that is running, in the main thread of a POSIX system."""
    on_main = threading.current_thread() is threading.main_thread()
    if not on_main or not hasattr(signal, "SIGPROF"):
        yield no_timer
        return

    def too_slow(_signal: int, _frame: FrameType | None) -> None:
        raise ItemError("too_slow")

    before = signal.signal(signal.SIGPROF, too_slow)
    try:
        yield cpu_timer
    finally:
        cpu_timer(None)
        signal.signal(signal.SIGPROF, before)
