from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nanochat.builtin.attention import Sdpa
from nanochat.builtin.loss import Torch
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.runtime import Runtime


@pytest.fixture
def runtime() -> Runtime:
    return Runtime(torch.device("cpu"), torch.float32)


@pytest.fixture
def make_model() -> Callable[..., GPT]:
    """A small GPT with weights large enough that its predictions differ from token to token."""

    def make(**settings: Any) -> GPT:
        shape = {"sequence_len": 64, "vocab_size": 300, "n_layer": 2, "n_head": 2, "n_kv_head": 1}
        config = GPTConfig(**{**shape, "n_embd": 32, "window_pattern": "L", **settings})
        attention, loss = Sdpa(), Torch()
        attention.load()
        loss.load()
        with torch.device("meta"):
            model = GPT(config, attention=attention, loss=loss, dtype=torch.float32)
        torch.manual_seed(7)
        model.initialize("cpu")
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() == 2:
                    weight.normal_(std=weight.size(1) ** -0.5)
            model.smear_scale.fill_(0.5)
        return model

    return make
