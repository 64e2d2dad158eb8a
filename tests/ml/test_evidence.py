"""Metrics against scikit-learn, and intervals against what they promise."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from ml.contracts import InputError
from ml.evidence import bootstrap, interval, paired
from ml.metrics import CLASSIFICATION, PER_CLASS, accuracy, expected_calibration_error, log_loss

OPTIONS = {"resamples": 400, "confidence": 0.95, "seed": 0}


def drawn(seed: int, rows: int, classes: int, skill: float = 2.0, digits: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Targets and the probabilities of a model that is right the more often the greater its skill."""
    generator = np.random.default_rng(seed)
    targets_N = generator.integers(0, classes, rows)
    logits_NK = generator.normal(size=(rows, classes))
    logits_NK[np.arange(rows), targets_N] += skill
    powers_NK = np.exp(logits_NK)
    return targets_N, np.round(powers_NK / powers_NK.sum(1, keepdims=True), digits)


@pytest.mark.parametrize("digits", [1, 6])
def test_metrics_agree_with_scikit_learn(digits):
    targets_N, probabilities_NK = drawn(0, 500, 4, digits=digits)
    probabilities_NK /= probabilities_NK.sum(1, keepdims=True)
    predicted_N = probabilities_NK.argmax(1)
    expected = {
        "accuracy": sklearn_metrics.accuracy_score(targets_N, predicted_N),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(targets_N, predicted_N),
        "macro_f1": sklearn_metrics.f1_score(targets_N, predicted_N, average="macro"),
        "auroc": sklearn_metrics.roc_auc_score(targets_N, probabilities_NK, multi_class="ovr"),
    }
    for name, value in expected.items():
        assert CLASSIFICATION[name](targets_N, probabilities_NK) == pytest.approx(value, abs=1e-12), name
    for name, metric in (("precision", sklearn_metrics.precision_score), ("recall", sklearn_metrics.recall_score)):
        np.testing.assert_allclose(PER_CLASS[name](targets_N, probabilities_NK), metric(targets_N, predicted_N, average=None))


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 40), classes=st.integers(2, 5), digits=st.sampled_from([1, 9]))
@settings(max_examples=60, deadline=None)
def test_weights_count_rows_as_copies_would(seed, rows, classes, digits):
    targets_N, probabilities_NK = drawn(seed, rows, classes, digits=digits)
    weights_NR = np.random.default_rng(seed).integers(0, 4, (rows, 3)).astype(float)
    weights_NR[0] += 1  # no resample is empty
    for name, metric in {**CLASSIFICATION, **PER_CLASS}.items():
        values = metric(targets_N, probabilities_NK, weights_NR)
        for r in range(3):
            copies = np.repeat(np.arange(rows), weights_NR[:, r].astype(int))
            expected = metric(targets_N[copies], probabilities_NK[copies])
            np.testing.assert_allclose(values[r], expected, atol=1e-12, equal_nan=True, err_msg=name)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """The true accuracy lies in the 90 % interval in about 90 % of 200 samples."""
    generator = np.random.default_rng(0)
    covered = 0
    for sample in range(200):
        right_N = generator.random(150) < 0.7
        probabilities_NK = np.where(right_N[:, None], [0.9, 0.1], [0.1, 0.9])
        estimate = interval(accuracy, np.zeros(150, dtype=int), probabilities_NK, resamples=300, confidence=0.9, seed=sample)
        covered += estimate.low <= 0.7 <= estimate.high
    assert 165 <= covered <= 195


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_every_interval_is_finite_ordered_and_about_its_value(name):
    targets_N, probabilities_NK = drawn(1, 300, 3)
    estimate = interval(CLASSIFICATION[name], targets_N, probabilities_NK, **OPTIONS)
    assert estimate.finite and estimate.n == 300
    assert 0 <= estimate.low <= estimate.value <= estimate.high
    assert estimate == interval(CLASSIFICATION[name], targets_N, probabilities_NK, **OPTIONS)
    assert estimate.low != interval(CLASSIFICATION[name], targets_N, probabilities_NK, **{**OPTIONS, "seed": 1}).low


def test_a_paired_difference_is_sharper_than_two_intervals():
    targets_N, good_NK = drawn(2, 400, 3, skill=2.0)
    worse_NK = good_NK.copy()
    worse_NK[:12] = np.roll(worse_NK[:12], 1, axis=1)  # the same model but for a few rows
    difference = paired(accuracy, targets_N, good_NK, worse_NK, **OPTIONS)
    alone = interval(accuracy, targets_N, good_NK, **OPTIONS)
    assert 0 < difference.low < difference.value < difference.high
    assert difference.high - difference.low < (alone.high - alone.low) / 2
    mirrored = paired(accuracy, targets_N, worse_NK, good_NK, **OPTIONS)
    assert (mirrored.value, mirrored.low, mirrored.high) == pytest.approx((-difference.value, -difference.high, -difference.low))


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_a_model_differs_from_itself_by_exactly_nothing(name):
    targets_N, probabilities_NK = drawn(3, 100, 3)
    same = paired(CLASSIFICATION[name], targets_N, probabilities_NK, probabilities_NK.copy(), **OPTIONS)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_groups_are_drawn_whole():
    """Ten copies of each row say no more than the rows: resampled by group, the interval keeps its width."""
    targets_N, probabilities_NK = drawn(4, 100, 2)
    copies = np.repeat(np.arange(100), 10)
    alone = interval(accuracy, targets_N, probabilities_NK, **OPTIONS)
    naive = interval(accuracy, targets_N[copies], probabilities_NK[copies], **OPTIONS)
    grouped = interval(accuracy, targets_N[copies], probabilities_NK[copies], groups_N=copies + 7, **OPTIONS)
    assert grouped.low == pytest.approx(alone.low) and grouped.high == pytest.approx(alone.high)
    assert naive.high - naive.low < (alone.high - alone.low) / 2


def test_classes_that_are_absent_are_left_out():
    targets_N, probabilities_NK = np.zeros(20, dtype=int), np.tile([0.8, 0.1, 0.1], (20, 1))
    measured = bootstrap({**CLASSIFICATION, **PER_CLASS}, targets_N, {"model": probabilities_NK}, **OPTIONS)
    assert measured.interval("model", "balanced_accuracy").value == 1
    assert math.isnan(measured.interval("model", "auroc").low) and math.isnan(measured.interval("model", "auroc").value)
    recalls = measured.intervals("model", "recall", np.array([20, 0, 0]))
    assert recalls[0].value == 1 and math.isnan(recalls[1].value) and not recalls[1].finite


def test_no_rows_is_an_error_that_says_what_to_do():
    with pytest.raises(InputError, match="test"):
        interval(accuracy, np.zeros(0, dtype=int), np.zeros((0, 2)), **OPTIONS)


def test_a_sure_mistake_costs_much_but_not_infinity():
    assert 30 < log_loss(np.array([0]), np.array([[0.0, 1.0]])) < 40


def test_calibration_error_of_known_cases():
    sure_NK = np.tile([1.0, 0.0], (10, 1))
    assert expected_calibration_error(np.zeros(10, dtype=int), sure_NK) == 0
    assert expected_calibration_error(np.arange(10) % 2, sure_NK) == pytest.approx(0.5)
