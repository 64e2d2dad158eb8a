"""What the simple alternatives share: the same steps for rows of one class, and for rows of several, where each class has a machine of its own.

Targets are (N,) class ids, or (N, K) of 0 and 1. N rows, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ml.calibration import fit_temperature, softmax
from ml.multi_label_metrics import mean_average_precision
from ml.thresholds import best_thresholds, sigmoid, temperature_of, told_with


class OneVersusRest:
    """A machine for each class against all the other rows; a class that all rows have, or none, needs no machine."""

    def __init__(self, make: Callable[[], Any], x: Any, targets_NK: np.ndarray) -> None:
        self._machines = [make().fit(x, column) if 0 < column.sum() < len(column) else 2.0 * column[0] - 1 for column in targets_NK.T]

    def decision_function(self, x: Any) -> np.ndarray:
        """(N, K), above 0 where a class applies."""
        rows = x.shape[0]
        return np.stack([np.full(rows, one) if isinstance(one, float) else one.decision_function(x) for one in self._machines], axis=1)


def fitted(make: Callable[[], Any], x: Any, targets: np.ndarray) -> Any:
    """What `make` makes, fitted; for each class anew where rows have several."""
    return OneVersusRest(make, x, targets) if targets.ndim == 2 else make().fit(x, targets)


def right(machine: Any, x: Any, targets: np.ndarray) -> float:
    """By how much a setting is good: the share of rows that are right, or the mean average precision."""
    if targets.ndim == 1:
        return float((machine.predict(x) == targets).mean())
    found_NK = machine.decision_function(x)
    return float(mean_average_precision(targets, np.concatenate([found_NK, found_NK], axis=1)))


def scores(machine: Any, x: Any, classes: int) -> np.ndarray:
    """A score for each class (N, K); one that had no training row gets the lowest."""
    found = machine.decision_function(x)
    if isinstance(machine, OneVersusRest):
        return found
    if found.ndim == 1:
        found = np.stack([-found / 2, found / 2], axis=1)  # of which the softmax is the sigmoid of what was found
    scores_NK = np.full((x.shape[0], classes), found.min() - 1)
    scores_NK[:, machine.classes_] = found
    return scores_NK


def answers(held_NK: np.ndarray, targets: np.ndarray, scores_NK: np.ndarray) -> tuple[np.ndarray, float]:
    """Of scores, what a head would tell, and the temperature, both as the held rows and their targets say best."""
    if targets.ndim == 1:
        temperature = fit_temperature(held_NK, targets)
        return softmax(scores_NK / temperature), temperature
    temperature = temperature_of(held_NK, targets)
    return told_with(sigmoid(scores_NK / temperature), best_thresholds(sigmoid(held_NK / temperature), targets)), temperature
