"""A piece of a document: an item as it is written."""

from nanochat_chunker.slicing.system_headers import words_of


class Piece:
    """The text of an item, and its words of `words_of`, looked for where they are asked for."""

    __slots__ = ("_words", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._words = -1

    @property
    def words(self) -> int:
        if self._words < 0:
            self._words = words_of(self.text)
        return self._words
