"""How much of the budget a text takes: estimated from bytes, or counted by a tokenizer."""

import hashlib
from pathlib import Path
from typing import Any, Protocol

from nanochat_chunker.errors import UsageError

BYTES_PER_TOKEN = 4


class Meter(Protocol):
    """Measures text in units of which a budget has `limit(max_tokens)`."""

    exact: bool  # the units of two texts together may differ from the sum of both

    def limit(self, max_tokens: int) -> int:
        """The budget in units."""
        ...

    def units(self, text: str) -> int:
        """The length of `text` in units."""
        ...

    def line_units(self, lines: list[str]) -> list[int]:
        """The length of each line in units, as good as it can be known line by line."""
        ...

    def tokens(self, units: int) -> int:
        """The number of tokens of a text of `units`."""
        ...

    def describe(self) -> dict[str, Any]:
        """How tokens were counted, for the manifest."""
        ...


class ByteMeter:
    """Tokens guessed as bytes / 4, rounded up. A unit is a byte of UTF-8."""

    exact = False

    def limit(self, max_tokens: int) -> int:
        return max_tokens * BYTES_PER_TOKEN

    def units(self, text: str) -> int:
        return len(text.encode())

    def line_units(self, lines: list[str]) -> list[int]:
        return [len(line.encode()) for line in lines]

    def tokens(self, units: int) -> int:
        return -(-units // BYTES_PER_TOKEN)

    def describe(self) -> dict[str, Any]:
        return {"method": f"estimated: bytes / {BYTES_PER_TOKEN}"}


class TokenizerMeter:
    """Tokens counted by a Hugging Face `tokenizer.json`, no special ones. A unit is a token."""

    exact = True

    def __init__(self, path: Path) -> None:
        file = path / "tokenizer.json" if path.is_dir() else path
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise UsageError(
                "--tokenizer needs the package tokenizers, which is not installed",
                "Type: pip install 'nanochat-chunker[tokenizer]'",
            ) from None
        if not file.is_file():
            raise UsageError(f"no tokenizer at {file}", "Give a tokenizer.json or its folder")
        try:
            content = file.read_bytes()
            self._tokenizer = Tokenizer.from_str(content.decode())
        except Exception as error:  # noqa: BLE001 - what the binding raises for a bad file
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UsageError(
                f"cannot load the tokenizer {file}: {reason}", "Give another file"
            ) from None
        self._sha256 = hashlib.sha256(content).hexdigest()
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # "<|bos|>" in a source file is text.
        self._tokenizer.encode_special_tokens = True

    def limit(self, max_tokens: int) -> int:
        return max_tokens

    def units(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def line_units(self, lines: list[str]) -> list[int]:
        encodings = self._tokenizer.encode_batch(lines, add_special_tokens=False)
        return [len(encoding) for encoding in encodings]

    def tokens(self, units: int) -> int:
        return units

    def describe(self) -> dict[str, Any]:
        from importlib.metadata import version

        return {
            "method": "counted by the tokenizer, without special tokens",
            "tokenizer_sha256": self._sha256,
            "tokenizers": version("tokenizers"),
        }


def make_meter(tokenizer: Path | None) -> Meter:
    """The meter for `--tokenizer`. Raises `UsageError` where it cannot be loaded."""
    return ByteMeter() if tokenizer is None else TokenizerMeter(tokenizer)
