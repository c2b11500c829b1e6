"""Checks of decoding with a key-value cache, against softmax attention in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nanochat.backend import AttentionProblem
from nanochat.testing.attention import reference
from nanochat.testing.contract import Case, ConformanceError, Measured, Subject, worst
from nanochat.testing.numerics import compare
from nanochat.testing.samples import DTYPES, sample

OUTSIDE = 100.0
"""Fills what lies behind a row's end: seen by mistake, it takes over the result."""


def decode(
    subject: Subject, problem: AttentionProblem, new: int, filled: list[int]
) -> tuple[Measured, list[tuple[Tensor, Tensor, Tensor]]]:
    """Append `new` positions behind `filled` ones and compare every row with the formula.

    Returns the worst comparison, and each cache as (before, after, what was to be appended).
    """
    p = problem
    dtype = getattr(torch, p.dtype)
    generator = torch.Generator().manual_seed(11)

    def random(length: int, heads: int) -> Tensor:
        x = torch.randn(p.batch, length, heads, p.head_dim, generator=generator)
        return x.to(subject.device, dtype)

    q, k, v = random(new, p.heads), random(new, p.kv_heads), random(new, p.kv_heads)
    caches = [random(p.sequence_len, p.kv_heads) for _ in range(2)]
    for cache in caches:
        for row, length in enumerate(filled):
            cache[row, length:] = OUTSIDE
    before = [cache.clone() for cache in caches]
    window, scale = p.windows[0], p.head_dim**-0.5
    with torch.no_grad():
        y = subject.backend.attention_with_kvcache(  # type: ignore[attr-defined]
            q,
            *caches,
            k,
            v,
            cache_seqlens=torch.tensor(filled, dtype=torch.int32, device=subject.device),
            window=window,
            scale=scale,
        )
    if y.dtype != q.dtype:
        raise ConformanceError(f"the output is {y.dtype}, its queries are {q.dtype}")

    def formula(device: str | torch.device, dtype: torch.dtype) -> Tensor:
        rows = []
        for row, length in enumerate(filled):
            one = slice(row, row + 1)
            keys, values = (
                torch.cat((cache[one, :length], fresh[one]), dim=1).to(device, dtype)
                for cache, fresh in zip(before, (k, v), strict=True)
            )
            rows.append(reference(q[one].to(device, dtype), keys, values, window, scale, length))
        return torch.cat(rows)

    exact, plain = formula("cpu", torch.float64), formula(subject.device, dtype)
    measured = compare(subject, "the output", y, exact, plain)
    return measured, list(zip(before, caches, (k, v), strict=True))


def _case(subject: Subject, label: str, new: int, filled: list[int], **changes: Any) -> Case:
    dtype = changes.pop("dtype", subject.dtype)
    facts = {"batch": len(filled), "sequence_len": 256, "kv_heads": 2, "training": False, **changes}
    problem = sample("attention", subject.kind, dtype, **facts)
    return Case(label, problem, lambda: decode(subject, problem, new, filled)[0], "kvcache")


def cache_one_token(subject: Subject) -> Iterator[Case]:
    """One token behind a cache, with and without a window."""
    for filled in (0, 1, 63, 128, 255):
        for window in (None, 0, 40):
            label = f"behind {filled}, window {window}"
            yield _case(subject, label, 1, [filled] * 2, windows=(window,))


def cache_many_tokens(subject: Subject) -> Iterator[Case]:
    """A prompt, or several tokens behind a cache, which see each other causally."""
    for filled, new in ((0, 17), (0, 256), (5, 2), (100, 129)):
        for window in (None, 40):
            label = f"{new} behind {filled}, window {window}"
            yield _case(subject, label, new, [filled] * 2, windows=(window,))


def cache_ragged(subject: Subject) -> Iterator[Case]:
    """Rows that are filled to different lengths; nothing behind a row's end is seen."""
    for new in (1, 5):
        for window in (None, 0, 40):
            label = f"{new} new, window {window}"
            yield _case(subject, label, new, [0, 3, 130, 251], windows=(window,))


def cache_dtypes(subject: Subject) -> Iterator[Case]:
    """Decoding in every dtype that is not refused, and with every grouping of heads."""
    for dtype in DTYPES:
        for kv_heads in (4, 1):
            label = f"{dtype}, 4 heads on {kv_heads}"
            yield _case(subject, label, 1, [9, 200], dtype=dtype, kv_heads=kv_heads)


def cache_in_place(subject: Subject) -> Iterator[Case]:
    """The new keys and values stand in the caches at their places, and nothing else changed."""
    for new, filled in ((1, [0, 200]), (7, [3, 249])):
        facts: dict[str, Any] = {"sequence_len": 256, "kv_heads": 2, "training": False}
        problem = sample("attention", subject.kind, subject.dtype, **facts)

        def verify(
            problem: AttentionProblem = problem, new: int = new, filled: list[int] = filled
        ) -> Measured:
            measured, caches = decode(subject, problem, new, filled)
            for name, (before, after, fresh) in zip(("key", "value"), caches, strict=True):
                for row, length in enumerate(filled):
                    before[row, length : length + new] = fresh[row]
                if not torch.equal(after, before):
                    wrong = (after != before).any(-1).any(-1).nonzero()[0].tolist()
                    raise ConformanceError(
                        f"the {name} cache, {new} tokens behind {filled}, is wrong at row "
                        f"{wrong[0]}, position {wrong[1]}"
                    )
            return worst([measured])

        yield Case(f"{new} behind {filled}", problem, verify, "kvcache")


CHECKS = (cache_one_token, cache_many_tokens, cache_ragged, cache_dtypes, cache_in_place)
