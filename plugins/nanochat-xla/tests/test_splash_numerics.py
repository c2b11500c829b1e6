"""Splash attention in jax's interpreter against float64, forward and gradients."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="jax is not here: hatch run torch-tpu:test")
jax.config.update("jax_platforms", "cpu")

from nanochat_xla import splash  # noqa: E402
from nanochat_xla.blocks import Blocks, choose, padded_length  # noqa: E402

LIMITS = {"float32": 1e-5, "bfloat16": 2e-2}


class Case(NamedTuple):
    batch: int
    length: int
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    documents: bool = False
    dtype: str = "float32"

    def __str__(self) -> str:
        words = [f"{self.batch}x{self.length}", f"{self.heads}/{self.kv_heads}x{self.head_dim}"]
        words += [f"window {self.window}"] * (self.window is not None)
        words += ["documents"] * self.documents
        return " ".join((*words, self.dtype))


CASES = (
    Case(2, 256, 2, 2, 128),
    Case(2, 160, 4, 2, 64, documents=True),
    Case(1, 300, 4, 1, 128, window=100),
    Case(1, 384, 2, 2, 96, window=0),
    Case(1, 1300, 2, 1, 64, window=700, documents=True),
    Case(1, 512, 2, 1, 128, window=128, documents=True, dtype="bfloat16"),
)


def reference(case, scale, q, k, v, grad, documents):
    """Softmax attention and its gradients by hand, in float64."""
    group = case.heads // case.kv_heads
    k, v = np.repeat(k, group, axis=2), np.repeat(v, group, axis=2)
    position = np.arange(case.length)
    distance = position[:, None] - position
    seen = distance >= 0
    if case.window is not None:
        seen &= distance <= case.window
    seen = np.broadcast_to(seen, (case.batch, 1, case.length, case.length))
    if documents is not None:
        seen = seen & (documents[:, None, :, None] == documents[:, None, None, :])
    scores = np.where(seen, np.einsum("bihd,bjhd->bhij", q, k) * scale, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    of_weights = np.einsum("bihd,bjhd->bhij", grad, v)
    of_scores = weights * (of_weights - (weights * of_weights).sum(-1, keepdims=True)) * scale

    def by_group(x):
        return x.reshape(*x.shape[:2], case.kv_heads, group, case.head_dim).sum(3)

    return (
        np.einsum("bhij,bjhd->bihd", weights, v),
        np.einsum("bhij,bjhd->bihd", of_scores, k),
        by_group(np.einsum("bhij,bihd->bjhd", of_scores, q)),
        by_group(np.einsum("bhij,bihd->bjhd", weights, grad)),
    )


def draw(case):
    """q, k, v, the output's gradient and document numbers, rounded to the case's dtype."""
    random = np.random.default_rng(case.length)
    heads = (case.heads, case.kv_heads, case.kv_heads, case.heads)
    arrays = [
        jax.numpy.asarray(
            random.standard_normal((case.batch, case.length, h, case.head_dim)), case.dtype
        )
        for h in heads
    ]
    starts = random.random((case.batch, case.length)) < 4 / case.length
    return arrays, starts.cumsum(axis=1).astype(np.int32) if case.documents else None


def errors(got, want):
    """Relative to the largest number; where all are zero, as the gradient of scores of one, not."""
    return [
        np.abs(np.asarray(g, np.float64) - w).max() / (np.abs(w).max() or 1.0)
        for g, w in zip(got, want, strict=True)
    ]


def check(case: Case, blocks: Blocks) -> None:
    (q, k, v, grad), documents = draw(case)
    scale = 1.2 * case.head_dim**-0.5
    options = {"window": case.window, "scale": scale, "blocks": blocks, "interpret": True}

    @jax.jit
    def run(q, k, v, grad, documents):
        out, lse = splash.forward(q, k, v, documents, **options)
        return out, *splash.backward(grad, q, k, v, out, lse, documents, **options)

    got = run(q, k, v, grad, documents)
    exact = [np.asarray(x, np.float64) for x in (q, k, v, grad)]
    want = reference(case, scale, *exact, documents)
    assert [x.dtype.name for x in got] == [case.dtype] * 4
    assert [x.shape for x in got] == [q.shape, q.shape, k.shape, v.shape]
    assert max(errors(got, want)) < LIMITS[case.dtype]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_and_gradients_against_float64(case):
    blocks = choose("v6e", case.length, case.window, head_dim=case.head_dim, dtype=case.dtype)
    check(case, blocks)


def test_several_blocks_of_each_kind():
    """Full, partial and skipped blocks of both directions, which short rows do not have."""
    check(Case(1, 1024, 2, 1, 128, window=300), Blocks(q=256, kv=128, q_back=256, kv_back=128))


def test_padding_does_not_show_in_values_nor_gradients():
    case = Case(1, 200, 1, 1, 64)
    (q, k, v, grad), _ = draw(case)
    assert padded_length(case.length) > case.length
    longer = [jax.numpy.pad(x, ((0, 0), (0, 56), (0, 0), (0, 0))) for x in (q, k, v, grad)]
    longer[1:3] = [x.at[:, 200:].set(7.0) for x in longer[1:3]]  # a future that nothing may see
    options = {"window": None, "scale": 0.1, "blocks": choose(None, 200), "interpret": True}
    out, lse = jax.jit(partial(splash.forward, **options))(q, k, v)
    long_out, _ = jax.jit(partial(splash.forward, **options))(*longer[:3])
    assert np.array_equal(out, long_out[:, :200])
    assert out.shape == (1, 200, 1, 64)
    assert lse.shape == (1, 1, 200)
    assert np.isfinite(lse).all()
