"""Bits per byte against a computation by hand in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from nanochat.errors import NanochatError
from nanochat.evaluate.bpb import bits_per_byte
from nanochat.model.gpt import GPT
from nanochat.runtime import Runtime

VOCABULARY = 300
SPECIAL = 290  # tokens from here on have no bytes


@pytest.fixture
def token_bytes() -> Tensor:
    sizes = torch.randint(1, 9, (VOCABULARY,), generator=torch.Generator().manual_seed(1))
    sizes[SPECIAL:] = 0
    return sizes.int()


def batches(count: int, seed: int = 2) -> list[tuple[Tensor, Tensor, dict[str, int]]]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        tokens = torch.randint(0, VOCABULARY, (3, 21), generator=generator)
        inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].clone()
        targets[torch.rand(targets.shape, generator=generator) < 0.2] = -1
        targets[0, :4] = SPECIAL + 3
        made.append((inputs, targets, {"batch": number}))
    return made


def by_hand(model: GPT, data: list[tuple[Tensor, Tensor, dict[str, int]]], sizes: Tensor) -> float:
    nats, count = 0.0, 0
    for inputs, targets, _ in data:
        with torch.no_grad():
            chances = model(inputs).double().log_softmax(dim=-1)
        for row in range(targets.size(0)):
            for column in range(targets.size(1)):
                target = int(targets[row, column])
                if target >= 0 and sizes[target] > 0:
                    nats -= chances[row, column, target].item()
                    count += int(sizes[target])
    return nats / math.log(2) / count


def test_ignored_and_special_targets_count_neither_nats_nor_bytes(
    make_model: Callable[..., GPT], runtime: Runtime, token_bytes: Tensor
) -> None:
    model, data = make_model(), batches(4)
    found = bits_per_byte(model, iter(data), token_bytes, runtime)
    assert found == pytest.approx(by_hand(model, data, token_bytes), rel=1e-6)


def test_a_bad_loss_at_a_target_without_bytes_does_no_harm(runtime: Runtime) -> None:
    def model(inputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
        assert reduction == "none"
        return torch.tensor([2.0, math.nan, math.inf])

    batch = (torch.zeros(1, 3).long(), torch.tensor([[0, 1, -1]]))
    found = bits_per_byte(model, [batch], torch.tensor([4, 0]), runtime)
    assert found == pytest.approx(2.0 / math.log(2) / 4)


def test_a_diverged_model_gives_nan(runtime: Runtime) -> None:
    batch = (torch.zeros(1, 2).long(), torch.zeros(1, 2).long())
    model = lambda *_, reduction: torch.full((2,), math.nan)  # noqa: E731
    assert math.isnan(bits_per_byte(model, [batch], torch.tensor([1]), runtime))


def test_ranks_are_weighted_by_their_bytes(
    make_model: Callable[..., GPT], token_bytes: Tensor
) -> None:
    """Two ranks with unlike shares agree with one process that sees all batches."""
    model, data = make_model(), batches(5)

    class OneOfTwo(Runtime):
        def __init__(self, rank: int) -> None:
            super().__init__(torch.device("cpu"), torch.float32, rank=rank, world_size=2)
            self.contributed = torch.zeros(2, dtype=torch.float64)
            self.theirs = torch.zeros(2, dtype=torch.float64)

        def all_reduce_sum(self, tensor: Tensor) -> Tensor:
            self.contributed = tensor.clone()
            return tensor.add_(self.theirs)

    other, this = OneOfTwo(1), OneOfTwo(0)
    bits_per_byte(model, data[4:], token_bytes, other)
    this.theirs = other.contributed
    found = bits_per_byte(model, data[:4], token_bytes, this)
    assert found == pytest.approx(by_hand(model, data, token_bytes), rel=1e-6)

    # A rank whose data have run out still takes part.
    this.theirs = other.contributed
    alone = bits_per_byte(model, [], token_bytes, this)
    assert alone == pytest.approx(by_hand(model, data[4:], token_bytes), rel=1e-6)


@pytest.mark.parametrize(
    "targets", [[[-1, -1]], [[1, 1]], None], ids=["ignored", "special", "none"]
)
def test_nothing_to_evaluate_on_is_an_error(
    runtime: Runtime, targets: list[list[int]] | None
) -> None:
    def data() -> Iterator[tuple[Tensor, Tensor]]:
        if targets is not None:
            yield torch.zeros(1, 2).long(), torch.tensor(targets)

    model = lambda *_, reduction: torch.ones(2)  # noqa: E731
    with pytest.raises(NanochatError, match="not one byte"):
        bits_per_byte(model, data(), torch.tensor([3, 0]), runtime)


def test_gradients_are_on_again_afterwards(runtime: Runtime) -> None:
    def model(inputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
        assert not torch.is_grad_enabled()
        return torch.ones(targets.numel())

    bits_per_byte(model, batches(1), torch.ones(VOCABULARY), runtime)
    assert torch.is_grad_enabled()
