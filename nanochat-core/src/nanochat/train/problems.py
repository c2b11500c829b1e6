"""What a run asks of each kind of backend: its shapes, worked out before torch is imported."""

from __future__ import annotations

from nanochat.backend import (
    AttentionProblem,
    DeviceProblem,
    LossProblem,
    QuantizationProblem,
    Target,
)
from nanochat.model.config import GPTConfig
from nanochat.plan import Problems

NARROW_MULTIPLE = 16
NARROW_AT_LEAST = 128


def quantizable(out_features: int, in_features: int) -> bool:
    """Narrow formats need both sides in steps of 16, and only pay off from 128 on."""
    sides = (out_features, in_features)
    return all(s % NARROW_MULTIPLE == 0 and s >= NARROW_AT_LEAST for s in sides)


def linear_shapes(model: GPTConfig) -> tuple[tuple[int, int], ...]:
    """The distinct (out_features, in_features) of the blocks' linear layers."""
    width, head = model.n_embd, model.head_dim
    shapes = (
        ((model.n_head + 2 * model.n_kv_head) * head, width),
        (width, model.n_head * head),
        (4 * width, width),
        (width, 4 * width),
    )
    return tuple(dict.fromkeys(shapes))


def problems_of(
    model: GPTConfig, batch: int, target: Target, dtype: str, *, compiled: bool = True
) -> Problems:
    """The problems of training a model on rows of `model.sequence_len`, `batch` at a time."""
    tokens = batch * model.sequence_len
    return {
        "device": DeviceProblem(),
        "attention": AttentionProblem(
            device=target.kind,
            batch=batch,
            sequence_len=model.sequence_len,
            heads=model.n_head,
            kv_heads=model.n_kv_head,
            head_dim=model.head_dim,
            windows=tuple(dict.fromkeys(model.windows)),
            dtype=dtype,
            documents=model.document_token is not None,
        ),
        "loss": LossProblem(
            device=target.kind,
            tokens=tokens,
            hidden=model.n_embd,
            vocab=model.vocab_size,
            dtype=dtype,
            softcap=model.softcap,
        ),
        "quantization": QuantizationProblem(
            device=target.kind,
            tokens=tokens,
            layers=tuple(s for s in linear_shapes(model) if quantizable(*s)),
            dtype=dtype,
            compiled=compiled,
        ),
    }
