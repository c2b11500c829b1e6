"""Command-line flags in both spellings: `--num-iterations` and `--num_iterations`.

`--help` lists the spelling with dashes alone; the other works just the same.
"""

from __future__ import annotations

import argparse
from difflib import get_close_matches
from typing import Any, NoReturn

from nanochat.errors import UsageError


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `UsageError` instead of exiting, and takes no short forms.

    Short forms are off because `--eval` would silently change its meaning with the next flag.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"See {self.prog} --help")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            raise UsageError(f"unknown argument {unknown[0]!r}", self._advice(unknown[0]))
        return found

    def _advice(self, argument: str) -> str:
        flag = argument.split("=", 1)[0].replace("_", "-")
        known = [
            o
            for action in self._actions
            if action.help != argparse.SUPPRESS
            for o in action.option_strings
        ]
        near = get_close_matches(flag, known, n=1)
        return f"Did you mean {near[0]}?" if near else f"See {self.prog} --help"


def add(parser: argparse._ActionsContainer, *names: str, **kwargs: Any) -> argparse.Action:
    """`parser.add_argument`, with each long flag also registered with underscores.

    `parser` is a parser or an argument group. The keyword arguments are argparse's own, and the
    destination is named after the first long flag.
    """
    action = parser.add_argument(*names, **kwargs)
    twins = [_underscored(name) for name in names if name.startswith("--")]
    for twin in twins:
        if twin not in action.option_strings:
            # The parser finds actions by this table; help prints `action.option_strings`.
            parser._option_string_actions[twin] = action
    return action


def _underscored(name: str) -> str:
    return "--" + name[2:].replace("-", "_")
