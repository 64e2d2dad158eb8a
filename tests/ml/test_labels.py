"""Labels become text, classes get an order that people expect, and split words are understood."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.contracts import InputError
from ml.labels import class_names, label_texts, natural_order, split_column, split_from_path


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pd.Series([3, 1]), ["3", "1"]),
        (pd.Series([3.0, np.nan]), ["3", None]),
        (pd.Series([0.5, 1.0]), ["0.5", "1.0"]),
        (pd.Series(["3.0", "1.0", ""]), ["3", "1", None]),
        (pd.Series(["007", "12"]), ["007", "12"]),
        (pd.Series(["1.0", "x"]), ["1.0", "x"]),
        (pd.Series(["cat", None, "  ", " dog "], dtype=object), ["cat", None, None, "dog"]),
        (pd.Series([True, False]), ["True", "False"]),
        (pd.Series([1, None], dtype="Int64"), ["1", None]),
        (pd.Series([], dtype=object), []),
        (pd.Series([None, None], dtype=object), [None, None]),
    ],
)
def test_labels_are_text(values, expected):
    assert label_texts(values).tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pd.Series([1, 0, -1]), ["pos", "neg", None]),
        (pd.Series([1.0, np.nan]), ["pos", None]),
        (pd.Series(["0", "-1", None, "pos", ""], dtype=object), ["neg", None, None, "pos", ""]),
    ],
)
def test_numbers_get_the_names_kept_beside_them(values, expected):
    metadata = {b"huggingface": json.dumps({"info": {"features": {"label": {"names": ["neg", "pos"]}}}}).encode()}
    assert class_names(values, "label", metadata).tolist() == expected
    for none in (None, {}, {b"huggingface": b"{"}, {b"huggingface": b"{\"info\": null}"}):
        assert class_names(values, "label", none) is values
    assert class_names(values, "other", metadata) is values


@pytest.mark.parametrize(("values", "strange"), [([1, 0, 7], "'7'"), ([-2, 1], "'-2'"), ([0.0, np.nan, 9.0], "'9.0'"), (["0", "x"], "'x'")])
def test_a_label_that_the_map_of_classes_lacks_is_named(values, strange):
    metadata = {b"huggingface": json.dumps({"info": {"features": {"label": {"names": ["neg", "pos"]}}}}).encode()}
    with pytest.raises(InputError, match=rf"'label' holds {strange}, .* expected 0 to 1 \(neg, pos\) or -1"):
        class_names(pd.Series(values, dtype=object), "label", metadata)


def test_numbers_sort_as_numbers():
    assert natural_order(["10", "2", "1", "-3"]) == ["-3", "1", "2", "10"]
    assert natural_order(["item10", "item2", "Item1"]) == ["Item1", "item2", "item10"]


@given(st.lists(st.text(max_size=6), max_size=12))
def test_the_order_of_classes_does_not_depend_on_the_order_of_rows(names):
    order = natural_order(names)
    assert order == natural_order(reversed(names))
    assert sorted(order) == sorted(set(names))


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train-00000-of-00004.parquet", "train"),
        ("test.parquet", "test"),
        ("valid/0001.parquet", "validation"),
        ("unsupervised_10k.parquet", "unlabelled"),
        ("unlabeled.parquet", "unlabelled"),
        ("latest.parquet", None),
        ("pictures.parquet", None),
    ],
)
def test_a_file_name_tells_the_split(path, split):
    assert split_from_path(path) == split


def test_a_strange_split_is_named():
    assert split_column(pd.Series(["Train", "VAL", None]), "part").tolist() == ["train", "validation", None]
    with pytest.raises(InputError, match="'part' holds 'holdout'"):
        split_column(pd.Series(["train", "holdout"]), "part")
