"""Metrics of rows that have several classes, or none: functions of (targets_NK, scores_NS), as `ml.metrics` describes them.

Scores are (N, 2K): the probability of each class, then 1 for each class that is told. N rows, K classes, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ml.metrics import FEW, Metric, mean_over, weighted


@weighted
def micro_f1(targets_NK: np.ndarray, scores_NS: np.ndarray, weights_NR: np.ndarray) -> np.ndarray:
    """2·right / (told + true) over all classes together: every label counts alike."""
    right_RK, told_RK, true_RK = _counts(targets_NK, scores_NS, weights_NR)
    return 2 * right_RK.sum(1) / (told_RK.sum(1) + true_RK.sum(1))


@weighted
def macro_f1(targets_NK: np.ndarray, scores_NS: np.ndarray, weights_NR: np.ndarray) -> np.ndarray:
    """Mean of 2·right / (told + true) over the classes that occur or are told: every class counts alike."""
    right_RK, told_RK, true_RK = _counts(targets_NK, scores_NS, weights_NR)
    return mean_over(2 * right_RK / (told_RK + true_RK), told_RK + true_RK > 0)


@weighted
def subset_accuracy(targets_NK: np.ndarray, scores_NS: np.ndarray, weights_NR: np.ndarray) -> np.ndarray:
    """Share of rows whose classes are all right, none missing and none too many."""
    return (told(scores_NS) == (targets_NK == 1)).all(1) @ weights_NR / weights_NR.sum(0)


@weighted
def mean_average_precision(targets_NK: np.ndarray, scores_NS: np.ndarray, weights_NR: np.ndarray) -> np.ndarray:
    """Mean of `average_precision` over the classes that occur; looks at the order of the probabilities alone."""
    areas_RK = _areas(targets_NK, scores_NS, weights_NR)
    return mean_over(areas_RK, np.isfinite(areas_RK))


@weighted
def hamming_loss(targets_NK: np.ndarray, scores_NS: np.ndarray, weights_NR: np.ndarray) -> np.ndarray:
    """Share of all pairs of a row and a class that are wrong."""
    return (told(scores_NS) != (targets_NK == 1)).mean(1) @ weights_NR / weights_NR.sum(0)


@weighted
def precision(targets_NK: np.ndarray, scores_NS: np.ndarray, weights_NR: np.ndarray) -> np.ndarray:
    """Of the rows that are told a class, the share that have it: (K,), NaN where there are none."""
    right_RK, told_RK, _ = _counts(targets_NK, scores_NS, weights_NR)
    return right_RK / told_RK


@weighted
def recall(targets_NK: np.ndarray, scores_NS: np.ndarray, weights_NR: np.ndarray) -> np.ndarray:
    """Of the rows that have a class, the share that are told it: (K,), NaN where there are none."""
    right_RK, _, true_RK = _counts(targets_NK, scores_NS, weights_NR)
    return right_RK / true_RK


@weighted
def f1(targets_NK: np.ndarray, scores_NS: np.ndarray, weights_NR: np.ndarray) -> np.ndarray:
    """2·right / (told + true) of each class: (K,), NaN where it neither occurs nor is told."""
    right_RK, told_RK, true_RK = _counts(targets_NK, scores_NS, weights_NR)
    return 2 * right_RK / (told_RK + true_RK)


@weighted
def average_precision(targets_NK: np.ndarray, scores_NS: np.ndarray, weights_NR: np.ndarray) -> np.ndarray:
    """Mean precision over the rows of a class, each among the rows that are as probable or more: (K,), NaN where the class does not occur."""
    return _areas(targets_NK, scores_NS, weights_NR)


def told(scores_NS: np.ndarray) -> np.ndarray:
    """Which classes are told, (N, K) bool."""
    return scores_NS[:, scores_NS.shape[1] // 2 :] > 0.5


def _counts(targets_NK: np.ndarray, scores_NS: np.ndarray, weights_NR: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By class, (R, K) each: rows that are told it rightly, rows that are told it, rows that have it."""
    told_NK, true_NK = told(scores_NS), targets_NK == 1
    return tuple(weights_NR.T @ one_NK.astype(np.float64) for one_NK in (told_NK & true_NK, told_NK, true_NK))


def _areas(targets_NK: np.ndarray, scores_NS: np.ndarray, weights_NR: np.ndarray) -> np.ndarray:
    return np.stack([_area(targets_NK[:, k] == 1, scores_NS[:, k], weights_NR) for k in range(targets_NK.shape[1])], axis=1)


def _area(positive_N: np.ndarray, score_N: np.ndarray, weights_NR: np.ndarray) -> np.ndarray:
    """Weighted average precision, rows of one score taken together, (R,); NaN where no row is positive."""
    if not positive_N.any():
        return np.full(weights_NR.shape[1], np.nan)
    if positive_N.sum() <= FEW:  # one product with which rows are as probable as each positive
        above_PN = (score_N >= score_N[positive_N][:, None]).astype(np.float64)
        own_PR = weights_NR[positive_N]
        right_PR, all_PR = above_PN[:, positive_N] @ own_PR, above_PN @ weights_NR
    else:
        order = np.argsort(-score_N, kind="stable")
        positive_N, weights_NR = positive_N[order], weights_NR[order]
        starts = np.flatnonzero(np.r_[True, np.diff(score_N[order]) < 0])
        # Only scores that a positive has matter: each piece ends with the last row of such a score.
        held = np.logical_or.reduceat(positive_N, starts)
        edges = np.unique(np.r_[0, np.r_[starts[1:], len(order)][held]])
        edges = edges[edges < len(order)]
        own_PR = np.add.reduceat(weights_NR * positive_N[:, None], edges, axis=0)
        right_PR, all_PR = own_PR.cumsum(0), np.add.reduceat(weights_NR, edges, axis=0).cumsum(0)
    return np.where(own_PR > 0, own_PR * right_PR / all_PR, 0).sum(0) / own_PR.sum(0)


MULTI_LABEL: Mapping[str, Metric] = {
    "micro_f1": micro_f1,
    "macro_f1": macro_f1,
    "subset_accuracy": subset_accuracy,
    "mean_average_precision": mean_average_precision,
    "hamming_loss": hamming_loss,
}

PER_CLASS: Mapping[str, Metric] = {"precision": precision, "recall": recall, "f1": f1, "average_precision": average_precision}
