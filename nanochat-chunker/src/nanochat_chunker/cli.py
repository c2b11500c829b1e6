"""The command `nanochat-chunker`: what was typed goes to one of the modules in `commands/`."""

import argparse
import sys
from collections.abc import Sequence

from nanochat_chunker.commands import make, stats, verify
from nanochat_chunker.errors import ChunkerError

_FURTHER = {"verify": verify, "stats": stats}


def build_parser() -> argparse.ArgumentParser:
    """The parser of the main command."""
    return make.parser()


def _dashes(argument: str) -> str:
    """`--max_tokens=5` as `--max-tokens=5`."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Returns 0, or 1 (failed), 2 (wrong use), 130 (interrupted)."""
    arguments = [_dashes(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    command = _FURTHER.get(arguments[0]) if arguments else None
    if command is not None:
        del arguments[0]
    else:
        command = make
    options = vars(command.parser().parse_args(arguments))
    try:
        return command.run(options)
    except ChunkerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        goes_on = ". The same command goes on from here" if command is make else ""
        print(f"error: interrupted{goes_on}", file=sys.stderr)
        return 130
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        goes_on = ": it goes on from here" if command is make else ""
        print(
            f"error: cannot read or write{where}: {error.strerror or error}. "
            f"Mend that (space, permissions) and type the command again{goes_on}",
            file=sys.stderr,
        )
        return 1
