"""What a user would pick instead of a network: a support vector machine on plain features; and the commonest class.

Knows no modality: it is handed the function that makes features of stored arrays. `targets` gives what rows are labelled, as `Store.targets`:
(n,) of class ids, or where rows have several (n, K), of which each column gets a machine of its own (`ml.one_versus_rest`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ml.one_versus_rest import answers, fitted, right, scores
from ml.progress import update

Targets = Callable[[np.ndarray], np.ndarray]

ROWS = 10_000
"""Training rows at most: the time of a support vector machine grows with their square."""
SEARCH = 2_000
"""Rows, of either part, that its settings are chosen on at most."""
GRID = [{"C": C, "gamma": gamma} for gamma in (1.0, 0.3, 0.1, 3.0) for C in (3.0, 1.0, 10.0)]
"""Penalties, and widths of the kernel exp(−gamma · mean squared difference of the features, each of variance 1)."""


@dataclass(frozen=True)
class Classical:
    """Probabilities (M, K) of the rows asked for, or what else a head's answers are, of a head without labels its outputs; the settings chosen, and
    what a reader should know."""

    answers: np.ndarray
    settings: dict[str, float]
    note: str


def classical(
    array: np.ndarray,
    labels: np.ndarray,
    targets: Targets,
    train: np.ndarray,
    validation: np.ndarray,
    test: np.ndarray,
    features: Callable[[np.ndarray], np.ndarray],
    classes: int,
    seed: int,
) -> Classical:
    """Fits on the rows `train` of `array` (N, ...) to their targets, and scores the rows `test`; `labels` (N,) are what few rows are drawn by.

    The validation rows choose its settings and calibrate its probabilities, as they choose the network's best epoch.
    """
    from sklearn.svm import SVC  # imported where it is used: it costs seconds

    rows = draw(train, labels, ROWS, seed)
    note = f"fitted on {len(rows):,} of {len(train):,} training rows" if len(rows) < len(train) else f"fitted on {len(rows):,} training rows"
    update("classical", 0, 3)
    tried, held = draw(np.arange(len(rows)), labels[rows], SEARCH, seed), draw(validation, labels, SEARCH, seed)
    raw_ND, held_ND = features(array[rows]), features(array[held])
    # Both parts scale the features: of a handful of training rows many never vary, and would blow up elsewhere.
    known_ND = np.concatenate([raw_ND, held_ND])
    mean_D, std_D = known_ND.mean(0), known_ND.std(0)
    std_D = np.maximum(std_D, 0.05 * std_D.mean() + 1e-6)
    scaled_ND = (raw_ND - mean_D) / std_D
    settings = _search(scaled_ND[tried], targets(rows[tried]), (held_ND - mean_D) / std_D, targets(held))
    update("classical", 1, 3)
    own_NN = _kernel(_distances(scaled_ND, scaled_ND), settings["gamma"])
    machine = fitted(lambda: SVC(C=settings["C"], kernel="precomputed", cache_size=500), own_NN, targets(rows))
    update("classical", 2, 3)

    def scored(asked: np.ndarray) -> np.ndarray:
        parts = [asked[start : start + 1000] for start in range(0, len(asked), 1000)]
        distances = (_distances((features(array[part]) - mean_D) / std_D, scaled_ND) for part in parts)
        return np.concatenate([scores(machine, _kernel(distance, settings["gamma"]), classes) for distance in distances])

    told, temperature = answers(scored(validation), targets(validation), scored(test))
    update("classical", 3, 3)
    return Classical(told, settings | {"temperature": temperature}, note)


def majority(labels_N: np.ndarray, classes: int, rows: int) -> np.ndarray:
    """The classes' shares among the training labels, for each of `rows` rows: (rows, K)."""
    counts_K = np.bincount(labels_N, minlength=classes)
    return np.tile(counts_K / counts_K.sum(), (rows, 1))


def draw(rows: np.ndarray, labels: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """At most `limit` of `rows`, each class in its share but with two rows at least, ascending."""
    if len(rows) <= limit:
        return rows
    order = np.random.default_rng(seed).permutation(rows)
    own = labels[order]
    chosen = [order[own == k][: max(2, int(limit * np.mean(own == k)))] for k in np.unique(own)]
    return np.sort(np.concatenate(chosen))


def _search(train_ND: np.ndarray, train_targets: np.ndarray, held_MD: np.ndarray, held_targets: np.ndarray) -> dict[str, float]:
    """The settings of GRID that are right most often on the held rows; the first of equals."""
    from sklearn.svm import SVC

    own_NN, across_MN = _distances(train_ND, train_ND), _distances(held_MD, train_ND)

    def good(setting: dict[str, float]) -> float:
        machine = fitted(lambda: SVC(C=setting["C"], kernel="precomputed"), _kernel(own_NN, setting["gamma"]), train_targets)
        return right(machine, _kernel(across_MN, setting["gamma"]), held_targets)

    return max(GRID, key=good)


def _distances(a_ND: np.ndarray, b_MD: np.ndarray) -> np.ndarray:
    """Mean squared difference of features, (N, M): one matrix product serves every width of the kernel."""
    squares_NM = (a_ND**2).sum(1)[:, None] + (b_MD**2).sum(1) - 2 * (a_ND @ b_MD.T)
    return np.maximum(squares_NM, 0) / a_ND.shape[1]


def _kernel(distances_NM: np.ndarray, gamma: float) -> np.ndarray:
    """The radial basis function exp(−gamma · distance)."""
    return np.exp(-gamma * distances_NM, dtype=np.float64)

