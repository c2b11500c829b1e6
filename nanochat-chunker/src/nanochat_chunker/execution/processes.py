"""A pool of processes in which a process may die at any time.

The pool of the standard library is broken for good when one of its processes dies, and cannot
stop a task that hangs in C. Here each process has a pipe of its own and sends each result as it
comes, so that the item it was at is known when it dies. Time is limited by a signal whose default
action ends the process: it reaches code that never returns to Python.
"""

import contextlib
import gc
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from nanochat_chunker.errors import ChunkerError
from nanochat_chunker.execution.attempt import (
    PREPARATION,
    PREPARATION_FACTOR,
    Course,
    Step,
    attempt,
    cpu_timer,
    limit_memory,
)
from nanochat_chunker.execution.jobs import Done, Event, Job, Limits
from nanochat_chunker.execution.queue import JobQueue

# A job is sent ahead only if it fits into the pipe: else both ends could wait on each other.
_AHEAD_BYTES = 16 << 10
# CPU time does not pass while a process waits for a dead network drive. It is ended after so long,
# unless it gets on, however slowly, on a machine with too much to do.
_WALL_FACTOR = 10
_WALL_SLACK = 60.0
_IDLE_SHARE = 0.002  # of a core
_STARTS = 3  # processes that may die before their first word, until the pool gives up


class ProcessPool:
    """`workers` processes, started as they are needed, ended with the pool or its process."""

    shares_disk = True

    def __init__(self, workers: int, limits: Limits) -> None:
        self._limits = limits
        self._count = workers
        self._workers: list[_Worker] = []
        self._failed_starts = 0

    def run(self, jobs: Iterable[Job]) -> Iterator[Event]:
        queue = JobQueue(jobs)
        while True:
            self._feed(queue)
            busy = {worker.pipe: worker for worker in self._workers if worker.courses}
            if not busy:
                return
            for pipe in wait(list(busy), timeout=1.0):
                worker = busy[pipe]  # type: ignore[index]
                yield from self._listen(worker, queue)
            for worker in [*self._workers]:
                if worker.is_stuck(self._limits.seconds):
                    worker.process.kill()
                    yield from self._bury(worker, queue, "too_slow")

    def _feed(self, queue: JobQueue) -> None:
        """Gives jobs to idle processes, starts further ones, then gives each a second job."""
        while True:
            worker = next((w for w in self._workers if not w.courses), None)
            if worker is None and len(self._workers) >= self._count:
                worker = next((w for w in self._workers if w.takes_more()), None)
                if worker is None:
                    return
            mine = worker.affinity if worker else None
            course = queue.take(mine, {w.affinity for w in self._workers if w is not worker})
            if course is None:
                return
            if worker is None:
                worker = _Worker(self._limits)
                self._workers.append(worker)
            worker.send(course)

    def _listen(self, worker: "_Worker", queue: JobQueue) -> Iterator[Event]:
        """Takes all that has arrived from one process."""
        try:
            while True:
                step: Step = worker.receive()
                if step.kind == "ready":
                    self._failed_starts = 0
                elif step.kind == "fatal":
                    raise step.value
                elif step.kind == "result":
                    yield worker.courses[0].result(step.place, step.value)
                elif step.kind != "prepared":
                    course = worker.courses[0]
                    worker.finish_first()
                    if step.kind == "end":
                        yield Done(course.job)
                    else:
                        events, more = course.after_error(step.place, step.value, step.detail)
                        yield from events
                        if more:
                            queue.put_back(course)
                if not worker.pipe.poll():
                    return
        except (EOFError, ConnectionError):
            yield from self._bury(worker, queue)

    def _bury(
        self, worker: "_Worker", queue: JobQueue, reason: str | None = None
    ) -> Iterator[Event]:
        """After the death of a process: its item is to blame, its other jobs go to others."""
        self._workers.remove(worker)
        worker.process.join()
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= _STARTS:
                code = worker.process.exitcode
                raise ChunkerError(
                    f"worker processes end as soon as they start (exit code {code})",
                    "Raise --max-memory or lower --workers",
                )
            for course in worker.courses:  # none of which it has touched
                queue.put_back(course)
            return
        if reason is None:
            timed_out = worker.process.exitcode == -getattr(signal, "SIGPROF", 0) != 0
            reason = "too_slow" if timed_out else "crashed"
        waiting = list(worker.courses)
        for course in waiting[1:]:
            queue.put_back(course)
        if waiting:
            course = waiting[0]
            events, more = course.after_error(worker.place, reason, again=reason == "crashed")
            yield from events
            if more:
                queue.put_back(course, first=True)

    def __enter__(self) -> "ProcessPool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.pipe.close()
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
        self._workers.clear()


