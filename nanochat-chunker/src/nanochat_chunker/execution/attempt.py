"""Running the items of a job in the process at hand, and what is left after a failure."""

import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nanochat_chunker.errors import ChunkerError
from nanochat_chunker.execution.jobs import (
    Done,
    Event,
    Failure,
    ItemError,
    Job,
    Restart,
    Result,
    Task,
)

PREPARATION = -1  # the place of an error before the first item
# Preparing may read the index of a whole project.
PREPARATION_FACTOR = 20
_TRIES = 2  # a process may also die for a reason outside; an item is to blame the second time


class Step(NamedTuple):
    """`kind` is prepared, result, error or end; `place` is among the items given."""

    kind: str
    place: int
    value: Any = None
    detail: str = ""


def no_timer(seconds: float | None) -> None:
    """Arms nothing."""


def cpu_timer(seconds: float | None) -> None:
    """A SIGPROF after so many CPU seconds of this process; None disarms."""
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.setitimer(signal.ITIMER_PROF, seconds or 0)


def attempt(
    task: Task,
    payload: Any,
    items: Sequence[Any],
    seconds: float | None,
    timer: Callable[[float | None], None],
) -> Iterator[Step]:
    """Runs the items one by one with the timer armed for each. Any error ends the attempt."""
    place = PREPARATION
    try:
        timer(seconds * PREPARATION_FACTOR if seconds else None)
        results = task(payload, items)
        timer(None)
        yield Step("prepared", PREPARATION)
        while True:
            place += 1
            timer(seconds)
            try:
                value = next(results)
            except StopIteration:
                break
            finally:
                timer(None)
            yield Step("result", place, value)
    except ItemError as error:
        yield Step("error", place, error.reason)
    except ChunkerError:
        raise
    except MemoryError:
        yield Step("error", place, "out_of_memory")
    except RecursionError:
        yield Step("error", place, "too_deep")
    except Exception as error:  # noqa: BLE001 - costs one file of a whole run, counted and shown
        where = traceback.extract_tb(error.__traceback__)[-1]
        detail = f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})"
        yield Step("error", place, "internal_error", detail)
    else:
        yield Step("end", place)
    finally:
        timer(None)


def limit_memory(limit: int | None) -> None:
    """Makes allocations above `limit` bytes fail in this process, where the system can."""
    if limit is None:
        return
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


@dataclass
class Course:
    """A job on its way: which of its items are still to be done."""

    job: Job
    left: list[int] = field(default_factory=list)
    tries: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, job: Job) -> "Course":
        return cls(job, list(range(len(job.items))))

    def items(self) -> list[Any]:
        return [self.job.items[number] for number in self.left]

    def number(self, place: int) -> int:
        """The number in the job of what is at `place` of what was left."""
        if place < len(self.left):
            return self.left[place]
        return len(self.job.items) + place - len(self.left)

    def result(self, place: int, value: Any) -> Result:
        return Result(self.job, self.number(place), value)

    def after_error(
        self, place: int, reason: str, detail: str = "", *, again: bool = False
    ) -> tuple[list[Event], bool]:
        """What to tell after an error at `place`, and whether there is more to run.

        `again`: the reason may lie outside the item, so it gets a second try.
        """
        job = self.job
        name = place if place == PREPARATION else self.number(place)
        tries = self.tries[name] = self.tries.get(name, 0) + 1
        if again and tries < _TRIES:
            if job.restart or place == PREPARATION:
                return [Restart(job)] if job.restart else [], True
            self.left = self.left[place:]
            return [], True
        if place == PREPARATION:
            events: list[Event] = [Failure(job, n, reason, detail) for n in self.left]
            return [*events, Done(job)], False
        events = [Failure(job, self.number(place), reason, detail)]
        if place >= len(self.left):  # the end of the job: nothing to leave out
            return [*events, Done(job)], False
        if job.restart:
            del self.left[place]
            events.insert(0, Restart(job))
        else:
            self.left = self.left[place + 1 :]
        if not self.left and not job.restart:
            return [*events, Done(job)], False
        return events, True
