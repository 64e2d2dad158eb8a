"""From probabilities of several classes to those that are told: a temperature and a threshold for each class, both from validation rows."""

from __future__ import annotations

import numpy as np

from ml.calibration import fit_temperature

FEW = 5
"""Validation rows of a class, below which its threshold stays HALF: fewer would fit noise."""
HALF = 0.5
PAIRS = 1_000_000
"""Pairs of a row and a class that the temperature is fitted on at most."""


def temperature_of(logits_NK: np.ndarray, targets_NK: np.ndarray) -> float:
    """The divisor of the logits under which the targets are most probable, each pair of a row and a class one of two cases."""
    step = max(1, targets_NK.size // PAIRS)
    logits, targets = logits_NK.ravel()[::step], targets_NK.ravel()[::step]
    return fit_temperature(np.stack([np.zeros_like(logits), logits], axis=1), targets.astype(np.int64))


def best_thresholds(probabilities_NK: np.ndarray, targets_NK: np.ndarray) -> np.ndarray:
    """(K,) float32: above which probability a class is told, so that its F1 on these rows is the best there is."""
    return np.array([_best(probabilities_NK[:, k], targets_NK[:, k] == 1) for k in range(targets_NK.shape[1])], np.float32)


def told_with(probabilities_NK: np.ndarray, thresholds_K: np.ndarray | float) -> np.ndarray:
    """Answers (N, 2, K) float32: the probabilities, and 1 for the classes that are told."""
    return np.stack([probabilities_NK, probabilities_NK > thresholds_K], axis=1).astype(np.float32)


def sigmoid(logits_NK: np.ndarray) -> np.ndarray:
    """Probabilities (N, K) of logits, each by itself."""
    return 0.5 * (1 + np.tanh(logits_NK / 2))  # which never overflows


def _best(score_N: np.ndarray, positive_N: np.ndarray) -> float:
    if positive_N.sum() < FEW:
        return HALF
    order = np.argsort(-score_N, kind="stable")
    score_N, right_N = score_N[order], positive_N[order].cumsum()
    f1_N = 2 * right_N / (np.arange(1, len(order) + 1) + positive_N.sum())
    below_N = np.append(score_N[1:], 0.0)
    last = int(np.where(score_N > below_N, f1_N, -1).argmax())  # rows of one score are told together
    return float((score_N[last] + below_N[last]) / 2)
