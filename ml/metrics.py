"""Metrics of classification: functions of (targets_N, probabilities_NK) that give a float.

They are resampled thousands of times for intervals, so each also takes `weights_NR`, how often each row is in each of R
resamples, and then gives R values at once. A class that a resample lacks counts neither for nor against in a mean over
classes; where there is a value for each class it is NaN. N rows, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps

import numpy as np

Metric = Callable[..., "float | np.ndarray"]

FEW = 64
"""Rows of a class up to which its AUROC is one matrix product."""
BINS = 15  # of the calibration error
SMALLEST = 1e-15  # probabilities are kept this far from 0, so that one sure mistake costs 34.5 and not infinity


def weighted(metric: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> Metric:
    """A metric written for weights_NR, which without them counts each row once."""

    @wraps(metric)
    def measure(targets_N: np.ndarray, probabilities_NK: np.ndarray, weights_NR: np.ndarray | None = None) -> float | np.ndarray:
        targets_N, probabilities_NK = np.asarray(targets_N), np.asarray(probabilities_NK, dtype=np.float64)
        weights = np.ones((len(targets_N), 1)) if weights_NR is None else weights_NR
        with np.errstate(divide="ignore", invalid="ignore"):
            values = metric(targets_N, probabilities_NK, weights)
        if weights_NR is not None:
            return values
        return float(values[0]) if values.ndim == 1 else values[0]

    return measure


@weighted
def accuracy(targets_N: np.ndarray, probabilities_NK: np.ndarray, weights_NR: np.ndarray) -> np.ndarray:
    """Share of rows whose most probable class is right."""
    return (probabilities_NK.argmax(1) == targets_N) @ weights_NR / weights_NR.sum(0)


@weighted
def balanced_accuracy(targets_N: np.ndarray, probabilities_NK: np.ndarray, weights_NR: np.ndarray) -> np.ndarray:
    """Mean over the classes that occur of the share of their rows that are right."""
    right, _, actual = _counts(targets_N, probabilities_NK, weights_NR)
    return mean_over(right / actual, actual > 0)


@weighted
def macro_f1(targets_N: np.ndarray, probabilities_NK: np.ndarray, weights_NR: np.ndarray) -> np.ndarray:
    """Mean over the classes that occur or are predicted of 2·right / (predicted + actual)."""
    right, predicted, actual = _counts(targets_N, probabilities_NK, weights_NR)
    return mean_over(2 * right / (predicted + actual), predicted + actual > 0)


@weighted
def auroc(targets_N: np.ndarray, probabilities_NK: np.ndarray, weights_NR: np.ndarray) -> np.ndarray:
    """Area under the ROC curve: of class 1 of two, else the mean of each class against the rest. NaN with one class only."""
    columns = [1] if probabilities_NK.shape[1] == 2 else range(probabilities_NK.shape[1])
    areas_RK = np.stack([_area(targets_N == column, probabilities_NK[:, column], weights_NR) for column in columns], axis=1)
    return mean_over(areas_RK, np.isfinite(areas_RK))


@weighted
def log_loss(targets_N: np.ndarray, probabilities_NK: np.ndarray, weights_NR: np.ndarray) -> np.ndarray:
    """Mean of −log of the probability given to the right class, in nats."""
    own_N = probabilities_NK[np.arange(len(targets_N)), targets_N]
    return -np.log(np.clip(own_N, SMALLEST, 1)) @ weights_NR / weights_NR.sum(0)


@weighted
def expected_calibration_error(targets_N: np.ndarray, probabilities_NK: np.ndarray, weights_NR: np.ndarray) -> np.ndarray:
    """Mean gap between confidence and accuracy over 15 equal bins, weighted by their rows (arXiv:1706.04599)."""
    confidence_N = probabilities_NK.max(1)
    gap_N = confidence_N - (probabilities_NK.argmax(1) == targets_N)
    bin_N = bins(confidence_N)
    gap_R = sum(np.abs(gap_N[bin_N == one] @ weights_NR[bin_N == one]) for one in np.unique(bin_N))
    return gap_R / weights_NR.sum(0)


@weighted
def precision(targets_N: np.ndarray, probabilities_NK: np.ndarray, weights_NR: np.ndarray) -> np.ndarray:
    """Of the rows predicted as a class, the share that are right: (K,), NaN where there are none."""
    right, predicted, _ = _counts(targets_N, probabilities_NK, weights_NR)
    return right / predicted


@weighted
def recall(targets_N: np.ndarray, probabilities_NK: np.ndarray, weights_NR: np.ndarray) -> np.ndarray:
    """Of a class's rows, the share that are found: (K,), NaN where there are none."""
    right, _, actual = _counts(targets_N, probabilities_NK, weights_NR)
    return right / actual


