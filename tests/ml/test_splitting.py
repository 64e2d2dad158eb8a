import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.contracts import InputError
from ml.recipe import Splitting
from ml.splitting import split


def table(labels, parts=None, groups=None) -> pd.DataFrame:
    n = len(labels)
    return pd.DataFrame(
        {
            "row_id": [f"{i:08x}" for i in range(n)],
            "label": labels,
            "part": parts if parts is not None else ["train"] * n,
            "group": groups if groups is not None else list(range(n)),
        }
    )


def names(classes: int) -> tuple[str, ...]:
    return tuple(map(str, range(classes)))


@given(st.integers(2, 5), st.integers(3, 40), st.integers(0, 5), st.integers(0, 3))
def test_parts_are_disjoint_cover_all_and_hold_every_class(classes, each, seed, shared):
    labels = np.repeat(np.arange(classes), each)
    groups = np.arange(len(labels)) // (shared + 1)
    if each <= 2 * (shared + 1):
        groups = np.arange(len(labels))
    parts = split(table(labels, groups=groups), names(classes), Splitting(validation_fraction=0.25), seed)
    rows = np.concatenate([parts.train, parts.validation])
    assert sorted(rows) == list(range(len(labels)))
    assert set(labels[parts.train]) == set(range(classes))
    assert not set(groups[parts.train]) & set(groups[parts.validation]), "a group lies on one side"


def test_shares_are_stratified():
    labels = np.repeat([0, 1], [100, 20])
    parts = split(table(labels), names(2), Splitting(validation_fraction=0.2), 0)
    assert np.bincount(labels[parts.validation]).tolist() == [20, 4]


def test_the_choice_follows_the_row_and_not_its_place():
    labels = np.repeat([0, 1, 2], 30)
    one = table(labels)
    other = one.sample(frac=1, random_state=1).reset_index(drop=True)
    a, b = (split(t, names(3), Splitting(), 5) for t in (one, other))
    assert set(one["row_id"].to_numpy()[a.train]) == set(other["row_id"].to_numpy()[b.train])


def test_seeds_give_different_parts():
    labels = np.repeat([0, 1], 50)
    assert split(table(labels), names(2), Splitting(), 0).digest != split(table(labels), names(2), Splitting(), 1).digest


def test_official_validation_is_kept_and_test_left_alone():
    labels = np.repeat([0, 1], 30)
    parts = np.tile(["train", "validation", "test"], 20)
    found = split(table(labels, parts), names(2), Splitting(), 0)
    assert [set(parts[rows]) for rows in (found.train, found.validation, found.test)] == [{"train"}, {"validation"}, {"test"}]


def test_unlabelled_rows_are_in_no_part():
    labels = np.array([0] * 10 + [1] * 10 + [-1] * 10)
    found = split(table(labels, ["train"] * 20 + ["unlabelled"] * 10), names(2), Splitting(), 0)
    assert max(np.concatenate([found.train, found.validation])) < 20


@pytest.mark.parametrize("options", [{"labels_per_class": 3}, {"label_fraction": 0.1}])
def test_few_labels_are_as_many_as_asked_and_nested(options):
    labels = np.repeat([0, 1], 50)
    everything = split(table(labels), names(2), Splitting(), 0)
    few = split(table(labels), names(2), Splitting(**options), 0)
    assert set(few.train) <= set(everything.train)
    assert (few.validation == everything.validation).all()
    assert np.bincount(labels[few.train]).tolist() == ([3, 3] if "labels_per_class" in options else [4, 4])


def test_fewer_labels_than_asked_for_says_who_is_short():
    with pytest.raises(InputError, match=r"asks for 30 .* 1 has 8.*at most 8"):
        split(table(np.repeat([0, 1], [100, 10])), ("0", "1"), Splitting(labels_per_class=30), 0)
