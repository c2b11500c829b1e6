"""A pool over the machines of a Ray cluster.

Each actor keeps one process of its own in which items run, so that time, memory and crashes are
handled as on one machine; if an actor or its machine is lost, its job is given to another. Inputs
are read by the actors: their paths must mean the same on every machine.
"""

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from nanochat_chunker.errors import ChunkerError, UsageError
from nanochat_chunker.execution.jobs import Done, Event, Failure, Job, Limits, Restart, Result
from nanochat_chunker.execution.processes import ProcessPool

_TRIES = 4  # machines may be lost; a job that loses so many is given up with the run


class RayPool:
    """`workers` actors of one core each on the cluster at `address`, or on this machine."""

    shares_disk = False

    def __init__(self, workers: int, limits: Limits, address: str | None) -> None:
        try:
            import ray
        except ImportError:
            raise UsageError(
                "--executor ray needs the package ray, which is not installed",
                "Type: pip install 'nanochat-chunker[ray]'",
            ) from None
        self._ray = ray
        self._limits = limits
        self._workers = workers
        self._address = address
        self._started = False
        self._actor_class: Any = None

    def __enter__(self) -> "RayPool":
        if not self._ray.is_initialized():
            # Nobody asked for a dashboard, and the command's own output is for its user.
            self._ray.init(
                address=self._address,
                include_dashboard=None if self._address else False,
                num_cpus=None if self._address else self._workers,
                log_to_driver=False,
                logging_level="ERROR",
            )
            self._started = True
        self._actor_class = self._ray.remote(num_cpus=1)(RayWorker)
        return self

    def __exit__(self, *_: object) -> None:
        if self._started:
            self._ray.shutdown()

    def run(self, jobs: Iterable[Job]) -> Iterator[Event]:
        source = iter(jobs)
        again: deque[tuple[Job, int]] = deque()
        idle = [self._actor_class.remote(self._limits) for _ in range(self._workers)]
        running: dict[Any, tuple[Any, Job, int]] = {}
        shared: tuple[Any, Any] = (None, None)  # put into the cluster once for the jobs in a row
        try:
            while True:
                while idle:
                    job, tries = again.popleft() if again else (next(source, None), 0)
                    if job is None:
                        break
                    actor = idle.pop()
                    if job.shared is not shared[0]:
                        shared = (job.shared, self._ray.put(job.shared))
                    answer = actor.do.remote(
                        job.task, job.payload, job.items, job.restart, shared[1]
                    )
                    running[answer] = (actor, job, tries)
                if not running:
                    return
                [answer, *_], _ = self._ray.wait(list(running), num_returns=1)
                actor, job, tries = running.pop(answer)
                try:
                    told = self._ray.get(answer)
                except self._ray.exceptions.RayTaskError as error:
                    cause = error.cause
                    raise (cause if isinstance(cause, ChunkerError) else error) from None
                except self._ray.exceptions.RayError as error:
                    if tries + 1 >= _TRIES:
                        raise ChunkerError(
                            f"the Ray cluster lost {_TRIES} actors at one job: {error}",
                            "Look at the memory of its machines",
                        ) from None
                    again.append((job, tries + 1))
                    idle.append(self._actor_class.remote(self._limits))
                    continue
                idle.append(actor)
                yield from _events(job, told)
        finally:
            for actor in [*idle, *(actor for actor, _, _ in running.values())]:
                self._ray.kill(actor)


class RayWorker:
    """The actor: one process that may die, and the list of what it told."""

    def __init__(self, limits: Limits) -> None:
        self._pool = ProcessPool(1, limits)

    def do(
        self, task: Any, payload: Any, items: Any, restart: bool, shared: Any
    ) -> list[tuple[Any, ...]]:
        if shared is not None:
            payload = dataclasses.replace(payload, material=shared)
        told: list[tuple[Any, ...]] = []
        for event in self._pool.run([Job(None, task, payload, items, restart)]):
            match event:
                case Restart():
                    told = [entry for entry in told if entry[0] == "failure"]
                case Result(_, number, value):
                    told.append(("result", number, value))
                case Failure(_, number, reason, detail):
                    told.append(("failure", number, reason, detail))
        return told


def _events(job: Job, told: list[tuple[Any, ...]]) -> Iterator[Event]:
    for kind, *rest in told:
        yield Result(job, *rest) if kind == "result" else Failure(job, *rest)
    yield Done(job)
