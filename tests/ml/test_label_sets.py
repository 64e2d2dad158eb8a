"""Rows of several labels: how they are written, and what rows are stratified by."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.contracts import InputError
from ml.label_sets import NOTHING, label_columns, labels_of, ordered, rarest, shown


def labels(values, separator="", name="label"):
    return labels_of(pd.DataFrame({name: pd.Series(values, dtype=object)}), separator).tolist()


@pytest.mark.parametrize(
    ("values", "separator", "expected"),
    [
        (["a", None, " "], "", ["a", None, None]),
        (["a,b"], "", ["a,b"]),
        ([["b", "a", "b"], [], None], "", [("b", "a"), (), None]),
        ([[3, 1], [2]], "", [("3", "1"), ("2",)]),
        ([np.array(["a"], object), "b", "", float("nan")], "", [("a",), ("b",), None, None]),
        ([[None, "a"], ["  "]], "", [("a",), ()]),
        (["a, b ,a", "", ",", None, 7], ",", [("a", "b"), (), (), None, ("7",)]),
        ([["a,b"], "c,d"], ",", [("a,b",), ("c", "d")]),
        ([], ",", []),
        ([None], ",", [None]),
    ],
)
def test_labels_are_a_text_or_a_set_of_them(values, separator, expected):
    assert labels(values, separator) == expected


def test_columns_of_flags():
    table = pd.DataFrame({"a": [1, 0, np.nan, 1], "b": ["true", "No", "1", "0"], "c": [True, False, True, False]})
    assert labels_of(table).tolist() == [("a", "b", "c"), (), None, ("a",)]
    assert label_columns("a, b", ["a", "b"]) == ["a", "b"] and label_columns("a,b", ["a,b"]) == ["a,b"]
    with pytest.raises(InputError, match="'a' of a class holds '2'; expected 1"):
        labels_of(pd.DataFrame({"a": [2], "b": [0]}))


def test_lists_within_lists_are_refused():
    with pytest.raises(InputError, match=r"'label' holds .* within a list"):
        labels([["a", {"b": 1}]])


sets = st.lists(st.one_of(st.none(), st.lists(st.sampled_from("abcd"), unique=True).map(tuple)), min_size=1)


@given(sets)
def test_a_row_is_stratified_by_its_rarest_class(rows):
    column = pd.Series(rows, dtype=object)
    counts = {name: sum(name in row for row in rows if row) for name in "abcd"}
    for row, stratum in zip(rows, rarest(column), strict=True):
        if row:
            assert stratum in row and counts[stratum] == min(counts[name] for name in row)
        else:
            assert stratum == (None if row is None else NOTHING)
    one = [row[0] if row else None for row in rows]
    assert rarest(pd.Series(one, dtype=object)).tolist() == one


@given(sets)
def test_equal_sets_become_equal(rows):
    found = ordered(pd.Series(rows, dtype=object), list("dcba"))
    assert [None if row is None else sorted(row) for row in found] == [None if row is None else sorted(row) for row in rows]
    assert all(list(row) == sorted(row, reverse=True) for row in found.dropna())


def test_sets_in_words():
    assert [shown(one) for one in ("a", ("a", "b"), ())] == ["a", "a, b", "(none)"]
