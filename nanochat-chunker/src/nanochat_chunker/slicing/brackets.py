"""The brackets of a text and their partners."""

import re

_STRUCTURE = re.compile(r"[{}()\[\];]")


class Brackets:
    """All brackets and semicolons: `at` their positions, `kind` their characters.

    `partner` gives for each bracket the index of the one that closes or opens it, or -1.
    """

    def __init__(self, clean: str) -> None:
        self.at = [found.start() for found in _STRUCTURE.finditer(clean)]
        self.kind = "".join([clean[position] for position in self.at])
        self.partner = _partners(self.kind)


def _partners(kinds: str) -> list[int]:
    """For each bracket the index of the one that closes or opens it, -1 where there is none."""
    partner = [-1] * len(kinds)
    stack: list[int] = []
    for i, char in enumerate(kinds):
        if char in "{([":
            stack.append(i)
        elif char == ";":
            continue
        elif char == "}":
            # A brace closes its brace, whatever parentheses were left open.
            back = len(stack) - 1
            while back >= 0 and kinds[stack[back]] != "{":
                back -= 1
            if back >= 0:
                partner[stack[back]] = i
                partner[i] = stack[back]
                del stack[back:]
        else:
            opening = "(" if char == ")" else "["
            if stack and kinds[stack[-1]] == opening:
                j = stack.pop()
                partner[j] = i
                partner[i] = j
    return partner
