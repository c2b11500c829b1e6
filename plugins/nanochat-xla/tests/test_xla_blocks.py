"""The block sizes of the kernels, without jax."""

from __future__ import annotations

import itertools

import pytest

from nanochat_xla.blocks import LANES, choose, padded_length
from nanochat_xla.hardware import GENERATIONS

GENERATION_NAMES = (None, "v4", *GENERATIONS)
LENGTHS = (1, 127, 128, 129, 300, 512, 1000, 1300, 2048, 2176, 4096, 16384, 16385, 32768, 129024)


@pytest.mark.parametrize("generation", GENERATION_NAMES, ids=str)
def test_blocks_divide_the_padded_length_and_are_whole_lanes(generation):
    windows, widths, dtypes = (None, 64, 4096), (32, 128, 256), ("bfloat16", "float32")
    for length, window, width, dtype in itertools.product(LENGTHS, windows, widths, dtypes):
        blocks = choose(generation, length, window, head_dim=width, dtype=dtype)
        padded = padded_length(length)
        for size in (blocks.q, blocks.kv, blocks.q_back, blocks.kv_back):
            assert size % LANES == 0
            assert padded % size == 0, (length, padded, blocks)


def test_padding_is_small_and_blocks_are_worth_starting():
    for length in range(1, 20000, 37):
        padded = padded_length(length)
        assert 0 <= padded - length < (LANES if length <= 512 else 256), length
        blocks = choose("v6e", length)
        assert blocks.kv >= min(256, padded), (length, padded, blocks)
    assert padded_length(16384) == 16384


def test_full_context_takes_larger_blocks_than_a_window():
    full, window = choose("v6e", 16384), choose("v6e", 16384, 4096)
    assert (full.q, full.q_back) == (1024, 2048)
    assert (window.q, window.q_back) == (512, 512)
    assert choose("v6e", 16384, 16383) == full, "a window that hides nothing is none"


def test_generations_differ_and_an_unknown_one_gets_small_blocks():
    assert choose("v5e", 16384).q == 2048
    assert choose("v6e", 16384).q == 1024
    assert choose("v4", 16384) == choose(None, 16384) == choose("v6e", 16384, 4096)


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({}, 2048),
        ({"head_dim": 64}, 2048),
        ({"dtype": "float32"}, 1024),
        ({"head_dim": 256}, 1024),
        ({"head_dim": 256, "dtype": "float32"}, 512),
    ],
    ids=str,
)
def test_wide_rows_take_smaller_blocks(changes, most):
    assert choose("v5p", 16384, **changes).q_back == most