class _Worker:
    """One process and what it has been given to do, the job it is at first."""

    def __init__(self, limits: Limits) -> None:
        # spawn: safe beside threads, and the same on every system.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, limits), daemon=True)
        self.process.start()
        theirs.close()
        self.courses: deque[Course] = deque()
        self.place = PREPARATION  # of the item that the process is at
        self.ready = False
        self.affinity: Hashable = None
        self._held: bytes | None = None  # until the process reads again
        self._heard = self._watched = time.monotonic()
        self._busy = self._used = 0.0  # when it was last seen to get on, and its CPU time then

    def takes_more(self) -> bool:
        return len(self.courses) == 1

    def send(self, course: Course) -> None:
        job = course.job
        message = pickle.dumps((job.task, job.payload, course.items()), pickle.HIGHEST_PROTOCOL)
        self.affinity = job.affinity
        self.courses.append(course)
        if len(self.courses) == 1:
            self.place = PREPARATION
            self._heard = time.monotonic()
        elif len(message) > _AHEAD_BYTES:
            self._held = message
            return
        self._send(message)

    def finish_first(self) -> None:
        """The process is done with its first job."""
        self.courses.popleft()
        self.place = PREPARATION
        if self._held is not None:
            message, self._held = self._held, None
            self._send(message)

    def _send(self, message: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # it has died: reading from it will say so
            self.pipe.send_bytes(message)

    def receive(self) -> Step:
        step: Step = self.pipe.recv()
        self._heard = time.monotonic()
        if step.kind == "ready":
            self.ready = True
        else:
            going_on = step.kind in ("prepared", "result")
            self.place = step.place + 1 if going_on else PREPARATION
        return step

    def is_stuck(self, seconds: float | None) -> bool:
        if seconds is None or not self.courses:
            return False
        factor = PREPARATION_FACTOR if self.place == PREPARATION else 1
        limit = factor * _WALL_FACTOR * seconds + _WALL_SLACK
        now = time.monotonic()
        if now - self._watched > _WALL_SLACK:
            used = _cpu_seconds(self.process.pid)
            if used is None or used - self._used > _IDLE_SHARE * (now - self._watched):
                self._busy = now if used is not None else self._heard
            self._watched, self._used = now, used or 0.0
        return now - max(self._heard, self._busy) > limit


def _cpu_seconds(pid: int | None) -> float | None:
    """What a process has used, where /proc tells."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        user, system = stat.rpartition(")")[2].split()[11:13]
    except (OSError, ValueError):
        return None
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _serve(pipe: Connection, limits: Limits) -> None:
    """The life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    _end_with_parent()
    collect_rarely()
    limit_memory(limits.memory)
    pipe.send(Step("ready", PREPARATION))
    while True:
        try:
            task, payload, items = pickle.loads(pipe.recv_bytes())
        except (EOFError, ConnectionError):
            return
        try:
            for step in attempt(task, payload, items, limits.seconds, cpu_timer):
                pipe.send(step)
        except ChunkerError as error:
            pipe.send(Step("fatal", PREPARATION, error))
        except ConnectionError:
            return


def collect_rarely() -> None:
    """For a process of tasks, which leave few cycles and hold millions of objects.

    To look for cycles as often as Python does by itself takes an eighth of slicing's time.
    """
    gc.set_threshold(2_000_000, 10, 10)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait_for_end, args=(parent,), daemon=True).start()


def _wait_for_end(parent: Any) -> None:
    parent.join()
    os._exit(1)
