"""The parameters of a function as they are written."""

import re

_NAMED = re.compile(r"(.*[\w>&*\]\s][\s&*])[A-Za-z_]\w*", re.DOTALL)
_MAX = 4000  # characters of a head that are looked at


def parameters(head: str, name: str) -> tuple[str, ...]:
    """The types of the parameters of `name` in the text of its declaration, without blanks.

    Their names are left out where there is a type before them; default arguments stay.
    """
    begin = re.search(rf"(?<!\w){re.escape(name)}\s*\(", head[:_MAX])
    if begin is None:
        return (head,)
    found = [""]
    depth = 0
    for char in head[begin.end() : begin.end() + _MAX]:
        if char in "([{<":
            depth += 1
        elif char in ")]}>":
            depth -= 1
            if depth < 0:
                break
        if char == "," and not depth:
            found.append("")
        else:
            found[-1] += char
    return tuple("".join(_type(part.strip()).split()) for part in found)


def _type(parameter: str) -> str:
    named = _NAMED.fullmatch(parameter)
    return named[1] if named is not None else parameter
