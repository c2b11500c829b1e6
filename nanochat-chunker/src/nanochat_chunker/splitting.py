"""Cutting a file that is longer than a document, where it hurts least."""

import re
from collections.abc import Iterator

from nanochat_chunker.tokens import Meter

# Every alternative that opens a literal or comment also matches when it is never closed: no input
# makes the scanner look twice at the same text.
_TOKEN = re.compile(
    r"""
      (?P<line_comment> //(?:\\\n|[^\n])* )
    | (?P<comment> /\*(?:.*?\*/|.*) )
    | (?P<raw> R"(?P<delimiter>[^()\\\s"]{0,16})\((?:.*?\)(?P=delimiter)"|.*) )
    | (?P<string> "(?:\\.|[^"\\\n])*"? )
    | (?P<char> '(?:\\.|[^'\\\n]){1,8}' )
    | (?P<directive> ^[ \t]*\#[ \t]*(?:if|ifdef|ifndef|elif|elifdef|elifndef|else|endif)\b )
    | (?P<brace> [{}] )
    """,
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)
_TRANSPARENT = re.compile(r"""(?:\bnamespace\b[^;{}()=]*|\bextern\s*"C(?:\+\+)?"\s*)$""")

_NEVER = 1 << 30  # the cost of a line that starts inside a comment, a literal or a macro
# A cut before this share of the budget is made only where there is no other.
_LEAST_FILL = 0.25


def cut_costs(lines: list[str]) -> list[int]:
    """For each line what it costs to cut before it; 0 is a blank line outside of braces.

    Braces of namespaces and of `extern "C"` do not count, else a file would be one block. After an
    `#else` the depth is that of its `#if`, for both branches often open the same brace.
    """
    text = "".join(lines)
    events = _brace_events(text)
    event = next(events, None)
    costs = []
    start = depth = 0
    inside_until = 0
    previous = "x"
    for line in lines:
        while event is not None and event[0] < start:
            _, end, depth = event
            inside_until = max(inside_until, end)
            event = next(events, None)
        if start < inside_until or previous.endswith("\\\n"):
            costs.append(_NEVER)
        else:
            costs.append(2 * depth + (1 if previous.strip() else 0))
        previous = line
        start += len(line)
    return costs


def _brace_events(text: str) -> Iterator[tuple[int, int, int]]:
    """(start, end, depth after) for every brace, branch, comment and literal of `text`."""
    opened: list[bool] = []  # for each open brace whether it counts
    depth = 0
    branches: list[int] = []  # len(opened) at each open #if
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup
        if kind == "brace":
            if match.group() == "{":
                counts = (
                    _TRANSPARENT.search(text[max(0, match.start() - 200) : match.start()]) is None
                )
                opened.append(counts)
                depth += counts
            elif opened:
                depth -= opened.pop()
        elif kind == "directive":
            word = match.group().lstrip(" \t#")
            if word.startswith("if"):
                branches.append(len(opened))
            elif word.startswith("el") and branches:
                while len(opened) > branches[-1]:
                    depth -= opened.pop()
                depth += branches[-1] - len(opened)
                opened.extend([True] * (branches[-1] - len(opened)))
            elif word == "endif" and branches:
                branches.pop()
        yield match.start(), match.end(), depth


def split_text(text: str, meter: Meter, limit: int) -> tuple[list[str], int]:
    """Cuts `text` into pieces of about `limit` units, and says how many lines had to be cut.

    The pieces joined are the text. A piece ends at the cheapest line of its window, the last of
    several. Only a line that is longer than `limit` is cut in itself.
    """
    lines: list[str] = []
    lines_cut = 0
    for line in _lines(text):
        if meter.units(line) > limit:
            lines_cut += 1
            lines.extend(_cut_line(line, meter, limit))
        else:
            lines.append(line)
    costs = cut_costs(lines)
    units = meter.line_units(lines)
    pieces = []
    start = 0
    while start < len(lines):
        stop, taken = start, 0
        best, best_cost = start, _NEVER + 1
        while stop < len(lines) and taken + units[stop] <= limit:
            taken += units[stop]
            stop += 1
            enough = taken >= _LEAST_FILL * limit
            if stop < len(lines) and enough and costs[stop] <= best_cost:
                best, best_cost = stop, costs[stop]
        if stop == len(lines):
            best = stop
        elif best == start:
            best = max(stop, start + 1)
        pieces.append("".join(lines[start:best]))
        start = best
    return pieces, lines_cut


def _lines(text: str) -> list[str]:
    """Lines with their \\n, and nothing else taken for the end of a line (str.splitlines does)."""
    lines = [line + "\n" for line in text.split("\n")]
    last = lines.pop()[:-1]
    return [*lines, last] if last else lines


def _cut_line(line: str, meter: Meter, limit: int) -> Iterator[str]:
    """Pieces of one line, each the longest prefix of what is left that measures up to `limit`."""
    start = 0
    while start < len(line):
        left = len(line) - start
        low, high = 1, min(left, limit)
        # A tokenizer's token may be many characters: first find a length that is too long.
        while high < left and meter.units(line[start : start + high]) <= limit:
            low, high = high, min(left, high * 2)
        while low < high:
            middle = (low + high + 1) // 2
            if meter.units(line[start : start + middle]) <= limit:
                low = middle
            else:
                high = middle - 1
        yield line[start : start + low]
        start += low
