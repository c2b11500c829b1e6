"""The problems that the checks ask about, small enough for any machine. Needs no torch."""

from __future__ import annotations

from typing import Any

from nanochat.backend import (
    AttentionProblem,
    DeviceProblem,
    Hook,
    LossProblem,
    Problem,
    QuantizationProblem,
    Support,
)

DTYPES = ("float32", "bfloat16", "float16")

ATTENTION: dict[str, Any] = {
    "batch": 2,
    "sequence_len": 160,
    "heads": 4,
    "kv_heads": 4,
    "head_dim": 64,
    "windows": (None,),
}
LOSS: dict[str, Any] = {"tokens": 160, "hidden": 64, "vocab": 512}
QUANTIZATION: dict[str, Any] = {
    "tokens": 64,
    "layers": ((256, 128), (128, 256)),
    "compiled": False,
}


def sample(hook: Hook, kind: str, dtype: str, **changes: Any) -> Any:
    """The ordinary problem of a hook on a kind of device, with some facts changed."""
    if hook == "device":
        return DeviceProblem()
    problems = {
        "attention": (AttentionProblem, ATTENTION),
        "loss": (LossProblem, LOSS),
        "quantization": (QuantizationProblem, QUANTIZATION),
    }
    problem, ordinary = problems[hook]
    facts: dict[str, Any] = {"device": kind, "dtype": dtype, **ordinary, **changes}
    return problem(**facts)


def is_refused(support: object, problem: Problem) -> str | None:
    """Why an answer of `supports` is no, or None. Raises TypeError for something else."""
    if not isinstance(support, Support):
        raise TypeError(f"supports({problem}) answered {support!r}, not a Support")
    return None if support.ok else support.reason
