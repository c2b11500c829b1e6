"""Text that appears token by token, whole characters at a time."""

from __future__ import annotations

from collections.abc import Callable

REPLACEMENT = "\ufffd"


class TextStream:
    """Decodes a growing sequence of tokens whose bytes may end in the middle of a character.

    `decode` turns tokens into text and replaces bytes that are not UTF-8 by U+FFFD. What `push`
    and `finish` return, joined, is exactly `decode` of all tokens.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._held: list[int] = []
        self._shown = 0  # characters of the held tokens that were returned already

    def push(self, token: int) -> str:
        """The text that has become certain with this token, maybe none."""
        self._held.append(token)
        text = self._decode(self._held)
        if not text.endswith(REPLACEMENT):
            return self._release(text)
        # Only the last character may still be completed by bytes to come.
        new = text[self._shown : -1]
        self._shown += len(new)
        return new

    def finish(self) -> str:
        """What was held back at the end."""
        return self._release(self._decode(self._held)) if self._held else ""

    def _release(self, text: str) -> str:
        new = text[self._shown :]
        self._held, self._shown = [], 0
        return new
