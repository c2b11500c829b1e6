"""From an example of a CORE task to token sequences and the part of each that is scored.

The text, the choice of solved examples before it and the scored span are those of
karpathy/nanochat's evaluation, so that the numbers can be compared.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from nanochat.evaluate.core_bundle import Example, Task

FEWSHOT_SEED = 1234
BETWEEN_EXAMPLES = "\n\n"


class Encoder(Protocol):
    """What is needed of a tokenizer."""

    @property
    def bos_id(self) -> int: ...
    def encode_batch(self, texts: list[str]) -> list[list[int]]: ...


class Span(NamedTuple):
    """A token sequence that begins with BOS, and the half-open range of it that is scored."""

    tokens: list[int]
    start: int
    end: int

    def cropped(self, length: int) -> Span:
        """At most the last `length` tokens. What is scored shrinks only if it is longer itself."""
        excess = len(self.tokens) - length
        if excess <= 0:
            return self
        # A position predicts its successor: the first token of a sequence cannot be scored.
        start = max(self.start - excess, 1)
        return Span(self.tokens[excess:], start, self.end - excess)


def choose_shots(examples: Sequence[Example], index: int, count: int) -> list[Example]:
    """The solved examples shown before example `index`: any others, drawn by its index."""
    if count == 0:
        return []
    others = [i for i in range(len(examples)) if i != index]
    return [examples[i] for i in random.Random(FEWSHOT_SEED + index).sample(others, count)]


def spans(task: Task, example: Example, shots: Sequence[Example], tokenizer: Encoder) -> list[Span]:
    """One span for each option of the example; a single one if the task is language modelling."""
    if task.kind == "language_modeling":
        return [_continuation(task, example, shots, tokenizer)]
    if task.kind == "multiple_choice":
        texts = _multiple_choice(task, example, shots)
    else:
        texts = _schema(task, example, shots)
    rows = _encode(tokenizer, texts)
    if task.kind == "multiple_choice":
        # The options differ in how they end: everything after the common beginning is scored.
        start = common_prefix(rows)
        return [Span(row, start, len(row)) for row in rows]
    # The options differ in how they begin: the common ending is scored.
    suffix = common_prefix([row[::-1] for row in rows])
    return [Span(row, len(row) - suffix, len(row)) for row in rows]


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all rows share."""
    length = 0
    for column in zip(*rows, strict=False):
        if any(token != column[0] for token in column):
            break
        length += 1
    return length


def _multiple_choice(task: Task, example: Example, shots: Sequence[Example]) -> list[str]:
    solved = "".join(
        f"{s['query']}{task.delimiter}{s['choices'][s['gold']]}{BETWEEN_EXAMPLES}" for s in shots
    )
    question = f"{solved}{example['query']}{task.delimiter}"
    return [f"{question}{choice}" for choice in example["choices"]]


def _schema(task: Task, example: Example, shots: Sequence[Example]) -> list[str]:
    solved = "".join(
        f"{s['context_options'][s['gold']]}{task.delimiter}{s['continuation']}{BETWEEN_EXAMPLES}"
        for s in shots
    )
    ending = f"{task.delimiter}{example['continuation']}"
    return [f"{solved}{context}{ending}" for context in example["context_options"]]


def _continuation(
    task: Task, example: Example, shots: Sequence[Example], tokenizer: Encoder
) -> Span:
    solved = "".join(
        f"{str(s['context']).strip()}{task.delimiter}{s['continuation']}{BETWEEN_EXAMPLES}"
        for s in shots
    )
    question = f"{solved}{str(example['context']).strip()}{task.delimiter}"
    # White space at the end of the question belongs to the first token of the answer.
    before, whole = _encode(tokenizer, [question.strip(), f"{question}{example['continuation']}"])
    # All of `before`, unless a token reaches across the border: then that one is scored too.
    return Span(whole, common_prefix([before, whole]), len(whole))


def _encode(tokenizer: Encoder, texts: list[str]) -> list[list[int]]:
    return [[tokenizer.bos_id, *ids] for ids in tokenizer.encode_batch(texts)]
