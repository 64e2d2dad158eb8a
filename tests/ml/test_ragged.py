"""Rows of different lengths behave as a list of arrays does, and as one stream."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.ragged import TOKENS, Packed, Ragged, at_once, joined, row_bytes

ROWS = st.lists(st.lists(st.integers(-5, 300), max_size=6), max_size=8)


def listed(ragged: Ragged) -> list[list[int]]:
    return [row.tolist() for row in ragged]


def within(ragged: Ragged) -> Ragged:
    """The same rows in the middle of a larger array."""
    values = np.concatenate([[99, 98], ragged.values, [97]]).astype(ragged.dtype)
    return Ragged(values, ragged.offsets + 2)


@given(ROWS)
def test_rows_come_back(rows):
    ragged = Ragged.of([np.array(row, np.int64) for row in rows], np.int32)
    for one in (ragged, within(ragged)):
        assert listed(one) == rows and len(one) == len(rows)
        assert one.dtype == np.int32
        assert one.lengths.tolist() == [len(row) for row in rows]
        assert one.nbytes == 4 * sum(map(len, rows))
        assert row_bytes(one) >= 1


@given(ROWS, st.data())
def test_indexing_is_that_of_a_list(rows, data):
    ragged = within(Ragged.of([np.array(row) for row in rows], np.int32))
    part = data.draw(st.slices(len(rows)))
    assert listed(ragged[part]) == rows[part]
    mask = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    assert listed(ragged[np.array(mask, bool)]) == [row for row, kept in zip(rows, mask, strict=True) if kept]
    chosen = data.draw(st.lists(st.integers(-len(rows), len(rows) - 1))) if rows else []
    for numbers in (chosen, np.array(chosen, np.int64)):
        assert listed(ragged[numbers]) == [rows[number] for number in chosen]
    assert [ragged[number].tolist() for number in chosen] == [rows[number] for number in chosen]
    assert [ragged[np.int64(number)].tolist() for number in chosen] == [rows[number] for number in chosen]
    for outside in (len(rows), -len(rows) - 1):
        with pytest.raises(IndexError):
            ragged[outside]
        with pytest.raises(IndexError):
            ragged[[outside]]


@given(ROWS, st.integers(1, 8), st.data())
def test_padded(rows, limit, data):
    ragged = within(Ragged.of([np.array(row) for row in rows], np.int32))
    starts = [data.draw(st.integers(0, len(row))) for row in rows]
    for given_starts in (None, starts):
        array_BT = ragged.padded(limit, -1, None if given_starts is None else np.array(starts, np.int64))
        cut = [row[start : start + limit] for row, start in zip(rows, given_starts or [0] * len(rows), strict=True)]
        width = max(1, *map(len, cut), 0)
        assert array_BT.dtype == np.int32 and array_BT.shape == (len(rows), width)
        assert array_BT.tolist() == [row + [-1] * (width - len(row)) for row in cut]


@given(ROWS, st.integers(1, 5), st.data())
def test_blocks_are_slices_of_all_values_in_the_order_of_the_rows(rows, length, data):
    ragged = within(Ragged.of([np.array(row) for row in rows], np.int32))
    order = data.draw(st.permutations(range(len(rows))))
    order = order[: data.draw(st.integers(0, len(order)))]
    stream = [value for number in order for value in rows[number]]
    packed = Packed(ragged, np.array(order, np.int64), length)
    assert len(packed) == len(stream) // length
    blocks = data.draw(st.permutations(range(len(packed))))
    found = packed[np.array(blocks, np.int64)]
    assert found.shape == (len(blocks), length) and found.dtype == np.int32
    assert found.tolist() == [stream[block * length : (block + 1) * length] for block in blocks]


def test_batches_of_different_widths_are_joined():
    found = joined([np.ones((2, 3), np.float32), np.zeros((1, 1), np.float32)])
    np.testing.assert_array_equal(found, np.array([[1, 1, 1], [1, 1, 1], [0, np.nan, np.nan]], np.float32))
    assert found.dtype == np.float32


def test_long_texts_go_fewer_at_once():
    texts = Ragged.of([np.arange(3)], np.int32)
    assert [at_once(texts, width, 256) for width in (8, 1024, 10**9)] == [256, TOKENS // 1024, 1]
    assert at_once(np.zeros((3, 4)), 1024, 256) == 256
