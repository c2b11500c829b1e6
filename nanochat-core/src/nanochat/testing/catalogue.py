"""Every check of a hook. The modules of the checks import torch, so they are imported late."""

from __future__ import annotations

from importlib import import_module

from nanochat.backend import Hook
from nanochat.testing.contract import Check

_MODULES: dict[Hook, tuple[str, ...]] = {
    "attention": ("attention", "documents", "kvcache"),
    "loss": ("loss", "loss_training", "memory"),
    "quantization": ("quantization",),
    "device": ("devices",),
}


def checks(hook: Hook) -> tuple[Check, ...]:
    """The checks of a hook in the order in which they run. Imports torch."""
    return tuple(
        Check(hook, cases)
        for module in _MODULES[hook]
        for cases in import_module(f"nanochat.testing.{module}").CHECKS
    )
