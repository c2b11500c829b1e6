"""Choosing the next token from logits: greedy, or drawn with temperature, top-k and top-p."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nanochat.errors import NanochatError, UsageError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Temperature 0 takes the most likely token. `top_k` keeps the k most likely, `top_p` the fewest
    whose probabilities sum to p (nucleus sampling, arXiv:1904.09751), measured after temperature
    and top-k.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"temperature is {self.temperature}, it must be 0 or more")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top-k is {self.top_k}, it must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"top-p is {self.top_p}, it must be above 0 and at most 1")

    def scores(self, logits: Tensor) -> Tensor:
        """The logits (B, V) by which tokens are drawn, -inf for those that never are."""
        # The largest becomes 0, so that the tiniest temperature cannot overflow.
        scores = (logits - logits.amax(dim=-1, keepdim=True)) / self.temperature
        if self.top_k is not None:
            scores = keep_top_k(scores, self.top_k)
        if self.top_p is not None:
            scores = keep_top_p(scores, self.top_p)
        return scores

    def draw(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """One token for each row of logits (B, V), as (B,) int64 on the generator's device.

        Raises NanochatError if the logits are not finite.
        """
        logits = logits.to(generator.device)
        if not torch.isfinite(logits).all():
            raise NanochatError(
                "the model's logits are not finite", "Take a checkpoint from before it diverged"
            )
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        probabilities = self.scores(logits.float()).softmax(dim=-1)
        return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)


def keep_top_k(scores: Tensor, k: int) -> Tensor:
    """All but exactly k of the largest scores of each row become -inf."""
    if k >= scores.size(-1):
        return scores
    values, indices = scores.topk(k, dim=-1)
    return torch.full_like(scores, -math.inf).scatter_(-1, indices, values)


def keep_top_p(scores: Tensor, p: float) -> Tensor:
    """All but the fewest likeliest tokens of total probability p or more become -inf."""
    values, indices = scores.sort(dim=-1, descending=True, stable=True)
    probabilities = values.softmax(dim=-1)
    # A token stays if those before it do not reach p yet, so the first always does.
    before = probabilities.cumsum(dim=-1) - probabilities
    kept = values.masked_fill(before >= p, -math.inf)
    return torch.empty_like(scores).scatter_(-1, indices, kept)


def seeded_generator(device: torch.device, seed: int) -> torch.Generator:
    """A generator on the device, or on the host for devices that have none of their own."""
    try:
        generator = torch.Generator(device=device)
    except RuntimeError:
        generator = torch.Generator()
    return generator.manual_seed(seed)
