"""Byte-level BPE: trained by rustbpe, encoded by tiktoken, stored as Hugging Face `tokenizer.json`.

The stored file is the standard one: `tokenizers.Tokenizer.from_file` gives the same ids (tested).
tiktoken encodes several times faster than the library whose format this is; docs/tokenizer.md has
the measurements.

Ids: the 256 bytes, then one id per merge in the order learnt, then the special tokens.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanochat.data import tokenizer_json
from nanochat.errors import UsageError

BOS = "<|bos|>"
SPECIAL_TOKENS = (
    BOS,
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|pad|>",
)
SMALLEST_VOCAB = 256 + len(SPECIAL_TOKENS)

# The split of GPT-4, but at most two digits together where GPT-4 takes three: in a vocabulary of
# some 32K, a thousand ids for three-digit numbers are worth more elsewhere (karpathy/nanochat
# measured one, two and three).
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}|"
    r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)

# The regular expression engine of tiktoken and rustbpe overflows its stack within one run of
# a few hundred thousand blanks, so longer runs are cut.
LONGEST_BLANK = 50_000
_LONG_BLANK = re.compile(rf"\s{{{LONGEST_BLANK}}}")


class Tokenizer:
    """Text to token ids and back. Make one with `load` or `train`; safe to use from threads."""

    def __init__(self, stored: bytes, origin: str = "a tokenizer") -> None:
        """`stored` is the content of a tokenizer.json, `origin` names it in messages.

        Raises UsageError where it is damaged or not a byte-level BPE with a <|bos|>.
        """
        import tiktoken

        layout = tokenizer_json.parse(stored, origin)
        if BOS not in layout.specials:
            raise UsageError(f"{origin} has no special token {BOS}", tokenizer_json.TRAIN_REMEDY)
        self._stored = stored
        self._layout = layout
        self.vocab_size = layout.vocab_size
        self.bos_id = layout.specials[BOS]
        self.fingerprint = hashlib.sha256(stored).hexdigest()
        try:
            self._encoding = tiktoken.Encoding(
                "nanochat",
                pat_str=layout.pattern,
                mergeable_ranks=dict(layout.ranks),
                special_tokens=dict(layout.specials),
            )
        except ValueError as error:
            raise UsageError(
                f"{origin} has a split pattern that does not compile: {error}",
                tokenizer_json.TRAIN_REMEDY,
            ) from error

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """Read `tokenizer.json`, given by itself or by the folder that holds it.

        Raises UsageError where it is missing or damaged.
        """
        file = tokenizer_json.locate(path)
        return cls(tokenizer_json.read(file), str(file))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn a vocabulary of `vocab_size` ids, special tokens included.

        Text that is too little or too uniform for so many merges gives a smaller vocabulary:
        compare `vocab_size` of the result. Raises UsageError where the size leaves no room for the
        bytes and special tokens, or where there is no text at all.
        """
        import rustbpe

        check_vocab_size(vocab_size)
        seen = _Seen(texts)
        learner = rustbpe.Tokenizer()  # pyrefly: ignore[missing-attribute]
        learner.train_from_iterator(
            iter(seen), vocab_size - len(SPECIAL_TOKENS), pattern=SPLIT_PATTERN
        )
        if not seen.characters:
            raise UsageError("there is no text to train a tokenizer on")
        tokens = [token for token, _ in sorted(learner.get_mergeable_ranks(), key=lambda t: t[1])]
        stored = tokenizer_json.compose(tokens, SPECIAL_TOKENS, SPLIT_PATTERN)
        return cls(stored, "the trained tokenizer")

    def save(self, folder: Path | str) -> Path:
        """Write `tokenizer.json` into a folder, made if missing; a reader sees all of it or none.

        Raises UsageError where the folder cannot be written.
        """
        file = Path(folder) / tokenizer_json.NAME
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("wb") as out:
                    out.write(self._stored)
                    out.flush()
                    os.fsync(out.fileno())
                temporary.replace(file)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UsageError(f"cannot write {file}: {reason}", "Choose another folder") from error
        return file

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS.

        Special tokens written in it are ordinary text. Lone surrogates, which no UTF-8 text has,
        become U+FFFD.
        """
        return [i for part in _parts(text) for i in self._encoding.encode_ordinary(part)]

    def encode_array(self, text: str) -> NDArray[np.uint32]:
        """As `encode`, into an array; the quickest way, and it lets other threads run."""
        parts = [
            self._encoding.encode_to_numpy(part, disallowed_special=())
            for part in _parts(_well_formed(text))
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def encode_batch(self, texts: Sequence[str], threads: int | None = None) -> list[list[int]]:
        """`encode` of each text, on `threads` threads (default: the cores, at most 8)."""
        threads = min(threads or min(os.cpu_count() or 1, 8), len(texts))
        if threads < 2:
            return [self.encode(text) for text in texts]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self.encode, texts))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of some ids. Raises KeyError where one is not in the vocabulary."""
        return self._encoding.decode_bytes(list(ids))

    def special(self, name: str) -> int:
        """The id of a special token, `<|fim_prefix|>` for instance. Raises UsageError."""
        try:
            return self._layout.specials[name]
        except KeyError:
            known = ", ".join(self._layout.specials)
            raise UsageError(
                f"the tokenizer has no special token {name} (it has {known})",
                tokenizer_json.TRAIN_REMEDY,
            ) from None

    @property
    def specials(self) -> dict[str, int]:
        """The special tokens and their ids."""
        return dict(self._layout.specials)

    def token_bytes(self) -> NDArray[np.int32]:
        """Bytes of text that each id stands for, 0 for special tokens: shape (vocab_size,)."""
        lengths = np.zeros(self.vocab_size, dtype=np.int32)
        for token, i in self._layout.ranks.items():
            lengths[i] = len(token)
        return lengths


def vocab_size_of(path: Path | str) -> int:
    """The number of ids of a stored tokenizer, read from its JSON alone. Raises UsageError."""
    file = tokenizer_json.locate(path)
    return tokenizer_json.parse(tokenizer_json.read(file), str(file)).vocab_size


def check_vocab_size(vocab_size: int) -> None:
    """Raise UsageError where a vocabulary has no room for the bytes and the special tokens."""
    if vocab_size < SMALLEST_VOCAB:
        raise UsageError(
            f"a vocabulary of {vocab_size} is too small: the 256 bytes and "
            f"{len(SPECIAL_TOKENS)} special tokens take {SMALLEST_VOCAB}",
            "Use --vocab-size 32768, or 8192 for small experiments",
        )


def _well_formed(text: str) -> str:
    """The text with lone surrogates replaced."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _parts(text: str) -> Iterable[str]:
    """The text, cut within runs of blanks that are longer than the engine can take."""
    if len(text) < LONGEST_BLANK or not _LONG_BLANK.search(text):
        return (text,)
    parts: list[str] = []
    start = 0
    for run in _LONG_BLANK.finditer(text):
        parts.append(text[start : run.end()])
        start = run.end()
    if start < len(text):
        parts.append(text[start:])
    return parts


class _Seen:
    """Texts as the learner can take them, counted on the way."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.characters = 0

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.characters += len(text)
            yield from _parts(_well_formed(text))
