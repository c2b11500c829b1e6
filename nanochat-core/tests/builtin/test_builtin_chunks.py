"""How large the chunks of the loss are."""

from hypothesis import given
from hypothesis import strategies as st

from nanochat.backend import LossProblem
from nanochat.builtin import chunks
from nanochat.builtin.loss import Chunked


@given(tokens=st.integers(0, 2**22), vocab=st.integers(1, 2**18), width=st.sampled_from([64, 1280]))
def test_rows_of_a_chunk_are_even_and_bounded(tokens, vocab, width):
    rows = chunks.rows_per_chunk(tokens, vocab, width)
    assert 1 <= rows <= max(1, min(tokens, chunks.MAX_ROWS))
    count = -(-tokens // rows)
    # Whole tiles, and the last chunk lacks less than one of them for each chunk.
    assert count <= 1 or rows % chunks.STEP == 0
    assert count * rows - tokens < max(1, count * chunks.STEP)
    wide = chunks.sums_in_float32(tokens, vocab, width)
    assert wide or count <= chunks.FEW_CHUNKS
    # Within the bound, unless that would leave chunks too thin for a fast product.
    held = 2 * rows * vocab + (2 * vocab * width if wide else 0)
    assert held <= chunks.MAX_SCRATCH or rows <= chunks.MIN_ROWS


def test_the_plan_tells_the_chunks():
    support = Chunked().supports(LossProblem("cpu", tokens=65536, hidden=1280, vocab=32768))
    assert support.ok
    assert support.reason == "3072 rows of logits at a time"
