"""Packing: rows are full, begin with BOS, and every token is accounted for once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data.packing import Document, Packer, PackingCounts

BOS = -1

# Every token of every document is a different number, so that each can be found again in the rows.
LENGTHS = st.lists(st.integers(1, 40), min_size=0, max_size=60)


def documents(lengths: list[int], epochs: int = 1) -> list[Document]:
    found = []
    for epoch in range(epochs):
        for row, length in enumerate(lengths):
            first = (epoch * len(lengths) + row) * 1000
            found.append(Document(np.arange(first, first + length), "shard", row, epoch))
    return found


def rows_of(packer: Packer, length: int) -> list[np.ndarray[Any, Any]]:
    rows = []
    while packer.fill(row := np.full(length, -9, dtype=np.int64)):
        rows.append(row)
    return rows


@settings(max_examples=200, deadline=None)
@given(
    lengths=LENGTHS,
    row_length=st.integers(2, 30),
    buffer_size=st.integers(1, 20),
    mode=st.sampled_from(["crop", "split"]),
    epochs=st.integers(1, 3),
)
def test_rows_are_full_and_tokens_accounted_for(
    lengths: list[int], row_length: int, buffer_size: int, mode: Any, epochs: int
) -> None:
    source = documents(lengths, epochs)
    packer = Packer(
        source, row_length=row_length, bos_id=BOS, buffer_size=buffer_size, long_documents=mode
    )
    rows = rows_of(packer, row_length)
    assert packer.buffered() == []
    assert packer.pending is None

    used: Counter[int] = Counter()
    pieces = 0
    for row in rows:
        assert row[0] == BOS
        assert (row != -9).all()
        starts = np.flatnonzero(row == BOS).tolist()
        for start, end in zip(starts, [*starts[1:], row_length], strict=True):
            piece = row[start + 1 : end]
            pieces += len(piece) > 0
            used.update(piece.tolist())
            # A piece is a stretch of one document; whole pieces begin where the document does.
            assert (np.diff(piece) == 1).all()
            if mode == "crop" and len(piece):
                assert piece[0] % 1000 == 0
    assert max(used.values(), default=1) == 1
    content = sum(len(document.tokens) for document in source)
    counts = packer.counts
    assert sum(used.values()) + counts.dropped == content
    assert counts.tokens == len(rows) * row_length
    assert counts.documents == pieces
    if mode == "split":
        # Nothing but the row that could not be filled at the very end.
        assert counts.dropped < row_length


@settings(max_examples=100, deadline=None)
@given(
    lengths=LENGTHS,
    row_length=st.integers(2, 30),
    buffer_size=st.integers(1, 20),
    mode=st.sampled_from(["crop", "split"]),
    cut=st.integers(0, 12),
)
def test_restoring_goes_on_as_if_nothing_had_happened(
    lengths: list[int], row_length: int, buffer_size: int, mode: Any, cut: int
) -> None:
    options: dict[str, Any] = {
        "row_length": row_length,
        "bos_id": BOS,
        "buffer_size": buffer_size,
        "long_documents": mode,
    }
    whole = Packer(documents(lengths, 3), **options)
    expected = rows_of(whole, row_length)

    stream = iter(documents(lengths, 3))
    before = Packer(stream, **options)
    head = []
    while len(head) < cut and before.fill(row := np.empty(row_length, dtype=np.int64)):
        head.append(row)
    after = Packer(stream, **options)
    after.restore(before.buffered(), before.pending, before.counts)
    rows = head + rows_of(after, row_length)
    assert len(rows) == len(expected)
    assert all((a == b).all() for a, b in zip(rows, expected, strict=True))
    assert after.counts == whole.counts


def pack(lengths: list[int], row_length: int, **options: Any) -> list[list[int]]:
    """Rows as lists of document numbers (thousands) and BOS as None."""
    packer = Packer(documents(lengths), row_length=row_length, bos_id=BOS, **options)
    return [row.tolist() for row in rows_of(packer, row_length)]


def test_the_longest_that_fits_goes_first() -> None:
    (row,) = pack([2, 5, 3], 10)
    assert row == [BOS, 1000, 1001, 1002, 1003, 1004, BOS, 2000, 2001, 2002]


def test_equal_lengths_go_in_order() -> None:
    (row,) = pack([2, 2, 2], 9)
    assert row == [BOS, 0, 1, BOS, 1000, 1001, BOS, 2000, 2001]


def test_the_shortest_is_cut_where_none_fits() -> None:
    packer = Packer(documents([9, 7, 8]), row_length=5, bos_id=BOS)
    row = np.empty(5, dtype=np.int64)
    assert packer.fill(row)
    assert row.tolist() == [BOS, 1000, 1001, 1002, 1003]
    assert packer.counts == PackingCounts(documents=1, tokens=5, dropped=3)


def test_a_single_position_left_costs_no_document() -> None:
    rows = pack([3, 3], 5)
    assert rows == [[BOS, 0, 1, 2, BOS]]  # the second document waits; alone it fills no row


def test_long_documents_are_split_at_rows() -> None:
    assert pack([10], 5, long_documents="split") == [
        [BOS, 0, 1, 2, 3],
        [BOS, 4, 5, 6, 7],
    ]


def test_a_huge_document_does_not_flood_the_buffer() -> None:
    packer = Packer(
        documents([900]), row_length=4, bos_id=BOS, buffer_size=5, long_documents="split"
    )
    row = np.empty(4, dtype=np.int64)
    for i in range(200):
        assert packer.fill(row)
        assert row.tolist() == [BOS, 3 * i, 3 * i + 1, 3 * i + 2]
        assert len(packer.buffered()) <= 5


def test_a_small_dataset_is_not_read_epochs_ahead() -> None:
    packer = Packer(documents([4, 5, 6], epochs=50), row_length=8, bos_id=BOS)
    row = np.empty(8, dtype=np.int64)
    for _ in range(30):
        assert packer.fill(row)
        epochs = {document.epoch for document in packer.buffered()}
        assert max(epochs) - min(epochs) <= 1


@pytest.mark.parametrize("lengths", [[], [3]])
def test_too_little_for_a_row(lengths: list[int]) -> None:
    packer = Packer(documents(lengths), row_length=8, bos_id=BOS)
    assert not packer.fill(np.empty(8, dtype=np.int64))
    assert packer.counts == PackingCounts(documents=0, tokens=0, dropped=sum(lengths))
