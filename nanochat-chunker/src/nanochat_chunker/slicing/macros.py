"""Macros: their definitions, and their expansion as the preprocessor does it."""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

_TOKEN = re.compile(
    r'[A-Za-z_]\w*|\.?\d(?:[eEpP][+-]|[\w.\'])*|"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|##|\s+|.',
    re.DOTALL,
)
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
    out: list[str] = []
    i = 0
    while i < len(tokens):
        token = tokens[i]
        i += 1
        macro = macros[token]
        if macro is None or token in hidden or depth >= _MAX_DEPTH or budget[0] <= 0:
            out.append(token)
            continue
        if macro.params is None:
            body: Sequence[str] = tokens_of(macro.body)
        else:
            arguments, after = arguments_at(tokens, i)
            if arguments is None:
                out.append(token)
                continue
            i = after
            body = _substitute(macro, arguments, macros, hidden, budget, depth)
        budget[0] -= len(body) + 1
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


def arguments_at(tokens: Sequence[str], i: int) -> tuple[list[list[str]] | None, int]:
    """The arguments of a call whose parenthesis is to come at `i`, and the place after it."""
    while i < len(tokens) and tokens[i].isspace():
        i += 1
    if i >= len(tokens) or tokens[i] != "(":
        return None, i
    depth = 0
    arguments: list[list[str]] = [[]]
    for j in range(i, len(tokens)):
        token = tokens[j]
        if token in "([{" and token:
            depth += 1
            if depth == 1:
                continue
        elif token in ")]}":
            depth -= 1
            if depth == 0:
                return arguments, j + 1
        elif token == "," and depth == 1:
            arguments.append([])
            continue
        arguments[-1].append(token)
    return None, i


def _substitute(
    macro: Macro,
    arguments: list[list[str]],
    macros: Table,
    hidden: frozenset[str],
    budget: list[int],
    depth: int,
) -> list[str]:
    params = macro.params or ()
    if macro.variadic and len(arguments) > len(params):
        last = arguments[len(params) - 1 :]
        joined: list[str] = []
        for k, part in enumerate(last):
            joined.extend(([","] if k else []) + part)
        arguments = [*arguments[: len(params) - 1], joined]
    by_name = {name: arguments[k] if k < len(arguments) else [] for k, name in enumerate(params)}
    expanded: dict[str, list[str]] = {}
    body = tokens_of(macro.body)
    out: list[str] = []
    for k, token in enumerate(body):
        if token == "#" and macro.params is not None:
            continue
        if token not in by_name:
            out.append(token)
            continue
        before = _neighbour(body, k, -1)
        if before == "#":
            argument = "".join(by_name[token]).strip()
            out.append('"' + argument.replace("\\", "\\\\").replace('"', '\\"') + '"')
        elif before == "##" or _neighbour(body, k, 1) == "##":
            out.extend(_trimmed(by_name[token]))
        else:
            if token not in expanded:
                argument_tokens = _trimmed(by_name[token])
                expanded[token] = _expand(argument_tokens, macros, hidden, budget, depth + 1)
            out.extend(expanded[token])
    return out


def _trimmed(tokens: list[str]) -> list[str]:
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


def _paste(tokens: Sequence[str]) -> Sequence[str]:
    if "##" not in tokens:
        return tokens
    out: list[str] = []
    glue = False
    for token in tokens:
        if token == "##":
            while out and out[-1].isspace():
                out.pop()
            glue = bool(out)
        elif glue and token.isspace():
            continue
        elif glue:
            out[-1] += token
            glue = False
        else:
            out.append(token)
    return _TOKEN.findall("".join(out))
