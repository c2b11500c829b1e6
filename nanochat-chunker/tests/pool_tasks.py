"""What test_chunker_pools has done in other processes, which import it by its name."""

import os
import signal
import time
from pathlib import Path

from nanochat_chunker.errors import ChunkerError
from nanochat_chunker.execution import ItemError


def _fall(depth):
    return _fall(depth + 1)


def work(payload, items):
    """Each item says what is to happen; results tell in which order items were taken."""
    for item in items:
        match item:
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "crash once":
                marker = Path(payload)
                if not marker.exists():
                    marker.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                sum(range(10**12))  # in C: no Python code runs in between
            case "hang softly":
                while True:
                    pass
            case "sleep":
                time.sleep(1000)  # as on a network drive that has gone: no CPU time passes
            case "memory":
                bytearray(2 << 30)
            case "bug":
                raise ValueError("a bug")
            case "deep":
                _fall(0)
            case "unusable":
                raise ItemError("unusable")
            case "wrong":
                raise ChunkerError("the flag is wrong", "Change it")
        yield f"did {item}"


def total(payload, items):
    """Results depend on the items before, and there is one more at the end."""
    seen = []
    for item in items:
        if item == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        seen.append(item)
        yield len(seen)
    yield ",".join(seen)


def fails_to_prepare(payload, items):
    raise ValueError("no index")


def large(payload, items):
    for item in items:
        yield "x" * item
