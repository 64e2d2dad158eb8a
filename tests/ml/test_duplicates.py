"""Copies are found, and only copies."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.duplicates import WINDOW, Forest, _candidates, exact_duplicates, near_groups
from ml.modalities.image import Image

MODALITY = Image(Image.Options(size=8, channels=1))


def groups(signatures, rows, named=None, near=True):
    named = pd.Series(named if named is not None else [None] * len(rows), dtype=object)
    return near_groups(np.array(signatures, np.uint64), rows, np.arange(len(rows)), MODALITY, named, near)


def noise(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.sets(st.integers(0, 63), max_size=5)), min_size=1, max_size=20))
def test_candidates_are_all_pairs_within_three_bits(pairs):
    signatures = np.array([value for value, _ in pairs] + [value ^ sum(1 << bit for bit in bits) for value, bits in pairs], np.uint64)
    found = {frozenset(pair) for left, right in _candidates(signatures, np.zeros(len(signatures)), 3) for pair in zip(left.tolist(), right.tolist(), strict=True)}
    count = len(signatures)
    expected = {frozenset((a, b)) for a in range(count) for b in range(a) if int(signatures[a] ^ signatures[b]).bit_count() <= 3}
    assert found == expected


@given(st.integers(1, 30), st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=40))
def test_the_forest_joins_what_it_is_told(size, pairs):
    pairs = [(a % size, b % size) for a, b in pairs]
    forest = Forest(size)
    for part in (pairs[::2], pairs[1::2]):
        forest.join(np.array([a for a, _ in part], int), np.array([b for _, b in part], int))
    expected = list(range(size))
    for _ in range(size):
        for a, b in pairs:
            expected[a] = expected[b] = min(expected[a], expected[b])
    assert forest.roots.tolist() == expected


def test_confirmed_copies_and_users_groups_are_joined():
    rows = noise(6)
    rows[4] = np.clip(rows[0] * 0.9, 0, 255)  # a darker copy
    assert groups([5, 5, 5, 9, 7, 1 << 40], rows).tolist() == [0, 1, 2, 3, 0, 4]
    named = ["x", None, None, "y", None, "x"]
    assert groups([5, 5, 5, 9, 7, 1 << 40], rows, named).tolist() == [0, 1, 2, 3, 0, 0]
    assert groups([5, 5, 5, 9, 7, 1 << 40], rows, named, near=False).tolist() == [0, 1, 2, 3, 4, 0]


def test_many_equal_signatures_cost_no_square_and_chain_nothing():
    count = 16 * WINDOW
    rows = noise(count)
    rows[1::2] = rows[::2]
    rows[1::2, 0, 0] ^= 1  # each has one copy, and all share one signature
    rows = rows[np.random.default_rng(1).permutation(count)]
    compared = 0

    class Counting(Image):
        def same(self, a, b):
            nonlocal compared
            compared += len(a)
            return super().same(a, b)

    counting = Counting(MODALITY.options)
    found = near_groups(np.full(count, 7, np.uint64), rows, np.arange(count), counting, pd.Series([None] * count, dtype=object), True)
    sizes = np.bincount(found)
    assert sizes.max() == 2
    assert (sizes == 2).sum() == count / 2
    assert compared <= WINDOW * count


def test_plain_pictures_of_all_brightnesses_are_not_one_group():
    rows = np.repeat(np.arange(0, 256, 2, dtype=np.uint8), 64).reshape(-1, 8, 8, 1)
    assert np.bincount(groups([0] * len(rows), rows)).max() == 1


def frame(*rows):
    return pd.DataFrame(rows, columns=["content", "label", "part"])


@pytest.mark.parametrize(
    ("rows", "copies", "conflicts"),
    [
        ([("x", "a", "train"), ("x", "a", "train"), ("y", "a", "train")], [1], []),
        ([("x", "a", "train"), ("x", "a", "test")], [0], []),
        ([("x", "a", "validation"), ("x", "a", "train"), ("x", "a", "test")], [0, 1], []),
        ([("x", None, "unlabelled"), ("x", "a", "train")], [0], []),
        ([("x", "a", "train"), ("x", "b", "train"), ("x", None, "unlabelled"), ("y", "a", "train")], [], [0, 1, 2]),
        ([("x", "a", "test"), ("x", "b", "train")], [], [0, 1]),
    ],
)
def test_which_copy_stays(rows, copies, conflicts):
    copy, conflict = exact_duplicates(frame(*rows))
    assert np.flatnonzero(copy).tolist() == copies
    assert np.flatnonzero(conflict).tolist() == conflicts
