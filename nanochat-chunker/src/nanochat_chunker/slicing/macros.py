"""Macros: their definitions, and their expansion as the preprocessor does it."""

import re
from collections.abc import Callable, Sequence
from enum import Enum, auto
from functools import lru_cache
from typing import NamedTuple

_TOKEN = re.compile(
    r'[A-Za-z_]\w*|\.?\d(?:[eEpP][+-]|[\w.\'])*|"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|##|\s+|.',
    re.DOTALL,
)
_OPENING = frozenset("([{")
_PUNCTUATION = frozenset("([{)]},")
_DEFINE = re.compile(r"\s*([A-Za-z_]\w*)(?:\(([^()]*)\))?")

# Expansion stops here: a text that grows further is an attack or a mistake, not a declaration.
_MAX_EXPANDED = 20_000
_MAX_DEPTH = 40


class Macro(NamedTuple):
    """`params` is None for an object-like macro."""

    name: str
    params: tuple[str, ...] | None
    body: str

    @property
    def variadic(self) -> bool:
        return self.params is not None and self.params[-1:] == ("__VA_ARGS__",)


Lookup = Callable[[str], Macro | None]


@lru_cache(maxsize=1 << 14)
def tokens_of(code: str) -> tuple[str, ...]:
    """The preprocessing tokens of a stretch of code, white space among them."""
    return tuple(_TOKEN.findall(code))


def parse_define(text: str) -> Macro | None:
    """The macro of what follows `#define`, comments and line splices already gone."""
    found = _DEFINE.match(text)
    if found is None:
        return None
    name, params = found.groups()
    body = text[found.end() :].strip()
    if params is None:
        return Macro(name, None, body)
    names = [part.strip() for part in params.split(",")] if params.strip() else []
    if names and names[-1].endswith("..."):
        named = names[-1][:-3].strip()
        if named:  # GNU: `args...`
            body = re.sub(rf"\b{re.escape(named)}\b", "__VA_ARGS__", body)
        names[-1] = "__VA_ARGS__"
    return Macro(name, tuple(names), body)


def is_name(token: str) -> bool:
    """Whether a token may be the name of a macro."""
    return token[0].isalpha() or token[0] == "_"


class Table(dict[str, Macro | None]):
    """The macro that each token is, or None, for a lookup whose answers do not change."""

    def __init__(self, lookup: Lookup) -> None:
        super().__init__()
        self._lookup = lookup

    def __missing__(self, token: str) -> Macro | None:
        found = self._lookup(token) if is_name(token) else None
        self[token] = found
        return found


def expand(text: str, macros: Table) -> str:
    """`text` with every macro of the table replaced, none inside its own expansion."""
    budget = [_MAX_EXPANDED]
    return "".join(_expand(_TOKEN.findall(text), macros, frozenset(), budget, 0))


def _expand(
    tokens: Sequence[str], macros: Table, hidden: frozenset[str], budget: list[int], depth: int
) -> list[str]:
    if not any(map(macros.__getitem__, tokens)):
        return list(tokens)
    out: list[str] = []
    i = 0
    while i < len(tokens):
        token = tokens[i]
        i += 1
        macro = macros[token]
        if macro is None or token in hidden or depth >= _MAX_DEPTH or budget[0] <= 0:
            out.append(token)
            continue
        body: Sequence[str]
        if macro.params is None:
            body = tokens_of(macro.body)
            pastes = "##" in body
        else:
            arguments, after = arguments_at(tokens, i)
            if arguments is None:
                out.append(token)
                continue
            i = after
            plan = _plan(macro)
            body = _substitute(plan, arguments, macros, hidden, budget, depth)
            pastes = plan.pastes
        budget[0] -= len(body) + 1
        if pastes:
            body = _paste(body)
        # Rescanned together with what follows, for `#define CALL f` and then `CALL(x)`.
        rest = _expand(body, macros, hidden | {token}, budget, depth + 1)
        if rest and i < len(tokens) and tokens[i] == "(":
            last = rest[-1]
            again = macros[last] if last not in hidden else None
            if again is not None and again.params is not None and last != token:
                arguments, after = arguments_at(tokens, i)
                if arguments is not None:
                    rest.pop()
                    out.extend(rest)
                    tokens = [last, *tokens[i:]]
                    i = 0
                    continue
        out.extend(rest)
    return out


