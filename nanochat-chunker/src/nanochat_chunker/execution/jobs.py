"""What a pool is given and what it gives back."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

# (payload, items) -> one result an item, in their order, and then any number of further ones.
# What is done before the iterator is returned counts as preparation, not as time of the first item.
Task = Callable[[Any, Sequence[Any]], Iterator[Any]]


class ItemError(Exception):
    """Raised by a task for an item that cannot be used: costs the item, counted by `reason`."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True)
class Limits:
    """What one item may take: CPU seconds of its process, and memory of a process in bytes."""

    seconds: float | None = None
    memory: int | None = None


@dataclass(frozen=True, eq=False)
class Job:
    """`task`, a function of a module, over `items`; `key` is the caller's.

    `restart`: a result depends on the items before, so a failed item makes the job begin again
    without it, rather than go on after it. `shared` is a part of the payload that many jobs have
    in common, for pools without a disk in common: the task finds it as the payload's `material`.
    Jobs of one `affinity` share what a process prepares for them: they go to few processes.
    """

    key: Any
    task: Task
    payload: Any
    items: Sequence[Any]
    restart: bool = False
    shared: Any = None
    affinity: Hashable = None


class Result(NamedTuple):
    """The result of an item; of the job itself where `number` is past the items."""

    job: Job
    number: int
    value: Any


class Failure(NamedTuple):
    """An item gave no result. `number` is past the items where only the end of the job failed."""

    job: Job
    number: int
    reason: str
    detail: str = ""


class Restart(NamedTuple):
    """The job begins again: its results so far are void, its failures are not."""

    job: Job


class Done(NamedTuple):
    """Each item has had its result or failure."""

    job: Job


Event = Result | Failure | Restart | Done


class Pool(Protocol):
    """Runs jobs, taking them from `jobs` as it has room. Events of several jobs are mixed."""

    shares_disk: bool  # whether what this process writes can be read where tasks run

    def run(self, jobs: Iterable[Job]) -> Iterator[Event]: ...

    def __enter__(self) -> "Pool": ...

    def __exit__(self, *_: object) -> None: ...
