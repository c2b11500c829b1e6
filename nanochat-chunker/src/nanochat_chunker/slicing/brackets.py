"""The brackets of a text and their partners."""

import re

_AFTER_BODY = re.compile(r"\s*(?:catch\b|,)")
_STRUCTURE = re.compile(r"[{}()\[\];]")


class Brackets:
    """All brackets and semicolons: `at` their positions, `kind` their characters.

    `partner` gives for each bracket the index of the one that closes or opens it, or -1.
    """

    def __init__(self, clean: str) -> None:
        self._clean = clean
        self.at = [found.start() for found in _STRUCTURE.finditer(clean)]
        self.kind = "".join([clean[position] for position in self.at])
        self.partner = _partners(self.kind)

    def after_class(self, close: int, stop: int) -> tuple[int, int]:
        """The index after a class and its `;`, and where it ends; `close` is its closing brace."""
        at, kind, partner = self.at, self.kind, self.partner
        i = close + 1
        while i < stop:
            if kind[i] == ";":
                return i + 1, at[i] + 1
            if kind[i] in "([{" and partner[i] >= 0:
                between = self._clean[at[close] + 1 : at[i]]
                if (
                    kind[i] == "{"
                    and "=" not in between
                    and not re.fullmatch(r"\s*\w*\s*", between)
                ):
                    break
                i = partner[i] + 1
                continue
            break
        return close + 1, at[close] + 1

    def after_function(self, close: int, stop: int) -> tuple[int, int]:
        """The index after a function and its handlers, and where it ends; `close` as before."""
        at, kind, partner = self.at, self.kind, self.partner
        finish = at[close] + 1
        i = close + 1
        while True:
            more = _AFTER_BODY.match(self._clean, finish)
            if more is None or "catch" not in more.group():
                return i, finish
            opening = i
            while opening < stop and kind[opening] != "{":
                skip = kind[opening] == "(" and partner[opening] > 0
                opening = partner[opening] + 1 if skip else opening + 1
            if opening >= stop or partner[opening] < 0:
                return i, finish
            finish = at[partner[opening]] + 1
            i = partner[opening] + 1

    def behind(self, i: int, end: int) -> int:
        """The index of the first one at `end` or behind; -1 where a pair from `i` on is torn."""
        at, kind, partner = self.at, self.kind, self.partner
        while i < len(at) and at[i] < end:
            if kind[i] != ";":
                if partner[i] < i or at[partner[i]] >= end:
                    return -1
                i = partner[i]
            i += 1
        return i


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
