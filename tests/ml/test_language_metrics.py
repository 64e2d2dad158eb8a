"""Metrics of language models are ratios of sums, and weights count texts as often as they say."""

import math

import numpy as np
import pytest

from ml.language_metrics import LANGUAGE

SCORES = np.array([[8.0, 4, 1, 10], [2.0, 4, 3, 6], [5.0, 1, 0, 2]])  # nats, tokens, right, bytes


def test_they_are_those_of_all_texts_together():
    found = {name: metric(None, SCORES) for name, metric in LANGUAGE.items()}
    assert found == {
        "bits_per_byte": pytest.approx(15 / math.log(2) / 18),
        "loss": pytest.approx(15 / 9),
        "perplexity": pytest.approx(math.exp(15 / 9)),
        "accuracy": pytest.approx(4 / 9),
    }


@pytest.mark.parametrize("name", LANGUAGE)
def test_weights_repeat_texts(name):
    weights = np.array([[1, 2], [1, 0], [1, 3]])
    repeated = SCORES[[0, 0, 2, 2, 2]]
    np.testing.assert_allclose(LANGUAGE[name](None, SCORES, weights), [LANGUAGE[name](None, SCORES), LANGUAGE[name](None, repeated)])
