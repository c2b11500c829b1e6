"""Which job a process takes next."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable

from nanochat_chunker.execution.attempt import Course
from nanochat_chunker.execution.jobs import Job

# Jobs looked at to find one of another affinity. Those that have one are small.
_AHEAD = 512


class JobQueue:
    """Gives each process jobs of the affinity it has prepared for, then of one that none has."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._source = iter(jobs)
        self._again: deque[Course] = deque()
        self._ahead: deque[Job] = deque()

    def put_back(self, course: Course, *, first: bool = False) -> None:
        """A job that a process could not finish."""
        if first:
            self._again.appendleft(course)
        else:
            self._again.append(course)

    def take(self, mine: Hashable, others: set[Hashable]) -> Course | None:
        """The next job for a process prepared for `mine`, where others are for `others`."""
        if self._again:
            return self._again.popleft()
        if not self._ahead and not self._look():
            return None
        if self._ahead[0].affinity is None:
            return Course.of(self._ahead.popleft())
        if mine is not None:
            found = self._find(lambda affinity: affinity == mine)
            if found is not None:
                return found
        while True:
            found = self._find(lambda affinity: affinity not in others)
            if found is not None:
                return found
            if len(self._ahead) >= _AHEAD or not self._look():
                return Course.of(self._ahead.popleft())

    def _look(self) -> bool:
        job = next(self._source, None)
        if job is not None:
            self._ahead.append(job)
        return job is not None

    def _find(self, wanted: Callable[[Hashable], bool]) -> Course | None:
        for place, job in enumerate(self._ahead):
            if wanted(job.affinity):
                del self._ahead[place]
                return Course.of(job)
        return None
