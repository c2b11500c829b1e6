"""Block sizes of splash attention for each TPU generation, length and window. Needs no jax."""

from __future__ import annotations

from dataclasses import dataclass

LANES = 128
"""What every block of queries and keys is a multiple of."""

WINDOW_BLOCK = 512
"""Every block that a window touches is computed whole: larger ones compute more at its two ends."""


@dataclass(frozen=True)
class Blocks:
    """Queries and keys in one block: of the forward kernel, and of the two backward kernels."""

    q: int
    kv: int
    q_back: int
    kv_back: int


# Full context. MaxText trains Llama 3 on v6e with these queries and keys (its benchmarks/
# maxtext_trillium_model_configs.py, llama3_8b_8192); on v5e and v5p it takes 2048 queries in the
# forward kernel, too. Some of its runs take 2048 keys, with a flag that raises the share of
# on-chip memory; libtpu compiles these without any.
_V5 = Blocks(q=2048, kv=512, q_back=2048, kv_back=512)
FULL = {
    "v5e": _V5,
    "v5p": _V5,
    "v6e": Blocks(q=1024, kv=512, q_back=2048, kv_back=512),
}

# For a window, and for other generations, of which nobody has said more.
SMALL = Blocks(WINDOW_BLOCK, WINDOW_BLOCK, WINDOW_BLOCK, WINDOW_BLOCK)


def choose(
    generation: str | None,
    length: int,
    window: int | None = None,
    *,
    head_dim: int = 128,
    dtype: str = "bfloat16",
) -> Blocks:
    """The blocks for rows of `padded_length(length)`, in multiples of 128 that divide it."""
    sizes = FULL.get(generation or "", SMALL) if is_full(length, window) else SMALL
    # What fits into the on-chip memory of v5p by default: 2048 queries of 128 numbers in bfloat16.
    most = 2048 * 256 // (max(head_dim, LANES) * (4 if dtype == "float32" else 2))
    # Causality skips whole blocks: in a short row large ones leave it little.
    most = min(most, max(WINDOW_BLOCK, length // 4))

    def fit(size: int) -> int:
        return largest_block(padded_length(length), min(size, most))

    return Blocks(fit(sizes.q), fit(sizes.kv), fit(sizes.q_back), fit(sizes.kv_back))


def is_full(length: int, window: int | None) -> bool:
    """Whether a window hides nothing that causality does not."""
    return window is None or window >= length - 1


def padded_length(length: int) -> int:
    """The rows that the kernels see: a multiple of 128, of 256 beyond the block of a window."""
    multiple = LANES if length <= WINDOW_BLOCK else 2 * LANES
    return -(-length // multiple) * multiple


def largest_block(length: int, most: int) -> int:
    """The largest multiple of 128 up to `most` that divides `length`, itself a multiple of 128."""
    return max(size for size in range(LANES, most + 1, LANES) if length % size == 0)
