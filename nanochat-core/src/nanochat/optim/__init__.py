"""Muon for matrices, AdamW for the rest, and how their settings move over a run."""

from nanochat.optim.optimizer import MuonAdamW, OptimizerSettings, build_optimizer
from nanochat.optim.schedule import Schedule

__all__ = ["MuonAdamW", "OptimizerSettings", "Schedule", "build_optimizer"]
