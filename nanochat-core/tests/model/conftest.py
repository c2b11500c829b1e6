from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.registry import discover


@pytest.fixture(scope="session")
def backend() -> Callable[[str, str], Any]:
    """A loaded backend of the core by hook and name."""
    registry = discover("")

    def find(hook: str, name: str) -> Any:
        registered = registry.find(hook, name)  # type: ignore[arg-type]
        assert registered is not None
        registered.backend.load()
        return registered.backend

    return find


@pytest.fixture(scope="session")
def build(backend: Callable[[str, str], Any]) -> Callable[..., GPT]:
    """A model on the CPU, as a run makes it. `trained` gives every weight a value that matters."""

    def make(
        config: GPTConfig,
        *,
        attention: str = "sdpa",
        loss: str = "torch",
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        trained: bool = True,
    ) -> GPT:
        with torch.device("meta"):
            model = GPT(
                config,
                attention=backend("attention", attention),
                loss=backend("loss", loss),
                dtype=dtype,
            )
        torch.manual_seed(seed)
        model.initialize("cpu")
        if trained:
            # At initialisation much is zero, and what multiplies zero is not tested.
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if name.startswith("blocks.") or name == "smear_gate.weight":
                        parameter.normal_(std=1.5 * parameter.size(1) ** -0.5)
                    elif name == "output.weight":
                        parameter.normal_(std=0.4)
                model.smear_scale.fill_(0.7)
        return model

    return make