def arguments_at(tokens: Sequence[str], i: int) -> tuple[list[Sequence[str]] | None, int]:
    """The arguments of a call whose parenthesis is to come at `i`, and the place after it."""
    while i < len(tokens) and tokens[i].isspace():
        i += 1
    if i >= len(tokens) or tokens[i] != "(":
        return None, i
    depth = 1
    arguments: list[Sequence[str]] = []
    begin = i + 1
    for j in range(begin, len(tokens)):
        token = tokens[j]
        if token not in _PUNCTUATION:
            continue
        if token in _OPENING:
            depth += 1
        elif token != ",":
            depth -= 1
            if depth == 0:
                arguments.append(tokens[begin:j])
                return arguments, j + 1
        elif depth == 1:
            arguments.append(tokens[begin:j])
            begin = j + 1
    return None, i


class _Use(Enum):
    """How the body of a macro takes an argument: expanded, next to ##, or after #."""

    EXPANDED = auto()
    PASTED = auto()
    QUOTED = auto()


class _Plan(NamedTuple):
    """The body of a macro as runs of tokens, each with the argument after it."""

    runs: tuple[tuple[tuple[str, ...], int, _Use], ...]
    rest: tuple[str, ...]  # the tokens after the last argument
    pastes: bool  # whether there is a ##
    count: int  # of parameters
    variadic: bool


@lru_cache(maxsize=1 << 13)
def _plan(macro: Macro) -> _Plan:
    params = macro.params or ()
    places = {name: k for k, name in enumerate(params)}
    body = tokens_of(macro.body)
    runs: list[tuple[tuple[str, ...], int, _Use]] = []
    run: list[str] = []
    for k, token in enumerate(body):
        if token in places:
            before = _neighbour(body, k, -1)
            if before == "#":
                use = _Use.QUOTED
            elif before == "##" or _neighbour(body, k, 1) == "##":
                use = _Use.PASTED
            else:
                use = _Use.EXPANDED
            runs.append((tuple(run), places[token], use))
            run = []
        elif token != "#":
            run.append(token)
    return _Plan(tuple(runs), tuple(run), "##" in body, len(params), macro.variadic)


def _substitute(
    plan: _Plan,
    arguments: list[Sequence[str]],
    macros: Table,
    hidden: frozenset[str],
    budget: list[int],
    depth: int,
) -> list[str]:
    """The body of a macro with arguments in place of its parameters."""
    if plan.variadic and len(arguments) > plan.count:
        joined: list[str] = []
        for part in arguments[plan.count - 1 :]:
            joined += part
            joined.append(",")
        arguments = [*arguments[: plan.count - 1], joined[:-1]]
    expanded: dict[int, list[str]] = {}
    out: list[str] = []
    for run, place, use in plan.runs:
        out += run
        argument = trimmed(arguments[place]) if place < len(arguments) else []
        if use is _Use.EXPANDED:
            if place not in expanded:
                expanded[place] = _expand(argument, macros, hidden, budget, depth + 1)
            out += expanded[place]
        elif use is _Use.PASTED:
            out += argument
        else:
            text = "".join(argument).replace("\\", "\\\\").replace('"', '\\"')
            out.append(f'"{text}"')
    out += plan.rest
    return out


def trimmed(tokens: Sequence[str]) -> Sequence[str]:
    """Tokens without white space around them."""
    first, last = 0, len(tokens)
    while first < last and tokens[first].isspace():
        first += 1
    while first < last and tokens[last - 1].isspace():
        last -= 1
    return tokens[first:last]


def _neighbour(tokens: Sequence[str], i: int, step: int) -> str:
    i += step
    while 0 <= i < len(tokens) and tokens[i].isspace():
        i += step
    return tokens[i] if 0 <= i < len(tokens) else ""


def _paste(tokens: Sequence[str]) -> list[str]:
    out: list[str] = []
    glue = False
    for token in tokens:
        if token == "##":
            while out and out[-1].isspace():
                out.pop()
            glue = bool(out)
        elif not glue:
            out.append(token)
        elif not token.isspace():
            out[-1:] = _TOKEN.findall(out[-1] + token)
            glue = False
    return out
