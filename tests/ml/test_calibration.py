"""A temperature never harms the rows it is fitted on, and undoes a known distortion."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.calibration import HIGHEST, LOWEST, fit_temperature, reliability, softmax
from ml.metrics import log_loss


def honest(seed: int, rows: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the true probability of each class, and targets drawn from it."""
    generator = np.random.default_rng(seed)
    logits_NK = generator.normal(size=(rows, classes)) * 2
    targets_N = (softmax(logits_NK).cumsum(1) > generator.random((rows, 1))).argmax(1)
    return logits_NK, targets_N


@pytest.mark.parametrize("distortion", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_found(distortion):
    logits_NK, targets_N = honest(0, 5000)
    assert fit_temperature((logits_NK * distortion).astype(np.float32), targets_N) == pytest.approx(distortion, rel=0.08)


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 60), scale=st.floats(0.01, 100), skill=st.floats(-3, 10))
@settings(max_examples=60, deadline=None)
def test_the_loss_is_never_made_worse(seed, rows, scale, skill):
    generator = np.random.default_rng(seed)
    targets_N = generator.integers(0, 3, rows)
    logits_NK = generator.normal(size=(rows, 3))
    logits_NK[np.arange(rows), targets_N] += skill
    logits_NK *= scale
    temperature = fit_temperature(logits_NK, targets_N)
    assert LOWEST * 0.999 <= temperature <= HIGHEST * 1.001
    assert log_loss(targets_N, softmax(logits_NK / temperature)) <= log_loss(targets_N, softmax(logits_NK)) + 1e-9


def test_a_few_rows_all_right_do_not_claim_certainty():
    logits_NK = np.tile([3.0, 0.0, 0.0], (10, 1))
    assert fit_temperature(logits_NK, np.zeros(10, dtype=int)) > 0.5


def test_no_rows_leave_the_model_alone():
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, dtype=int)) == 1.0


def test_reliability_of_honest_probabilities_lies_on_the_diagonal():
    logits_NK, targets_N = honest(1, 20_000)
    curve = reliability(targets_N, softmax(logits_NK))
    assert sum(curve["count"]) == 20_000
    np.testing.assert_allclose(curve["confidence"], curve["accuracy"], atol=0.06)
