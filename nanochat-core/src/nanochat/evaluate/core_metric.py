"""The CORE metric of the DCLM paper (arXiv:2406.11794): few-shot accuracy over many small tasks.

A multiple-choice or schema example counts as solved if the right option has the lowest mean loss,
a language-modelling example if greedy decoding would give the whole continuation. Each task's
accuracy is put on a scale from guessing (0) to perfection (1); CORE is the mean over the tasks.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from nanochat.errors import UsageError
from nanochat.evaluate.core_bundle import Bundle, Task, load_bundle
from nanochat.evaluate.core_prompts import Encoder, Span, choose_shots, spans
from nanochat.generate.engine import positions
from nanochat.model.gpt import GPT
from nanochat.runtime import Runtime

__all__ = ["Bundle", "CoreResult", "TaskResult", "evaluate_core", "evaluate_task", "load_bundle"]

SHUFFLE_SEED = 1337
EXAMPLES_AT_ONCE = 64
"""Examples whose sequences are sorted by length together, so that little of a batch is padding."""
LOSS_TOKENS = 16384
LOGIT_TOKENS = 4096
"""Tokens a forward pass: fewer where it returns logits, of which each token has `vocab_size`."""
PAD_MULTIPLE = 64
"""Sequences are padded to multiples of this: fewer shapes for kernels that compile by shape.
Where each shape costs a compilation, to its doublings, and batches to their full size."""


@dataclass(frozen=True)
class TaskResult:
    """One task: its accuracy, and the accuracy on the scale from guessing to perfection."""

    label: str
    accuracy: float
    centered: float
    examples: int


@dataclass(frozen=True)
class CoreResult:
    """Accuracy and centred accuracy by task, and the mean of the latter."""

    results: dict[str, float]
    centered: dict[str, float]
    core_metric: float


def evaluate_core(
    model: GPT,
    tokenizer: Encoder,
    bundle: Bundle,
    runtime: Runtime,
    max_per_task: int = -1,
    *,
    report: Callable[[TaskResult], None] | None = None,
) -> CoreResult:
    """Evaluate every task of a bundle, the examples shared among the ranks.

    `max_per_task` above 0 takes only so many examples of each task, the same ones every time.
    `report` is called after each task. Raises UsageError where the bundle is at fault.
    """
    done: list[TaskResult] = []
    for task in bundle.tasks:
        correct = evaluate_task(model, tokenizer, task, runtime, max_per_task)
        accuracy = sum(correct) / len(correct)
        result = TaskResult(task.label, accuracy, task.centered(accuracy), len(correct))
        done.append(result)
        if report is not None:
            report(result)
    return CoreResult(
        results={r.label: r.accuracy for r in done},
        centered={r.label: r.centered for r in done},
        core_metric=sum(r.centered for r in done) / len(done),
    )


def evaluate_task(
    model: GPT, tokenizer: Encoder, task: Task, runtime: Runtime, max_per_task: int = -1
) -> list[bool]:
    """Whether each example of a task was solved, the same list on every rank.

    The examples are shuffled with a fixed seed; each rank takes every `world_size`-th.
    """
    examples = task.examples()
    random.Random(SHUFFLE_SEED).shuffle(examples)
    if max_per_task > 0:
        examples = examples[:max_per_task]
    if task.num_fewshot >= len(examples):  # said before the ranks part, so that none waits
        raise UsageError(
            f"CORE task {task.label!r} shows {task.num_fewshot} solved examples before each "
            f"question, there are only {len(examples)} examples",
            "Evaluate more examples a task",
        )
    context = positions(model)
    correct = torch.zeros(len(examples), dtype=torch.int32)
    mine = range(runtime.rank, len(examples), runtime.world_size)
    for first in range(0, len(mine), EXAMPLES_AT_ONCE):
        indices = mine[first : first + EXAMPLES_AT_ONCE]
        options = []
        for index in indices:
            shots = choose_shots(examples, index, task.num_fewshot)
            found = spans(task, examples[index], shots, tokenizer)
            options.append([span.cropped(context) for span in found])
        flat = [span for row in options for span in row]
        if task.kind == "language_modeling":
            solved = _greedy_matches(model, flat, tokenizer.bos_id, runtime)
        else:
            losses = iter(_mean_losses(model, flat, tokenizer.bos_id, runtime))
            best = [lowest([next(losses) for _ in row]) for row in options]
            solved = [b == examples[i]["gold"] for b, i in zip(best, indices, strict=True)]
        correct[list(indices)] = torch.tensor(solved, dtype=torch.int32)
    if runtime.world_size > 1:
        correct = runtime.all_reduce_sum(correct.to(runtime.device)).cpu()
    return [bool(c) for c in correct.tolist()]


def lowest(losses: list[float]) -> int:
    """The option of the lowest loss, the first among equals.

    An option without tokens of its own (the beginning of all others) has NaN. As in the
    reference, which relies on how `min` orders NaN, it wins if it comes first and never else.
    """
    return losses.index(min(losses))


def _mean_losses(model: GPT, rows: Sequence[Span], pad: int, runtime: Runtime) -> list[float]:
    """The mean loss of each row's span in nats a token, NaN where the span is empty."""
    means = [math.nan] * len(rows)
    compute = runtime.compile_step(partial(runtime.call_model(model), reduction="none"))
    for picked, tokens in _batches(rows, pad, LOSS_TOKENS, positions(model), runtime):
        targets = torch.full_like(tokens, -1)
        for row, index in enumerate(picked):
            _, start, end = rows[index]
            if start > 0:
                targets[row, start - 1 : end - 1] = tokens[row, start:end]
        with runtime.no_grad():
            losses = compute(runtime.place(tokens), runtime.place(targets))
        losses = losses.cpu().view(tokens.shape).double()
        for row, index in enumerate(picked):
            _, start, end = rows[index]
            if start > 0:
                means[index] = losses[row, start - 1 : end - 1].mean().item()
    return means


