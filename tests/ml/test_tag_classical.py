"""The simple alternative for tags: it learns what shapes and neighbours tell, and speaks as the head does."""

import numpy as np
import pytest

from ml.tag_classical import classical, features, shape

TAGS = ["B-NAME", "B-PLACE", "O"]


def rows(count, seed):
    """Capitals are names, or behind "in" places."""
    random = np.random.default_rng(seed)
    words, tags = [], []
    for _ in range(count):
        name, place = ("".join(random.choice(list("abcdefgh"), 5)).title() for _ in range(2))
        words.append([name, "lives", "in", place] + ["now"] * int(random.integers(0, 3)))
        tags.append(["B-NAME", "O", "O", "B-PLACE"] + ["O"] * (len(words[-1]) - 4))
    return words, tags


def test_unknown_words_are_told_by_shape_and_neighbour():
    asked, truth = rows(30, 3)
    found = classical(rows(120, 1), rows(30, 2), asked, TAGS, seed=0)
    assert found.answers.shape == (30, 2 * max(map(len, asked))) and "training words" in found.note and set(found.settings) == {"alpha"}
    for row, tags in enumerate(truth):
        told = found.answers[row].reshape(-1, 2)
        assert [TAGS[int(tag)] for tag in told[: len(tags), 0]] == tags
        assert ((told[: len(tags), 1] > 0.4) & (told[: len(tags), 1] <= 1)).all() and np.isnan(told[len(tags) :]).all()
    again = classical(rows(120, 1), rows(30, 2), asked, TAGS, seed=0)
    np.testing.assert_array_equal(found.answers, again.answers)


def test_tags_that_training_lacks_do_no_harm():
    asked, _ = rows(3, 3)
    found = classical(rows(40, 1), ([["x"]], [["B-NEW"]]), asked, ["A", *TAGS], seed=0)
    assert set(found.answers[:, ::2][~np.isnan(found.answers[:, ::2])]) <= {1, 2, 3}


@pytest.mark.parametrize(("word", "expected"), [("London", "Xxx"), ("BBC-2000", "XX-00"), ("x_1", "x_0"), ("☃", "☃")])
def test_shapes(word, expected):
    assert shape(word) == expected


def test_a_word_has_its_neighbours():
    first, last = list(features([["In", "Rome"]]))
    assert "word=in" in first and "1=rome" in first and "-1=" in first and "ends=me" in last and "-1shape=Xx" in last and "2=" in last
