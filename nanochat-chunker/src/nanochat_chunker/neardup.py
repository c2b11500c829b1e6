"""Near-duplicate files, by MinHash and locality-sensitive hashing (`--near-duplicates`).

Two files are near-duplicates if the sets of their runs of five words have an estimated Jaccard
similarity of at least the threshold. rensa was chosen by measurement: on 1,500 sources (13 MB) its
signatures took 0.07 s of CPU, those of datasketch 0.81 s.
"""

import importlib
import re
from typing import Any

from nanochat_chunker.errors import UsageError

_PERMUTATIONS = 128
_RUN = 5
_SEED = 1
_WORD = re.compile(r"\w+")
_FEWEST_WORDS = 20  # below, two files are alike by chance: a header guard around an include


def check_installed() -> None:
    """Raises `UsageError` where rensa is missing."""
    try:
        _rensa()
    except ImportError:
        raise UsageError(
            "--near-duplicates needs the package rensa, which is not installed",
            "Type: pip install 'nanochat-chunker[near-duplicates]'",
        ) from None


def _rensa() -> Any:
    return importlib.import_module("rensa")


def signature(text: str) -> Any:
    """The MinHash of a text; None for one too short to compare."""
    words = _WORD.findall(text)
    if len(words) < _FEWEST_WORDS:
        return None
    minhash = _rensa().RMinHash(num_perm=_PERMUTATIONS, seed=_SEED)
    minhash.update(list({" ".join(words[i : i + _RUN]) for i in range(len(words) - _RUN + 1)}))
    return minhash


class NearDuplicates:
    """Remembers what it was shown, and says what is like something shown before."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        # More bands find pairs of lower similarity; whatever is found is compared itself as well.
        bands = 32 if threshold < 0.8 else 16
        self._index = _rensa().RMinHashLSH(
            threshold=threshold, num_perm=_PERMUTATIONS, num_bands=bands
        )
        self._kept: list[Any] = []

    def seen_like(self, minhash: Any) -> bool:
        """Whether something like it was shown before; if not, it is remembered."""
        if minhash is None:
            return False
        for number in sorted(self._index.query(minhash)):
            if self._kept[number].jaccard(minhash) >= self._threshold:
                return True
        self._index.insert(len(self._kept), minhash)
        self._kept.append(minhash)
        return False
