"""Checks of attention over documents that share a row, against softmax attention in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from nanochat.backend import AttentionProblem
from nanochat.testing.attention import attention_of, forward_and_gradient, fused_layer
from nanochat.testing.contract import Case, Measured, Subject, worst
from nanochat.testing.operators import compiled
from nanochat.testing.samples import sample


def _numbered(lengths: Sequence[Sequence[int]]) -> Tensor:
    """Rows of document lengths as the number of each position's document; numbers may skip."""
    rows = [
        torch.repeat_interleave(3 * torch.arange(len(row)) + index, torch.tensor(row))
        for index, row in enumerate(lengths)
    ]
    return torch.stack(rows).int()


# Each two rows of 300 positions: documents at, beside and far from the edges of blocks.
DOCUMENTS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "one a row": ((300,), (300,)),
    "at the edges of blocks": ((64, 64, 128, 44), (128, 128, 44)),
    "anywhere": ((1, 2, 40, 127, 129, 1), (299, 1)),
    "in one row of two": ((128, 128, 44), (300,)),
    "many": ((7,) * 42 + (6,), (1,) * 300),
}


def documents(subject: Subject) -> Iterator[Case]:
    """Documents that share a row do not see each other, with and without a window."""
    for label, lengths in DOCUMENTS.items():
        for window in (None, 40):
            changes = {"sequence_len": 300, "windows": (window,), "kv_heads": 2, "documents": True}
            problem = sample("attention", subject.kind, subject.dtype, **changes)

            def verify(problem: AttentionProblem = problem, lengths: Any = lengths) -> Measured:
                return forward_and_gradient(subject, problem, documents=_numbered(lengths))

            yield Case(f"{label}, window {window}", problem, verify, needs="documents")


def documents_compile_whole(subject: Subject) -> Iterator[Case]:
    """Documents within torch.compile(fullgraph=True), other ones at each call of one graph."""
    for window in (None, 40):
        changes = {"sequence_len": 300, "windows": (window,), "documents": True}
        problem = sample("attention", subject.kind, subject.dtype, **changes)

        def verify(problem: AttentionProblem = problem) -> Measured:
            whole = compiled(fused_layer(attention_of(subject)), subject.device)
            return worst(
                forward_and_gradient(
                    subject, problem, attention=whole, documents=_numbered(lengths)
                )
                for lengths in DOCUMENTS.values()
            )

        yield Case(f"window {window}", problem, verify, needs="documents")


CHECKS = (documents, documents_compile_whole)
