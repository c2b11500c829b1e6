"""The text of prompts, the choice of solved examples and the span that is scored."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from nanochat.evaluate.core_bundle import Kind, Task
from nanochat.evaluate.core_prompts import Span, choose_shots, common_prefix, spans


class Characters:
    """One token a character, and one for each pair in `merges`."""

    bos_id = 1

    def __init__(self, *merges: str) -> None:
        self.merges = merges

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        rows = []
        for text in texts:
            for number, pair in enumerate(self.merges):
                text = text.replace(pair, chr(0xE000 + number))
            rows.append([ord(c) for c in text])
        return rows

    def text(self, ids: list[int]) -> str:
        assert ids[0] == self.bos_id
        merged = dict(enumerate(self.merges, start=0xE000))
        return "".join(merged.get(i, chr(i)) for i in ids[1:])


def task(kind: Kind, delimiter: str = " ") -> Task:
    return Task("t", kind, Path("t.jsonl"), 0, delimiter, 0.0)


def texts(tokenizer: Characters, found: list[Span]) -> list[tuple[str, str]]:
    """Each sequence's text before what is scored, and what is scored."""
    whole = [(tokenizer.text(s.tokens), s) for s in found]
    return [(t[: s.start - 1], t[s.start - 1 : s.end - 1]) for t, s in whole]


def test_multiple_choice() -> None:
    shots = [{"query": "Sky? ", "choices": ["green", "blue"], "gold": 1}]
    example = {"query": "Two and two?", "choices": ["four", "five", "3"], "gold": 0}
    tokenizer = Characters()
    found = spans(task("multiple_choice", "\nAnswer: "), example, shots, tokenizer)
    before = "Sky? \nAnswer: blue\n\nTwo and two?\nAnswer: "
    assert texts(tokenizer, found) == [(before, "four"), (before, "five"), (before, "3")]

    # What the options share belongs to the question.
    found = spans(task("multiple_choice"), {**example, "choices": ["four", "five"]}, [], tokenizer)
    assert texts(tokenizer, found) == [("Two and two? f", "our"), ("Two and two? f", "ive")]


def test_schema() -> None:
    shots = [{"context_options": ["A", "B"], "continuation": "was it", "gold": 0}]
    example = {"context_options": ["The cup fell as it", "The table fell as it"], "gold": 0}
    tokenizer = Characters()
    found = spans(task("schema"), {**example, "continuation": "slid"}, shots, tokenizer)
    assert texts(tokenizer, found) == [
        ("A was it\n\nThe cup", " fell as it slid"),
        ("A was it\n\nThe table", " fell as it slid"),
    ]


def test_language_modelling() -> None:
    shots = [{"context": "  one two \n", "continuation": "three"}]
    example = {"context": "\tfour five  ", "continuation": "six"}
    tokenizer = Characters()
    found = spans(task("language_modeling"), example, shots, tokenizer)
    assert texts(tokenizer, found) == [("one two three\n\nfour five", " six")]
    found = spans(task("language_modeling", "\nA: "), example, [], tokenizer)
    assert texts(tokenizer, found) == [("four five\nA:", " six")]


def test_a_token_across_the_border_is_scored_whole() -> None:
    tokenizer = Characters("5s")
    example = {"context": "Take 5", "continuation": "s off"}
    (span,) = spans(task("language_modeling", ""), example, [], tokenizer)
    assert span.tokens[span.start : span.end] == tokenizer.encode_batch(["5s off"])[0]


@pytest.mark.parametrize("values", [7, 2.5, True, "7"])
def test_values_that_are_not_text_are_spelled_out(values: Any) -> None:
    tokenizer = Characters()
    example = {"context": "n", "continuation": values}
    (span,) = spans(task("language_modeling"), example, [], tokenizer)
    assert tokenizer.text(span.tokens) == f"n {values}"


def test_shots_are_other_examples_drawn_by_index() -> None:
    examples = [{"number": n} for n in range(9)]
    for index in (0, 4, 8):
        numbers = [s["number"] for s in choose_shots(examples, index, 5)]
        others = [n for n in range(9) if n != index]
        assert numbers == random.Random(1234 + index).sample(others, 5)
    assert choose_shots(examples, 2, 0) == []


def test_cropping_takes_from_the_left_and_moves_the_span() -> None:
    span = Span(list(range(10)), 6, 9)
    assert span.cropped(10) is span
    assert span.cropped(7) == Span([3, 4, 5, 6, 7, 8, 9], 3, 6)
    # Longer than the context: what is left of it is scored, but for the first token.
    assert span.cropped(3) == Span([7, 8, 9], 1, 2)


def test_common_prefix() -> None:
    assert common_prefix([[1, 2, 3], [1, 2, 4], [1, 2]]) == 2
    assert common_prefix([[1], [2]]) == 0
