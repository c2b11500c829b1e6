"""Which tokens may be drawn, and how often."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nanochat.errors import NanochatError, UsageError
from nanochat.generate.sampling import Sampling, keep_top_k, keep_top_p, seeded_generator

CPU = torch.device("cpu")


def allowed(scores: Tensor) -> list[set[int]]:
    return [{i for i, s in enumerate(row) if s > -math.inf} for row in scores.tolist()]


def test_top_k_keeps_exactly_k_even_among_equals() -> None:
    scores = torch.tensor([[0.0, 3.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
    kept = keep_top_k(scores, 2)
    assert allowed(kept)[0] == {1, 3}
    assert len(allowed(kept)[1]) == 2
    assert torch.equal(kept[0, [1, 3]], scores[0, [1, 3]])
    assert torch.equal(keep_top_k(scores, 9), scores)


def test_top_p_keeps_the_fewest_tokens_that_reach_p() -> None:
    scores = torch.tensor([[0.1, 0.5, 0.15, 0.25], [0.97, 0.01, 0.01, 0.01]]).log()
    for p, first in [
        (0.01, {1}),
        (0.49, {1}),
        (0.7, {1, 3}),
        (0.76, {1, 3, 2}),
        (0.95, {0, 1, 2, 3}),
    ]:
        assert allowed(keep_top_p(scores, p)) == [first, {0}], p
    assert torch.equal(keep_top_p(scores, 1.0), scores)


def test_top_p_agrees_with_its_definition_on_random_rows() -> None:
    generator = torch.Generator().manual_seed(3)
    scores = 3 * torch.randn(50, 40, generator=generator, dtype=torch.float64)
    for p in (0.1, 0.5, 0.9):
        for row, kept in zip(
            scores.softmax(-1).tolist(), allowed(keep_top_p(scores, p)), strict=True
        ):
            mass = sum(row[i] for i in kept)
            least = min(row[i] for i in kept)
            assert mass >= p
            assert mass - least < p
            assert least >= max(row[i] for i in range(40) if i not in kept)


def test_top_p_is_measured_after_temperature_and_top_k() -> None:
    logits = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    flat = Sampling(temperature=100.0, top_k=3, top_p=0.6).scores(logits)
    assert allowed(flat) == [{0, 1}]  # three tokens of about a third each: two reach 0.6
    sharp = Sampling(temperature=0.1, top_k=3, top_p=0.6).scores(logits)
    assert allowed(sharp) == [{0}]


def test_draws_follow_the_distribution() -> None:
    """A chi-squared test of 20,000 draws; 27.9 is its 99.9th percentile for 9 degrees."""
    logits = torch.randn(10, generator=torch.Generator().manual_seed(5))
    sampling, draws = Sampling(temperature=0.7), 20_000
    drawn = sampling.draw(logits.expand(draws, -1), seeded_generator(CPU, 11))
    expected = draws * (logits.double() / 0.7).softmax(-1)
    counts = torch.bincount(drawn, minlength=10)
    assert ((counts - expected) ** 2 / expected).sum().item() < 27.9


def test_only_allowed_tokens_are_drawn() -> None:
    logits = torch.zeros(1, 50).expand(5000, -1)
    drawn = Sampling(top_k=4).draw(logits, seeded_generator(CPU, 0))
    assert len(set(drawn.tolist())) == 4


def test_temperature_zero_is_greedy_and_tiny_ones_do_not_overflow() -> None:
    logits = torch.tensor([[14.0, 15.0, -15.0], [3.0, 1.0, 2.0]])
    for temperature in (0.0, 1e-38):
        drawn = Sampling(temperature).draw(logits, seeded_generator(CPU, 0))
        assert drawn.tolist() == [1, 0]


def test_draws_are_repeatable_by_seed() -> None:
    logits = torch.zeros(64, 100)
    first, again, other = (
        Sampling(top_p=0.9).draw(logits, seeded_generator(CPU, seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": 0}, "top-k"),
        ({"top_p": 0.0}, "top-p"),
        ({"top_p": 1.5}, "top-p"),
        ({"top_p": math.nan}, "top-p"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], name: str) -> None:
    with pytest.raises(UsageError, match=name):
        Sampling(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_diverged_model_is_named(temperature: float) -> None:
    logits = torch.tensor([[0.0, math.nan]])
    with pytest.raises(NanochatError, match="not finite"):
        Sampling(temperature).draw(logits, seeded_generator(CPU, 0))
