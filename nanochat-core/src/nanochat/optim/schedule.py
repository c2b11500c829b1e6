"""How the learning rate, Muon's momentum and its weight decay move over a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nanochat.optim.optimizer import MuonAdamW

MOMENTUM_START, MOMENTUM, MOMENTUM_END = 0.85, 0.97, 0.90
MOMENTUM_WARMUP_STEPS = 400


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, a plateau, and a linear warm-down of the learning rate.

    `warmdown_ratio` is the share of the run that warms down to `final_lr_frac`. Muon's momentum
    rises over the first 400 steps and falls again with the learning rate; its weight decay follows
    half a cosine to zero.
    """

    num_iterations: int
    warmup_steps: int = 40
    warmdown_ratio: float = 0.65
    final_lr_frac: float = 0.05
    weight_decay: float = 0.0

    @property
    def warmdown_steps(self) -> int:
        return round(self.warmdown_ratio * self.num_iterations)

    def lr_multiplier(self, step: int) -> float:
        """What the initial learning rates are multiplied by at a step, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        left = self.num_iterations - step
        if left >= self.warmdown_steps:
            return 1.0
        share = left / self.warmdown_steps
        return share + (1 - share) * self.final_lr_frac

    def momentum(self, step: int) -> float:
        """Muon's momentum at a step."""
        if step < MOMENTUM_WARMUP_STEPS:
            share = step / MOMENTUM_WARMUP_STEPS
            return MOMENTUM_START + share * (MOMENTUM - MOMENTUM_START)
        into = step - (self.num_iterations - self.warmdown_steps)
        if into <= 0 or self.warmdown_steps == 0:
            return MOMENTUM
        return MOMENTUM + into / self.warmdown_steps * (MOMENTUM_END - MOMENTUM)

    def muon_weight_decay(self, step: int) -> float:
        """Muon's weight decay at a step."""
        return self.weight_decay * 0.5 * (1 + math.cos(math.pi * step / self.num_iterations))

    def apply(self, optimizer: MuonAdamW, step: int) -> float:
        """Set the optimiser's groups for a step. Returns the learning rate multiplier."""
        multiplier = self.lr_multiplier(step)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * multiplier
            if group["kind"] == "muon":
                group["momentum"] = self.momentum(step)
                group["weight_decay"] = self.muon_weight_decay(step)
        return multiplier