def _greedy_matches(model: GPT, rows: Sequence[Span], pad: int, runtime: Runtime) -> list[bool]:
    """Whether the most likely token is the right one everywhere in each row's span."""
    matches = [False] * len(rows)
    call = runtime.call_model(model)
    compute = runtime.compile_step(lambda tokens: call(tokens).argmax(dim=-1))
    for picked, tokens in _batches(rows, pad, LOGIT_TOKENS, positions(model), runtime):
        with runtime.no_grad():
            predicted = compute(runtime.place(tokens)).cpu()
        for row, index in enumerate(picked):
            _, start, end = rows[index]
            matches[index] = torch.equal(
                predicted[row, start - 1 : end - 1], tokens[row, start:end]
            )
    return matches


def _batches(
    rows: Sequence[Span], pad: int, budget: int, context: int, runtime: Runtime
) -> Iterator[tuple[list[int], Tensor]]:
    """Rows of like length in batches of at most `budget` tokens, padded on the right.

    Yields the rows' indices and their tokens (B, T) int64; B may be more than the indices.
    Attention is causal: padding after a row does not touch its losses.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].tokens), reverse=True)
    while order:
        longest = len(rows[order[0]].tokens)
        blocks = -(-longest // PAD_MULTIPLE)
        if runtime.static_shapes:
            blocks = 1 << (blocks - 1).bit_length()
        length = min(blocks * PAD_MULTIPLE, context)
        count = max(budget // length, 1)
        if runtime.static_shapes:
            count = max(count // runtime.devices, 1) * runtime.devices
        picked, order = order[:count], order[count:]
        size = count if runtime.static_shapes else len(picked)
        tokens = torch.full((size, length), pad, dtype=torch.int64)
        for row, index in enumerate(picked):
            ids = rows[index].tokens
            tokens[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        yield picked, tokens
