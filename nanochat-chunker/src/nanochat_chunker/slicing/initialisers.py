"""The initialisers of a constructor."""

import re


def initialisers_at(clean: str, begin: int, position: int) -> int:
    """Where `: a(1), b(2)` begins in a constructor's head that ends at `position`, or -1."""
    segment = clean[begin:position]
    if ":" not in segment:
        return -1
    for found in re.finditer(r"\)\s*(?:noexcept\s*(?:\([^()]*\))?\s*|try\s*)*(:)(?!:)", segment):
        place = begin + found.start(1)
        # Outside of parentheses: count is cheap, heads are short.
        before = clean[begin:place]
        if before.count("(") == before.count(")"):
            return place
    last = re.search(r"\)[\w\s()]*[^:]:(?!:)", segment)
    if last is not None:
        place = begin + last.end() - 1
        before = clean[begin:place]
        if before.count("(") == before.count(")") and "?" not in before:
            return place
    return -1
