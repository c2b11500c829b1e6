from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from nanochat.builtin.attention import Sdpa
from nanochat.builtin.loss import Torch
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.runtime import Runtime


@pytest.fixture(scope="session")
def runtime() -> Runtime:
    return Runtime(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def build() -> Callable[..., GPT]:
    """A small model, always with the same weights.

    With `trained` none is zero. At initialisation the residual scalars have no gradient but
    rounding, which AdamW turns into whole steps: nothing to compare.
    """

    def make(*, trained: bool = False, **changes: object) -> GPT:
        shape: dict = {
            "sequence_len": 16,
            "vocab_size": 60,
            "n_layer": 3,
            "n_head": 4,
            "n_kv_head": 2,
            "n_embd": 32,
            "window_pattern": "L",
        }
        attention, loss = Sdpa(), Torch()
        attention.load()
        loss.load()
        with torch.device("meta"):
            model = GPT(GPTConfig(**{**shape, **changes}), attention=attention, loss=loss)
        torch.manual_seed(0)
        model.initialize("cpu")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if trained and (name.startswith("blocks.") or name == "output.weight"):
                    parameter.normal_(std=parameter.size(1) ** -0.5)
            model.smear_scale.fill_(0.5 if trained else 0.0)
        return model

    return make
