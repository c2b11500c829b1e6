"""The names that a stretch of code uses."""

import re
from collections.abc import Iterator
from sys import intern

_NAME = r"[A-Za-z_]\w*"
# It begins with a set of characters, which lets the search skip what lies between.
_NAMES = re.compile(
    r"[A-Za-z_.:>-](?:(?<=[A-Za-z_])\w*"
    rf"|(?:(?<=\.)|(?<=-)(?<!\s-)>|(?<=>)\s*::|(?<=:):)\s*{_NAME})(?:::\s*~?(?:template\s+)?{_NAME})*"
)
_OPERATOR_NAME = re.compile(
    r"(?:[A-Za-z_]\w*\s*)?::\s*operator\s*(?:<<|>>|[-+*/%&|^<>=!]=|[-+*/%<>&|^])"
)
_SPACE = re.compile(r"\s+")
KEYWORDS = frozenset(
    "alignas alignof and and_eq asm auto bitand bitor bool break case catch char char8_t char16_t "
    "char32_t class compl concept const consteval constexpr constinit const_cast continue co_await "
    "co_return co_yield decltype default delete do double dynamic_cast else enum explicit export "
    "extern false float for friend goto if inline int long mutable namespace new noexcept not "
    "not_eq nullptr operator or or_eq private protected public register reinterpret_cast requires "
    "return short signed sizeof static static_assert static_cast struct switch template this "
    "thread_local throw true try typedef typeid typename union unsigned using virtual void "
    "volatile wchar_t while xor xor_eq override final NULL "
    "std size_t uint8_t uint16_t uint32_t uint64_t int8_t int16_t int32_t int64_t".split()
)


def names_in(code: str) -> tuple[str, ...]:
    """The names in code without comments and literals, each once, as they come.

    A name may be qualified (`a::b`, `::a`); that of a member after `.` or `->` begins with a dot.
    After ` -> ` with a blank before it there is more often a return type, taken for a name.
    """
    names: dict[str, None] = {}
    for chain in dict.fromkeys(_NAMES.findall(code)):
        first = chain[0]
        if first == "." or first == "-" or first == ">":
            names["." + chain.lstrip(".->: \t\n")] = None
        elif chain not in KEYWORDS:
            if ":" in chain:
                chain = _SPACE.sub("", chain.replace("template ", ""))
            names[chain] = None
    if "operator" in code:
        for name in _OPERATOR_NAME.findall(code):
            names["".join(name.split()).removeprefix("using")] = None
    return tuple(map(intern, names))


def places_of(word: str, code: str, begin: int = 0, end: int | None = None) -> Iterator[int]:
    """Where a word stands in code between two places, as a word of its own."""
    end = len(code) if end is None else end
    at = code.find(word, begin, end)
    while at >= 0:
        after = at + len(word)
        if not ((at > begin and _in_word(code[at - 1])) or (after < end and _in_word(code[after]))):
            yield at
        at = code.find(word, after, end)


def _in_word(char: str) -> bool:
    return char.isalnum() or char == "_"


class LastNames(dict[str, str]):
    """The last part of a name by the name: `b` of `a::b`, `.b` and `b`."""

    def __missing__(self, name: str) -> str:
        last = self[name] = intern(name.lstrip(".").rpartition("::")[2])
        return last


def outermost(arguments: str) -> str:
    """Template arguments up to their `>`, without the arguments that those have themselves."""
    out: list[str] = []
    depth = 0
    for char in arguments:
        if char in "<([{":
            depth += 1
        elif char in ">)]}":
            depth -= 1
            if depth < 0:
                break
        elif depth == 0:
            out.append(char)
    return "".join(out)
