"""Calls of macros with stand-ins for arguments: one answer for all calls that differ in those.

An argument that a macro passes on as it is leaves no mark on what the call declares or names but
itself. It has a stand-in unless it is empty or punctuation, begins with a bracket, may declare
something itself or does not stand within its commas alone.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Generic, NamedTuple, TypeVar

from nanochat_chunker.slicing.macros import (
    Lookup,
    Macro,
    arguments_at,
    is_name,
    tokens_of,
    trimmed,
)

Answer = TypeVar("Answer")
Filling = Mapping[str, str]  # by stand-in the argument, a literal of text without its quotes

_STAND_IN = re.compile(r"argument\d+_")
_WORD = re.compile(r"[A-Za-z_]\w*")
_MAX_KNOWN = 32  # answers for one text, under different macros
_KEPT = frozenset("{};#=\\") | {"##", "operator"}  # tokens of arguments that stay


def has_stand_in(text: str) -> bool:
    """Whether a stand-in is in a text."""
    return "argument" in text and _STAND_IN.search(text) is not None


def filled(text: str, filling: Filling) -> str:
    """A text with arguments in place of what stands for them."""
    return _STAND_IN.sub(lambda found: filling.get(found[0], found[0]), text)


class _Known(NamedTuple, Generic[Answer]):
    """An answer, with what decides where it holds."""

    answer: Answer
    asked: Mapping[str, Macro | None]  # the macros that it was made with
    made: tuple[str, ...]  # words with stand-ins that were taken for no macros


class Answers(Generic[Answer]):
    """What `read` says of calls, asked once where calls differ in their stand-ins only.

    An answer goes for every place where the macros that it asked for are the same. `defined` says
    whether a name is a macro anywhere, `tells` whether `read` takes a name for more than a name.
    """

    def __init__(
        self,
        read: Callable[[str, Lookup], Answer],
        defined: Callable[[str], bool],
        tells: Callable[[str], bool] = lambda name: False,
    ) -> None:
        self._read = read
        self._defined = defined
        self._tells = tells
        self._known: dict[str, list[_Known[Answer]]] = defaultdict(list)

    def ask(self, code: str, lookup: Lookup) -> tuple[Answer, Filling]:
        """The answer for a call at the beginning of `code`, and what its stand-ins stand for."""

        def is_macro(name: str) -> bool:
            return self._defined(name) and lookup(name) is not None

        kept: Set[str] = frozenset()
        while True:
            text, filling = _with_stand_ins(code, kept, is_macro)
            known = self._answer(text, lookup)
            telling = {
                stand_in
                for word in known.made
                if any(
                    self._tells(name) or is_macro(name)
                    for name in _WORD.findall(filled(word, filling))
                )
                for stand_in in _STAND_IN.findall(word)
                if stand_in in filling
            }
            if not telling:
                return known.answer, filling
            kept |= telling

    def exactly(self, code: str, lookup: Lookup) -> Answer:
        """The answer for `code` as it is."""
        return self._answer(code, lookup).answer

    def _answer(self, text: str, lookup: Lookup) -> _Known[Answer]:
        known = self._known[text]
        for each in known:
            if all(lookup(name) == macro for name, macro in each.asked.items()):
                return each
        asked: dict[str, Macro | None] = {}
        made: dict[str, None] = {}

        def noted(name: str) -> Macro | None:
            macro = lookup(name)
            if self._defined(name):
                asked[name] = macro
            elif has_stand_in(name):
                made[name] = None
            return macro

        answer = self._read(text, noted)
        known.insert(0, _Known(answer, asked, tuple(made)))
        del known[_MAX_KNOWN:]
        return known[0]


def _with_stand_ins(
    code: str, kept: Set[str], is_macro: Callable[[str], bool]
) -> tuple[str, Filling]:
    """A call with a stand-in for each argument that may have one and is not to be kept."""
    tokens = tokens_of(code)
    at = 1 if tokens[:1] and tokens[0].isspace() else 0
    filling: dict[str, str] = {}
    if not tokens[at:] or not is_name(tokens[at]):
        return code, filling
    arguments, after = arguments_at(tokens, at + 1)
    listed: list[str] = []
    for k, argument in enumerate(arguments or ()):
        argument = trimmed(argument)
        text = "".join(argument)
        stand_in = f"argument{k}_"
        if stand_in in kept or not _is_opaque(argument, is_macro):
            listed.append(text)
        elif all(token[0] == '"' or token.isspace() for token in argument):
            listed.append(f'"{stand_in}"')
            filling[stand_in] = text[1:-1]
        else:
            listed.append(stand_in)
            filling[stand_in] = text
    if not filling:
        return code, filling
    return f"{tokens[at]}({', '.join(listed)}){''.join(tokens[after:])}", filling


def _is_opaque(argument: Sequence[str], is_macro: Callable[[str], bool]) -> bool:
    if len(argument) == 1 and is_name(argument[0]):
        return not is_macro(argument[0])
    if not argument or argument[0] in "([{" or argument.count("<") != argument.count(">"):
        return False
    if not any(token[0].isalnum() or token[0] in "_\"'" for token in argument):
        return False
    depth, before = 0, ""
    for token in argument:
        if token.isspace():
            continue
        if token in _KEPT or (is_name(token) and is_macro(token)):
            return False
        if token in "([":
            depth += 1
        elif token in ")]":
            depth -= 1
        elif depth == 0 and is_name(token) and before and (
            is_name(before) or before in "*&>"
        ):  # fmt: skip
            return False  # `int x`
        before = "->" if token == ">" and before == "-" else token
    return True
