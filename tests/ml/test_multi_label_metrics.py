"""Metrics of several classes a row: against scikit-learn, and by weights as by copies."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from ml import multi_label_metrics
from ml.multi_label_metrics import MULTI_LABEL, PER_CLASS


def drawn(seed: int, rows: int, classes: int, digits: int = 6, share: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Targets, and the scores of a model that knows something."""
    random = np.random.default_rng(seed)
    targets_NK = (random.random((rows, classes)) < share).astype(np.int8)
    probabilities_NK = np.round(1 / (1 + np.exp(-random.normal(size=(rows, classes)) - 2 * targets_NK + 1)), digits)
    return targets_NK, np.concatenate([probabilities_NK, probabilities_NK > random.uniform(0.3, 0.7, classes)], axis=1)


@pytest.mark.parametrize(("rows", "digits"), [(100, 1), (100, 6), (600, 1), (600, 6)])  # few and many rows of a class, with ties and without
def test_metrics_agree_with_scikit_learn(rows, digits):
    targets_NK, scores_NS = drawn(0, rows, 4, digits)
    probabilities_NK, told_NK = scores_NS[:, :4], scores_NS[:, 4:].astype(int)
    expected = {
        "micro_f1": sklearn_metrics.f1_score(targets_NK, told_NK, average="micro"),
        "macro_f1": sklearn_metrics.f1_score(targets_NK, told_NK, average="macro"),
        "subset_accuracy": sklearn_metrics.accuracy_score(targets_NK, told_NK),
        "mean_average_precision": sklearn_metrics.average_precision_score(targets_NK, probabilities_NK, average="macro"),
        "hamming_loss": sklearn_metrics.hamming_loss(targets_NK, told_NK),
    }
    assert expected.keys() == MULTI_LABEL.keys()
    for name, value in expected.items():
        assert MULTI_LABEL[name](targets_NK, scores_NS) == pytest.approx(value, abs=1e-12), name
    by_class = {"precision": sklearn_metrics.precision_score, "recall": sklearn_metrics.recall_score, "f1": sklearn_metrics.f1_score}
    for name, metric in by_class.items():
        np.testing.assert_allclose(PER_CLASS[name](targets_NK, scores_NS), metric(targets_NK, told_NK, average=None))
    areas = sklearn_metrics.average_precision_score(targets_NK, probabilities_NK, average=None)
    np.testing.assert_allclose(PER_CLASS["average_precision"](targets_NK, scores_NS), areas)


@pytest.mark.parametrize("few", [0, 64])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 40), classes=st.integers(1, 4), digits=st.sampled_from([1, 9]))
def test_weights_count_rows_as_copies_would(few, seed, rows, classes, digits):
    targets_NK, scores_NS = drawn(seed, rows, classes, digits)
    weights_NR = np.random.default_rng(seed).integers(0, 4, (rows, 3)).astype(float)
    weights_NR[0] += 1  # no resample is empty
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multi_label_metrics, "FEW", few)
        for name, metric in {**MULTI_LABEL, **PER_CLASS}.items():
            values = metric(targets_NK, scores_NS, weights_NR)
            for r in range(3):
                copies = np.repeat(np.arange(rows), weights_NR[:, r].astype(int))
                expected = metric(targets_NK[copies], scores_NS[copies])
                np.testing.assert_allclose(values[r], expected, atol=1e-12, equal_nan=True, err_msg=name)


def test_a_class_that_nobody_has_counts_for_nothing():
    targets_NK = np.array([[1, 0], [1, 0], [0, 0]], np.int8)
    scores_NS = np.array([[0.9, 0.1, 1, 0], [0.8, 0.2, 1, 0], [0.1, 0.1, 0, 0]])
    best = {"hamming_loss": 0.0}
    for name, metric in MULTI_LABEL.items():
        assert metric(targets_NK, scores_NS) == best.get(name, 1.0), name
    scores_NS[2, 3] = 1  # told once, and wrongly
    assert MULTI_LABEL["macro_f1"](targets_NK, scores_NS) == 0.5 and MULTI_LABEL["mean_average_precision"](targets_NK, scores_NS) == 1
    assert np.isnan(MULTI_LABEL["micro_f1"](targets_NK * 0, scores_NS * 0))
