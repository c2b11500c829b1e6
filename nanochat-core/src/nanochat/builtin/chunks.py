"""How many rows of logits are held at a time. Needs no torch, so a plan can ask."""

MAX_ROWS = 8192
MIN_ROWS = 1024
MAX_LOGITS = 8192 * 32768
"""Logits a chunk: 512 MiB in bfloat16, large enough for full-speed products on a Hopper."""


def rows_per_chunk(tokens: int, vocab: int) -> int:
    """The rows of a chunk, spread evenly so that no chunk is a sliver."""
    most = max(MIN_ROWS, min(MAX_ROWS, MAX_LOGITS // max(vocab, 1)))
    chunks = max(1, -(-tokens // most))
    return max(1, -(-tokens // chunks))
