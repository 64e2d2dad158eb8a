"""Calibration: a temperature fitted on validation rows (Guo et al. 2017), and how far confidence can be trusted."""

from __future__ import annotations

import numpy as np

from ml.metrics import BINS, bins, log_loss

LOWEST, HIGHEST = 0.2, 20.0
PRIOR = 0.5
"""Standard deviation of ln temperature before any row is seen: keeps a few rows, all right, from claiming certainty."""


def fit_temperature(logits_NK: np.ndarray, targets_N: np.ndarray) -> float:
    """The divisor of the logits, in [LOWEST, HIGHEST], under which the targets are most probable.

    The log-loss of softmax on these rows is never above that at 1.
    """
    if len(targets_N) == 0:
        return 1.0

    def cost(exponent: float) -> float:
        loss = log_loss(targets_N, softmax(logits_NK / np.exp(exponent)))
        return len(targets_N) * loss + exponent**2 / (2 * PRIOR**2)

    # A grid refined three times around its best point: the cost is smooth with one valley, and this cannot diverge.
    low, high, best = np.log(LOWEST), np.log(HIGHEST), 0.0
    for _ in range(3):
        grid = np.append(np.linspace(low, high, 17), best)
        best = float(grid[np.argmin([cost(exponent) for exponent in grid])])
        step = (high - low) / 16
        low, high = max(best - step, np.log(LOWEST)), min(best + step, np.log(HIGHEST))
    return float(np.exp(best))


def softmax(logits_NK: np.ndarray) -> np.ndarray:
    """Probabilities (N, K) of logits."""
    powers_NK = np.exp(logits_NK - logits_NK.max(1, keepdims=True))
    return powers_NK / powers_NK.sum(1, keepdims=True)


def reliability(targets_N: np.ndarray, probabilities_NK: np.ndarray) -> dict[str, list[float]]:
    """For each bin of confidence that holds rows: `confidence` (mean), `accuracy`, `count`."""
    confidence_N, right_N = probabilities_NK.max(1).astype(np.float64), probabilities_NK.argmax(1) == targets_N
    bin_N = bins(confidence_N)
    counts = np.bincount(bin_N, minlength=BINS)
    filled = counts > 0
    mean = [np.bincount(bin_N, weights=values, minlength=BINS)[filled] / counts[filled] for values in (confidence_N, right_N)]
    return {"confidence": mean[0].tolist(), "accuracy": mean[1].tolist(), "count": counts[filled].tolist()}
