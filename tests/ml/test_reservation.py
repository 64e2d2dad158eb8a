"""The test rows: by groups, stable, each class on both sides."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.contracts import InputError
from ml.reservation import check_classes, keep_groups_apart, reserve_test


def frame(labels, groups=None, part="train", contents=None):
    count = len(labels)
    return pd.DataFrame(
        {
            "label": pd.Series(labels, dtype=object),
            "group": np.arange(count) if groups is None else groups,
            "part": part,
            "content": [f"{row:064x}" for row in range(count)] if contents is None else contents,
            "named": None,
        }
    )


rows = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 15)), min_size=2, max_size=60)


@settings(deadline=None)
@given(rows, st.floats(0.05, 0.6))
def test_groups_stay_whole_and_classes_on_both_sides(pairs, fraction):
    labels, numbers = [label for label, _ in pairs], [number for _, number in pairs]
    table = frame(labels, numbers)
    table["part"] = reserve_test(table, fraction)
    assert set(table["part"]) <= {"train", "test"}
    assert (table.groupby("group")["part"].nunique() == 1).all()
    for label in set(labels):
        assert (table.loc[table["label"] == label, "part"] == "train").any()


def test_each_class_of_two_groups_is_tested():
    table = frame(["rare", "rare", "single"] + ["common"] * 200)
    table["part"] = reserve_test(table, 0.2)
    counts = table.groupby(["label", "part"]).size()
    assert counts["rare", "test"] == counts["rare", "train"] == 1
    assert counts["single"].to_dict() == {"train": 1}
    assert 20 <= counts["common", "test"] <= 60


def test_the_test_rows_stay_when_rows_are_added_or_shuffled():
    few, many = frame(["a", "b"] * 100), frame(["a", "b"] * 300)
    few["part"], many["part"] = reserve_test(few, 0.2), reserve_test(many, 0.2)
    tested = set(few.loc[few["part"] == "test", "content"])
    assert tested == set(many["content"][many["part"] == "test"]) & set(few["content"])
    shuffled = frame(["a", "b"] * 100).sample(frac=1, random_state=0)
    shuffled["part"] = reserve_test(shuffled, 0.2)
    assert set(shuffled.loc[shuffled["part"] == "test", "content"]) == tested


def test_a_group_of_most_rows_stays_in_training():
    for number in range(20):  # whatever its hash
        table = frame(["a", "b"] * 50, [0] * 60 + list(range(1, 41)), contents=[f"{number}-{row}" for row in range(100)])
        table["part"] = reserve_test(table, 0.2)
        assert set(table.loc[table["group"] == 0, "part"]) == {"train"}


def test_unlabelled_rows_and_official_validation_are_no_test():
    table = frame(["a", "b"] * 50 + [None] * 20, list(range(100)) + list(range(20)))
    table["part"] = ["validation"] * 10 + ["train"] * 90 + ["unlabelled"] * 20
    table["part"] = reserve_test(table, 0.5)
    assert set(table["part"].iloc[:10]) == {"validation"}
    assert set(table["part"].iloc[100:]) == {"unlabelled"}
    assert (table["part"].iloc[10:100] == "test").sum() > 20


def test_groups_are_kept_apart():
    table = frame(["a"] * 7, [0, 0, 1, 1, 1, 2, 2])
    table["part"] = ["test", "train", "validation", "unlabelled", "train", "train", "unlabelled"]
    assert np.flatnonzero(keep_groups_apart(table)).tolist() == [1, 3, 4]
    table["part"] = ["test", "validation", "validation", "test", "train", "train", "train"]
    assert np.flatnonzero(keep_groups_apart(table)).tolist() == [1, 2, 4]


def test_a_class_without_training_rows_is_named():
    table = frame(["a", "b"])
    table["part"] = ["train", "test"]
    with pytest.raises(InputError, match=r"no training row is left of class 'b' \(1 readable rows\), 'c' \(0 readable rows\)"):
        check_classes(table, ["a", "b", "c"], table)
