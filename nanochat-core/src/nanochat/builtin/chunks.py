"""How many rows of logits are held at a time. Needs no torch, so a plan can ask.

Two things are held besides the results: a chunk of logits, and what the gradient of the weight
takes more while it is summed in float32. Fewer rows make slower products: on an H100 3,072 rows
cost 5% of the speed that 8,192 have, 1,024 rows 20%.
"""

MAX_SCRATCH = 288 * 2**20
"""Bytes held besides the results, in 16-bit floats."""
MAX_ROWS = 8192
MIN_ROWS = 1024
STEP = 512
"""Products are computed in tiles: a few rows more than whole ones cost another row of them."""
FEW_CHUNKS = 4
"""So many sums may be rounded to the weight's own dtype. In bfloat16 each adds about 1e-3 of the
sum so far, where the logits' own rounding leaves as much; many chunks are summed in float32."""


def rows_per_chunk(tokens: int, vocab: int, width: int) -> int:
    """The rows of a chunk, spread evenly so that no chunk is a sliver."""
    scratch = MAX_SCRATCH
    if sums_in_float32(tokens, vocab, width):
        scratch -= 2 * vocab * width
    return _spread(tokens, _rows_in(scratch, vocab))


def sums_in_float32(tokens: int, vocab: int, width: int) -> bool:
    """Whether the weight's gradient is summed over the chunks in float32 whatever its dtype."""
    return tokens > FEW_CHUNKS * _rows_in(MAX_SCRATCH, vocab)


def _rows_in(scratch: int, vocab: int) -> int:
    rows = scratch // (2 * max(vocab, 1)) // STEP * STEP
    return max(MIN_ROWS, min(MAX_ROWS, rows))


def _spread(tokens: int, most: int) -> int:
    chunks = max(1, -(-tokens // most))
    even = -(-tokens // chunks)
    return max(1, even if chunks == 1 else -(-even // STEP) * STEP)
