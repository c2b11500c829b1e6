"""What clang's complaints speak of."""

import re
from collections.abc import Iterator, Sequence

from nanochat_chunker.semantic.checking import Complaint
from nanochat_chunker.slicing.system_headers import headers_of

_WORD = re.compile(r"[A-Za-z_]\w*")
_QUOTED = re.compile(r"'([^']+)'")
_ARGUMENTS = re.compile(r"<[^<>]*>|\([^()]*\)")
_MISSING_HEADER = re.compile(r"^'([^']+)' file not found")
_UNDEFINED = re.compile(r"is used but not defined|undefined inline|has no definition")
_NONE_IN = re.compile(r"^no (?:\w+ )+named '[^']*' in ")
_BASE = "base class has incomplete type"  # of which it does not tell the name
_UNKNOWN = (
    "undeclared", "unknown type", "namespace 'std'", "no template named", "no type named",
    "incomplete type", "undefined template",
)  # fmt: skip


def missing_header(said: str) -> str:
    """The header that is not there, or ''."""
    found = _MISSING_HEADER.search(said)
    return found[1] if found is not None else ""


def wants_body(said: str) -> bool:
    """Whether something is declared and would have to be defined."""
    return _UNDEFINED.search(said) is not None


def is_of_unknown(said: str) -> bool:
    """Whether a name is unknown, or what it means is not known enough."""
    return any(words in said for words in _UNKNOWN)


def with_bases(complaint: Complaint, lines: Sequence[str]) -> Complaint:
    """A complaint of the base of a class with the names on its line, which it does not tell."""
    if not complaint.said.startswith(_BASE) or not complaint.line:
        return complaint
    bases = _WORD.findall(lines[complaint.line - 1].partition(":")[2])
    return complaint._replace(said=f"{_BASE}: " + " ".join(f"'{base}'" for base in bases))


def names_in(said: str) -> Iterator[str]:
    """The names in a complaint, qualified where it tells the scope, without template arguments."""
    quoted = []
    for name in _QUOTED.findall(said):
        while (shorter := _ARGUMENTS.sub("", name)) != name:
            name = shorter
        quoted.append(name.strip(" *&"))
    if len(quoted) > 1 and _NONE_IN.search(said):
        yield f"{quoted[1]}::{quoted[0]}"
        quoted = quoted[1:2]
    for name in quoted:
        for word in re.findall(r"[A-Za-z_][\w:]*|operator\S+", name):
            if word not in ("class", "struct", "const", "enum", "std"):
                yield word.removeprefix("::")


def system_headers(said: str) -> Iterator[str]:
    """Headers of the standard library that speak of a name in a complaint."""
    if is_of_unknown(said):
        for name in names_in(said):
            yield from headers_of(name.rpartition("::")[2])