@weighted
def f1(targets_N: np.ndarray, probabilities_NK: np.ndarray, weights_NR: np.ndarray) -> np.ndarray:
    """2·right / (predicted + actual) of each class: (K,), NaN where it neither occurs nor is predicted."""
    right, predicted, actual = _counts(targets_N, probabilities_NK, weights_NR)
    return 2 * right / (predicted + actual)


def bins(confidence_N: np.ndarray) -> np.ndarray:
    """The bin of each confidence, 0 to BINS − 1; a bin holds its upper edge."""
    return np.clip(np.ceil(confidence_N * BINS).astype(np.int64) - 1, 0, BINS - 1)


def _counts(targets_N: np.ndarray, probabilities_NK: np.ndarray, weights_NR: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By class, (R, K) each: rows that are right, rows predicted, rows there are."""
    predicted_N, classes = probabilities_NK.argmax(1), probabilities_NK.shape[1]

    def by_class(class_n: np.ndarray, weights_nR: np.ndarray) -> np.ndarray:
        return np.stack([weights_nR[class_n == k].sum(0) for k in range(classes)], axis=1)

    right_N = predicted_N == targets_N
    return by_class(targets_N[right_N], weights_NR[right_N]), by_class(predicted_N, weights_NR), by_class(targets_N, weights_NR)


def _area(positive_N: np.ndarray, score_N: np.ndarray, weights_NR: np.ndarray) -> np.ndarray:
    """Weighted Mann-Whitney statistic with ties counted half, (R,); NaN where one side is empty."""
    if not positive_N.any():
        return np.full(weights_NR.shape[1], np.nan)
    if positive_N.sum() <= FEW:
        # One product with how each positive stands to each negative: of many classes most have few rows.
        score_P1 = score_N[positive_N][:, None]
        above_PN = ((score_N < score_P1) + 0.5 * (score_N == score_P1)) * ~positive_N
        own_PR = weights_NR[positive_N]
        own_R = own_PR.sum(0)
        return (own_PR * (above_PN @ weights_NR)).sum(0) / (own_R * (weights_NR.sum(0) - own_R))
    order = np.argsort(score_N, kind="stable")
    positive_N, weights_NR = positive_N[order][:, None], weights_NR[order]
    starts = np.flatnonzero(np.r_[True, np.diff(score_N[order]) > 0])
    # Only scores that a positive has matter: the negatives between two of them are summed in one piece.
    held = np.logical_or.reduceat(positive_N[:, 0], starts)
    edges = np.unique(np.r_[0, starts[held], np.r_[starts[1:], len(order)][held]])
    edges = edges[edges < len(order)]
    negative_GR = np.add.reduceat(weights_NR * ~positive_N, edges, axis=0)
    positive_GR = np.add.reduceat(weights_NR * positive_N, edges, axis=0)
    below_GR = negative_GR.cumsum(0) - negative_GR / 2
    return (positive_GR * below_GR).sum(0) / (positive_GR.sum(0) * negative_GR.sum(0))


def mean_over(values_RK: np.ndarray, there_RK: np.ndarray) -> np.ndarray:
    """The mean of each resample over the classes that are there."""
    return np.where(there_RK, values_RK, 0).sum(1) / there_RK.sum(1)


CLASSIFICATION: Mapping[str, Metric] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "auroc": auroc,
    "log_loss": log_loss,
    "expected_calibration_error": expected_calibration_error,
}

PER_CLASS: Mapping[str, Metric] = {"precision": precision, "recall": recall, "f1": f1}

UNITS: Mapping[str, str] = {"log_loss": "nats", "loss": "nats", "perplexity": "tokens", "bits_per_byte": "bits", "median_rank": "places"}
"""Of metrics that are no shares of 1."""

LOWER_IS_BETTER = frozenset({*UNITS, "expected_calibration_error", "hamming_loss"})
