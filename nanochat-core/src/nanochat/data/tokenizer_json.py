"""The `tokenizer.json` of Hugging Face tokenizers, as far as byte-level BPE needs it.

Writing and reading it here keeps that library out of the dependencies of training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from nanochat.errors import UsageError

NAME = "tokenizer.json"
TRAIN_REMEDY = "Train one: nanochat-tokenizer train --data-dir DIR --output DIR"


@dataclass(frozen=True)
class Layout:
    """What encoding needs of a stored tokenizer."""

    pattern: str
    ranks: Mapping[bytes, int]
    """Bytes of every ordinary token to its id; ids rise in the order of the merges."""
    specials: Mapping[str, int]

    @property
    def vocab_size(self) -> int:
        return len(self.ranks) + len(self.specials)


def locate(path: Path | str) -> Path:
    """The tokenizer.json that a path means: the file itself or one in the folder.

    Raises UsageError where there is none.
    """
    path = Path(path)
    file = path / NAME if path.is_dir() else path
    if file.suffix == ".pkl" or (not file.exists() and (path / "tokenizer.pkl").exists()):
        raise UsageError(
            f"{path} holds a tokenizer of karpathy/nanochat as a pickle (tokenizer.pkl), which is "
            "not loaded because unpickling runs whatever code the file contains",
            f"{TRAIN_REMEDY} (on the same shards)",
        )
    if not path.exists():
        raise UsageError(f"there is no tokenizer at {path}", TRAIN_REMEDY)
    if not file.is_file():
        raise UsageError(f"{path} has no {NAME}", TRAIN_REMEDY)
    return file


def read(file: Path) -> bytes:
    """The content of a file. Raises UsageError where it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror or error}") from error


def byte_symbols() -> list[str]:
    """The visible character that byte-level BPE writes for each of the 256 bytes (GPT-2's table).

    Printable Latin-1 characters stand for themselves, the other bytes take the characters from
    U+0100 on.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(spare)) for byte in range(256)]


def compose(tokens: Sequence[bytes], specials: Sequence[str], pattern: str) -> bytes:
    """The file for `tokens` by id (the bytes, then merges as learnt) and then `specials`."""
    symbols = byte_symbols()

    def written(token: bytes) -> str:
        return "".join(symbols[byte] for byte in token)

    ranks = {token: i for i, token in enumerate(tokens)}
    merges = [split_of(token, ranks) for token in tokens if len(token) > 1]
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": len(tokens) + i,
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, name in enumerate(specials)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": pattern},
                    "behavior": "Isolated",
                    "invert": False,
                },
                _byte_level(add_prefix_space=False),
            ],
        },
        "post_processor": None,
        "decoder": _byte_level(add_prefix_space=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {written(token): i for token, i in ranks.items()},
            "merges": [[written(left), written(right)] for left, right in merges],
        },
    }
    return json.dumps(content, ensure_ascii=False, indent=1).encode()


def _byte_level(*, add_prefix_space: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": True,
        "use_regex": False,
    }


def split_of(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that a token was merged from.

    They are what is left when all earlier merges have been applied to its bytes. Raises ValueError
    where these leave more than two.
    """
    limit = ranks[token]
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        rank, pair = min((ranks.get(a + b, limit), (a, b)) for a, b in set(pairwise(parts)))
        if rank >= limit:
            raise ValueError(f"token {limit} ({token[:80]!r}) is no merge of two earlier tokens")
        # All of a pair at once: the longest tokens are runs of one character.
        parts = _merge(parts, pair)
    return parts[0], parts[1]


def _merge(parts: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    """Join a pair of neighbours wherever it is, from the left."""
    merged: list[bytes] = []
    i = 0
    while i < len(parts):
        if (*parts[i : i + 2],) == pair:
            merged.append(pair[0] + pair[1])
            i += 2
        else:
            merged.append(parts[i])
            i += 1
    return merged


def parse(stored: bytes, origin: str) -> Layout:
    """Read a file's content. Raises UsageError where it is damaged or of another kind."""
    try:
        content = json.loads(stored)
        return _parse(content)
    except _Foreign as error:
        raise UsageError(
            f"{origin} is not a tokenizer that nanochat can use: {error}", TRAIN_REMEDY
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(f"{origin} is damaged ({reason})", TRAIN_REMEDY) from error


class _Foreign(Exception):
    """A sound tokenizer.json of a kind that would encode differently here."""


def _parse(content: dict[str, Any]) -> Layout:
    model = content["model"]
    if model["type"] != "BPE":
        raise _Foreign(f"its model is {model['type']}, where byte-level BPE is expected")
    for part in ("normalizer", "post_processor"):
        if content.get(part) is not None:
            raise _Foreign(f"it has a {part}")
    pattern = _pattern(content.get("pre_tokenizer"))
    value = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    specials = {
        token["content"]: int(token["id"])
        for token in sorted(content["added_tokens"], key=lambda token: token["id"])
    }
    ranks: dict[bytes, int] = {}
    for text, i in model["vocab"].items():
        if text in specials:
            continue
        if not all(symbol in value for symbol in text):
            raise _Foreign(f"its token {text!r} is not written in byte-level symbols")
        ranks[bytes(value[symbol] for symbol in text)] = int(i)
    if sorted([*ranks.values(), *specials.values()]) != list(range(len(ranks) + len(specials))):
        raise ValueError("ids are missing or given twice")
    if not all(bytes([byte]) in ranks for byte in range(256)):
        raise _Foreign("not every byte has a token of its own")
    _check_merges(model["merges"], ranks, value)
    return Layout(pattern, ranks, specials)


def _pattern(pre_tokenizer: Any) -> str:
    """The regular expression that splits text; any other way of splitting is refused."""
    steps = (pre_tokenizer or {}).get("pretokenizers", ())
    if [step["type"] for step in steps] != ["Split", "ByteLevel"]:
        raise _Foreign("it does not split text by one regular expression and then into bytes")
    split, level = steps
    plain = split["behavior"] == "Isolated" and not split["invert"]
    if not plain or level["add_prefix_space"] or level.get("use_regex", True):
        raise _Foreign("it splits text with other options than plain GPT-4 style splitting")
    return str(split["pattern"]["Regex"])


def _check_merges(merges: Sequence[Any], ranks: Mapping[bytes, int], value: dict[str, int]) -> None:
    """tiktoken merges in the order of ids, so the order of the merges must be the same."""
    last = -1
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        merged = bytes(value[symbol] for symbol in left + right)
        if ranks[merged] <= last:
            raise _Foreign("the order of its merges is not the order of its ids")
        last = ranks[merged]
    if len(merges) != sum(len(token) > 1 for token in ranks):
        raise ValueError("the merges and the vocabulary do not agree")
