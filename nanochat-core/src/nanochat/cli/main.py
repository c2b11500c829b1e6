"""How every command ends: one message on standard error and the right exit status."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence

from nanochat.errors import NanochatError

DEBUG_VARIABLE = "NANOCHAT_DEBUG"
INTERRUPTED = 130


def run(command: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None) -> int:
    """Run a command and return its exit status.

    0, or what the command returns; 2 for wrong use, 1 for what failed, 130 for Ctrl-C. With
    NANOCHAT_DEBUG=1 the traceback is shown as well. A failure that is nobody's mistake but ours
    is also told in one line, with the way to its traceback.
    """
    try:
        return command(argv) or 0
    except NanochatError as error:
        return _end(str(error), error.status)
    except KeyboardInterrupt:
        return _end("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader (head, a pager) went away: not an error. Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _end(describe_os_error(error), 1)
    except MemoryError:
        return _end("out of memory. Use a smaller --device-batch-size or a smaller model", 1)
    except Exception as error:
        return _end(_describe_bug(error), 1)


def describe_os_error(error: OSError) -> str:
    """One sentence with the file it concerns and what to do about it."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"the disk is full{where}. Free some space, then run the command again"
    if error.errno == errno.EDQUOT:
        return f"the disk quota is used up{where}. Free some space, then run the command again"
    if error.errno == errno.EFBIG:
        return f"the file became larger than the system allows{where}. See `ulimit -f`"
    return f"{error.strerror or error}{where}"


def _describe_bug(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    if type(error).__name__ == "OutOfMemoryError":
        return f"the device is out of memory ({text}). Use a smaller --device-batch-size"
    return f"{text}. This is a bug of nanochat; {DEBUG_VARIABLE}=1 shows where"


def _end(message: str, status: int) -> int:
    if os.environ.get(DEBUG_VARIABLE, "") not in ("", "0"):
        import traceback

        traceback.print_exc()
    # A message may quote text from outside: keep it on the line that was promised.
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return status
