"""Diagnostics without what makes each of them its own, so that they can be counted."""

import re

# g++ quotes with curly marks where the locale has them.
_OPEN, _CLOSE = "'\"\u2018", "'\"\u2019"
_QUOTED = re.compile(f"[{_OPEN}][^{_CLOSE}]*[{_CLOSE}]")
_MISSING = re.compile(
    f"error: (?:[{_OPEN}]([^{_CLOSE}]+)[{_CLOSE}] file not found|([^:\\s]+): No such file)"
)


def reason(diagnostics: tuple[str, ...]) -> str:
    """The first error in general words: `use of undeclared identifier '...'`."""
    if not diagnostics:
        return "no diagnostic"
    first = diagnostics[0]
    missing = _MISSING.search(first)
    if missing is not None:
        return f"header not found: {missing[1] or missing[2]}"
    text = first.partition("error: ")[2] or first
    text = _QUOTED.sub("'...'", text)
    text = re.sub(r"; did you mean .*", "", text)
    text = re.sub(r"\s*\[[-\w+=]+\]$", "", text)
    return re.sub(r"\d+", "N", text)[:120].strip()
