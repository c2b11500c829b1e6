"""The two choices that Cut Cross-Entropy leaves open, from the constructor or the environment."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from nanochat.errors import UsageError

FILTER_VARIABLE = "NANOCHAT_CCE_FILTER_EPS"
ACCUMULATE_VARIABLE = "NANOCHAT_CCE_ACCUMULATE"

# Machine epsilon by dtype, so that nothing here needs torch.
EPSILON = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23}


@dataclass(frozen=True)
class Options:
    """How gradients are filtered and summed.

    `filter_eps`: the backward pass skips a tile (128 rows by 128 words in 25.1.1) whose gradients
    of the loss by the logits are all smaller than this. "auto" is upstream's default, a 32nd of
    the dtype's epsilon: 2.4e-4 in bfloat16, 3.1e-5 in float16. A larger number skips more, faster
    and coarser; what is dropped is one-sided, the push that lowers improbable words. None skips
    nothing: the gradient is whole and the backward pass slower, the more so the surer the model.

    `accumulate_float32`: sum the gradients of hidden and weight in float32 instead of their own
    dtype: more exact, at 4 bytes an element of both while the backward pass runs.
    """

    filter_eps: float | str | None = "auto"
    accumulate_float32: bool = False

    def threshold(self, dtype: str) -> float | None:
        """The filter as a number for hidden states of `dtype` (the name of a torch dtype)."""
        if self.filter_eps == "auto":
            return EPSILON[dtype] / 32
        assert not isinstance(self.filter_eps, str)
        return self.filter_eps


def options_from_environment() -> Options:
    """Read both variables. Raises UsageError for a value that means nothing."""
    accumulate = os.environ.get(ACCUMULATE_VARIABLE, "").strip().lower()
    if accumulate not in ("", "input", "float32"):
        raise UsageError(
            f"{ACCUMULATE_VARIABLE} is {accumulate!r}", "Set it to input or float32, or unset it"
        )
    return Options(
        filter_eps=_filter(os.environ.get(FILTER_VARIABLE, "").strip().lower()),
        accumulate_float32=accumulate == "float32",
    )


def _filter(text: str) -> float | str | None:
    if text in ("", "auto"):
        return "auto"
    if text == "none":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise UsageError(
            f"{FILTER_VARIABLE} is {text!r}",
            "Set it to auto, none or a number between 0 and 1, or unset it",
        )
    return value
