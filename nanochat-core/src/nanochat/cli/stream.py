"""Text of a model on a terminal or in a pipe, whatever its encoding can show of it."""

from __future__ import annotations

import sys
from typing import TextIO


def show(text: str, to: TextIO | None = None) -> None:
    """Print at once, without a line end; characters that the stream does not know become `?`."""
    stream = sys.stdout if to is None else to
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, errors="replace").decode(encoding))
    stream.flush()
