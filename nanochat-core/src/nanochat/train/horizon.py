"""How long to train, on how large a batch and at which rates: pure functions of a few numbers.

The laws and the reference point (a model of 12 layers, 2**19 tokens a step) are those of
karpathy/nanochat, measured there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nanochat.errors import UsageError

REFERENCE_DEPTH = 12
REFERENCE_BATCH = 2**19
BATCH_EXPONENT = 0.383
"""The best batch grows as tokens ** 0.383: Power Lines, arXiv:2505.13738."""


@dataclass(frozen=True)
class Horizon:
    """What follows from the settings and the size of the model. Batches are in tokens."""

    num_iterations: int
    total_batch_size: int
    accumulation_steps: int
    lr_scale: float
    weight_decay: float

    @property
    def tokens(self) -> int:
        return self.num_iterations * self.total_batch_size


def plan_horizon(
    *,
    scaling_params: int,
    reference_params: int,
    flops_per_token: float,
    num_iterations: int,
    target_flops: float,
    target_param_data_ratio: float,
    total_batch_size: int,
    micro_batch: int,
    weight_decay: float,
) -> Horizon:
    """Derive the horizon.

    `scaling_params` counts the matrices and the output layer, which scaling laws fit best;
    `reference_params` the same for the reference depth; `micro_batch` is the tokens that all
    devices take at a time. Raises UsageError if the batch is not a multiple of it.
    """
    growth = scaling_params / reference_params
    batch = total_batch_size
    if batch == -1:
        batch = nearest_multiples(best_batch_size(growth), micro_batch)[0]
    elif batch % micro_batch:
        near = nearest_multiples(batch, micro_batch)
        raise UsageError(
            f"--total-batch-size {batch} is not a multiple of the {micro_batch} tokens that all "
            "devices take at a time (device batch size x sequence length x devices)",
            "Nearest: " + " or ".join(str(n) for n in near),
        )
    if num_iterations > 0:
        steps = num_iterations
    elif target_flops > 0:
        steps = round(target_flops / (flops_per_token * batch))
    else:
        steps = int(target_param_data_ratio * scaling_params) // batch
    return Horizon(
        num_iterations=max(1, steps),
        total_batch_size=batch,
        accumulation_steps=batch // micro_batch,
        lr_scale=lr_scale(batch),
        weight_decay=scaled_weight_decay(weight_decay, batch, growth),
    )


def best_batch_size(growth: float) -> int:
    """The power of two nearest to the best batch, for a horizon `growth` times the reference's."""
    return 2 ** round(math.log2(REFERENCE_BATCH * growth**BATCH_EXPONENT))


def lr_scale(batch: int) -> float:
    """Rates grow with the square root of the batch, as for AdamW; for Muon that is assumed."""
    return math.sqrt(batch / REFERENCE_BATCH)


def scaled_weight_decay(weight_decay: float, batch: int, growth: float) -> float:
    """Keeps batch / (rate * decay * tokens) constant: arXiv:2405.13698, with rates as above."""
    return weight_decay * math.sqrt(batch / REFERENCE_BATCH) / growth


def nearest_multiples(value: int, unit: int) -> tuple[int, ...]:
    """The multiples of `unit` around a value, nearest first, at least `unit`."""
    below = value // unit * unit
    if below == value:
        return (value,)
    around = [m for m in (below, below + unit) if m > 0]
    return tuple(sorted(around, key=lambda m: (abs(m - value), m)))
