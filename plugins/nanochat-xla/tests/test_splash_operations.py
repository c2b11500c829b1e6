"""What the kernels compute, counted from the blocks that they visit."""

from __future__ import annotations

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="jax is not here: hatch run torch-tpu:test")
jax.config.update("jax_platforms", "cpu")

from nanochat.model.config import GPTConfig  # noqa: E402
from nanochat_xla.blocks import choose  # noqa: E402
from nanochat_xla.hardware import GENERATIONS  # noqa: E402
from nanochat_xla.operations import attention_operations  # noqa: E402

D16 = {"batch": 1, "length": 16384, "heads": 8, "head_dim": 128}


def windows_of(pattern):
    """The window of each of the 16 layers of the users' model."""
    config = GPTConfig.from_depth(16, vocab_size=32768, sequence_len=16384, window_pattern=pattern)
    assert (config.n_head, config.head_dim) == (D16["heads"], D16["head_dim"])
    return config.windows


@pytest.mark.parametrize("generation", GENERATIONS)
def test_windows_sssl_compute_at_most_0_6_of_full_context(generation):
    full = attention_operations(generation, windows=windows_of("L"), **D16)
    windows = attention_operations(generation, windows=windows_of("SSSL"), **D16)
    assert windows.total <= 0.6 * full.total
    assert windows.forward <= 0.6 * full.forward
    assert windows.backward <= 0.6 * full.backward


def test_full_context_computes_little_more_than_the_formula():
    """Else the ratio above would only say that full context wastes its time."""
    formula = 9 * 2 * 8 * 128 * (16384 * 16385 // 2)
    full = attention_operations("v6e", windows=[None], **D16)
    assert formula < full.total < 1.13 * formula


@pytest.mark.parametrize("window", [None, 600])
def test_the_count_is_that_of_the_blocks_a_mask_touches(window):
    length = 2048
    blocks = choose("v6e", length, window)
    distance = np.subtract.outer(np.arange(length), np.arange(length))
    seen = (distance >= 0) & (distance <= (length if window is None else window))

    def area(rows, columns):
        tiles = seen.reshape(length // rows, rows, length // columns, columns)
        return int(tiles.any(axis=(1, 3)).sum()) * rows * columns

    counted = attention_operations(
        "v6e", batch=3, length=length, heads=4, head_dim=64, windows=[window] * 2
    )
    each = 2 * 3 * 4 * 64 * 2  # two operations a product, of 3 rows, 4 heads, 64 numbers, 2 layers
    assert counted.forward == each * 2 * area(blocks.q, blocks.kv)
    assert counted.backward == each * 7 * area(blocks.q_back, blocks.kv_back)
