"""Where the work is done: in processes of this machine, in this process, or on a Ray cluster.

    with make_pool("processes", workers=4, limits=Limits()) as pool:
        for event in pool.run(jobs):
            ...

A job is a task over some items. Whatever a task does to the process that runs it, an item that
hangs, crashes or eats all memory costs itself and nothing else.
"""

from nanochat_chunker.execution.jobs import (
    Done,
    Event,
    Failure,
    ItemError,
    Job,
    Limits,
    Pool,
    Restart,
    Result,
)
from nanochat_chunker.execution.make import make_pool

__all__ = [
    "Done",
    "Event",
    "Failure",
    "ItemError",
    "Job",
    "Limits",
    "Pool",
    "Restart",
    "Result",
    "make_pool",
]
