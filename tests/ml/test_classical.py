"""The simple alternative is a strong one, or it would prove nothing."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from ml.classical import classical, draw, majority
from ml.metrics import accuracy, log_loss
from ml.modalities.image_features import features


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    array = np.round(data.images * 255 / 16).astype(np.uint8)[..., None]
    return array, data.target, order[:600], order[600:900], order[900:]


def test_digits_are_read(digits):
    array, labels, train, validation, test = digits
    found = classical(array, labels, labels.__getitem__, train, validation, test, features, 10, seed=0)
    assert found.answers.shape == (len(test), 10)
    np.testing.assert_allclose(found.answers.sum(1), 1, atol=1e-6)
    assert accuracy(labels[test], found.answers) >= 0.97
    assert log_loss(labels[test], found.answers) < 0.2
    assert "600 training rows" in found.note


@pytest.mark.parametrize("classes", [2, 3])
def test_few_labels_and_few_classes(digits, classes):
    """Two rows of each class to learn from; and of a third class none at all."""
    array, labels, train, validation, test = digits
    few = np.concatenate([train[labels[train] == k][:2] for k in (0, 1)])
    held, asked = (rows[labels[rows] < 2] for rows in (validation, test))
    found = classical(array, labels, labels.__getitem__, few, held, asked, features, classes, seed=0)
    assert found.answers.shape == (len(asked), classes)
    assert accuracy(labels[asked], found.answers) > 0.9


def test_it_is_the_same_twice(digits):
    array, labels, train, validation, test = digits
    once, again = (classical(array, labels, labels.__getitem__, train[:100], validation[:50], test[:50], features, 10, seed=1) for _ in range(2))
    np.testing.assert_array_equal(once.answers, again.answers)


def test_draw_keeps_the_shares_and_the_rare():
    labels = np.repeat([0, 1, 2], [8000, 1995, 5])
    rows = draw(np.arange(10_000), labels, 1000, seed=0)
    counts = np.bincount(labels[rows])
    assert counts.tolist() == [800, 199, 2] and len(set(rows)) == len(rows)
    assert draw(np.arange(10), labels, 1000, seed=0).tolist() == list(range(10))


def test_majority_is_the_shares_of_the_labels():
    np.testing.assert_allclose(majority(np.array([0, 1, 1, 1]), 3, 2), [[0.25, 0.75, 0]] * 2)


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (3, 28, 28, 1), (2, 96, 96, 3), (1, 33, 57, 3)])
def test_features_have_one_width_whatever_the_size(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    found = features(array)
    assert found.shape == (shape[0], features(np.zeros((1, 20, 20, shape[3]), dtype=np.uint8)).shape[1])
    assert found.dtype == np.float32 and np.isfinite(found).all()


def test_gradients_do_not_see_brightness_but_see_direction():
    ramp = np.tile(np.arange(0, 128, 4, dtype=np.uint8), (32, 1))
    across, brighter, down = (picture[None, ..., None] for picture in (ramp, ramp + 60, ramp.T))
    gradients = [features(picture)[:, 64:] for picture in (across, brighter, down)]
    np.testing.assert_allclose(gradients[0], gradients[1], atol=1e-4)
    assert np.abs(gradients[0] - gradients[2]).max() > 0.1
