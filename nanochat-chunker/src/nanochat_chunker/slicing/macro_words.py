"""Words that look like macros, and what they do to the declarations around them."""

import re
from functools import lru_cache

MACRO_WORD = re.compile(
    r"[A-Z][A-Z0-9_]{2,}|\w*_?(?:API|EXPORT|IMPORT|DLL|EXPORTED|VISIBLE|PUBLIC)_?"
)
NOT_FUNCTIONS = frozenset(
    "if while for switch return sizeof alignof decltype noexcept alignas throw requires explicit "
    "__attribute__ __declspec static_assert defined void int char bool long unsigned auto const "
    "template short signed float double".split()
)
_NOT_TYPES = frozenset(
    "operator return decltype noexcept requires explicit throw alignas sizeof defined if while for "
    "switch case new delete __attribute__ __declspec asm __asm__ static_assert const static extern "
    "inline virtual volatile".split()
)
# `int count_ GUARDED_BY(mutex_);`
_ANNOTATED = re.compile(
    r"([A-Za-z_]\w*|[>*&])\s+[*&]*([A-Za-z_]\w*)\s+[A-Z][A-Z0-9_]+\s*\(\)\s*(?:=.*)?$"
)


@lru_cache(maxsize=1 << 14)
def is_macro_word(word: str) -> bool:
    """Whether a word looks like a macro by its letters, or is no type before a declarator."""
    return word in _NOT_TYPES or MACRO_WORD.fullmatch(word) is not None


def annotated(plain: str) -> str:
    """The name of data that a macro with arguments follows; else ''."""
    found = _ANNOTATED.search(plain) if "()" in plain else None
    if found is None or any(map(is_macro_word, found.groups())) or found[2] in NOT_FUNCTIONS:
        return ""
    return found[2]
