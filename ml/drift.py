"""Whether what a model sees now is what it was measured on: two samples, one distribution?

The test is the maximum mean discrepancy (Gretton et al. 2012, JMLR 13) with a Gaussian kernel whose width is the median distance, and its level is
exact: under no drift, p ≤ α in at most a share α of all comparisons, whatever the data, since the p-value counts permutations of the pooled rows. Beside it
the size of the drift: how well a linear classifier tells the two samples apart (AUC by cross-validation; 0.5 not at all, 1 without fail).

N and M rows of the two samples, D features.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ml.contracts import InputError

MOST = 500
"""Rows of each sample that are compared; of more, so many are drawn."""
LEAST = 20
PERMUTATIONS = 999


@dataclass(frozen=True)
class Drift:
    """One comparison: `discrepancy` is the squared MMD, `p` its p-value, `auc` the size; n and m rows were compared."""

    name: str
    discrepancy: float
    p: float
    auc: float
    n: int
    m: int

    def found(self, level: float, bound: float) -> bool:
        """Whether the drift is sure at `level`, and as large as `bound` (AUC)."""
        return self.p <= level and self.auc >= bound

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(name: str, reference_ND: np.ndarray, recent_MD: np.ndarray, seed: int = 0) -> Drift:
    """Compares two samples of features; depends on the arguments alone. Raises InputError for fewer than LEAST rows, or rows that are not finite."""
    reference_ND, recent_MD = (np.asarray(one, np.float64).reshape(len(one), -1) for one in (reference_ND, recent_MD))
    for words, one in (("reference", reference_ND), ("recent", recent_MD)):
        if len(one) < LEAST:
            raise InputError(f"{len(one)} {words} rows are too few to tell a drift of {name} by: {LEAST} or more are needed")
        if not np.isfinite(one).all():
            raise InputError(f"the {words} rows' {name} are not finite")
    if reference_ND.shape[1] != recent_MD.shape[1]:
        raise InputError(f"the reference has {reference_ND.shape[1]} numbers a row as {name}, the recent rows {recent_MD.shape[1]}: they are of different models")
    generator = np.random.default_rng(seed)
    first, second = (one[generator.permutation(len(one))[:MOST]] for one in (reference_ND, recent_MD))
    pooled_PD = _scaled(np.concatenate([first, second]))
    kernel_PP = _kernel(pooled_PD)
    labels_P = np.r_[np.ones(len(first)), np.zeros(len(second))]
    drawn_PR = np.stack([labels_P, *(generator.permutation(labels_P) for _ in range(PERMUTATIONS))], axis=1)
    values_R = _discrepancies(kernel_PP, drawn_PR)
    # Ties count against a drift, and the sample itself among the permutations: so the level holds.
    p = float((values_R >= values_R[0] - 1e-12).mean())
    return Drift(name, float(values_R[0]), p, _auc(pooled_PD, labels_P, seed), len(first), len(second))


def _scaled(pooled_PD: np.ndarray) -> np.ndarray:
    """Features of the pooled rows with mean 0 and deviation 1, constant ones left out; the same for each permutation."""
    deviation_D = pooled_PD.std(0)
    varies_D = deviation_D > 1e-12
    return (pooled_PD[:, varies_D] - pooled_PD[:, varies_D].mean(0)) / deviation_D[varies_D]


def _kernel(pooled_PD: np.ndarray) -> np.ndarray:
    squares_P = (pooled_PD**2).sum(1)
    distances_PP = np.maximum(squares_P[:, None] + squares_P[None, :] - 2 * pooled_PD @ pooled_PD.T, 0)
    upper = distances_PP[np.triu_indices(len(distances_PP), 1)]
    width = float(np.median(upper[upper > 0])) if (upper > 0).any() else 1.0
    return np.exp(-distances_PP / width)


def _discrepancies(kernel_PP: np.ndarray, labels_PR: np.ndarray) -> np.ndarray:
    """(R,) the unbiased squared MMD for each assignment of the pooled rows: 1 is the first sample."""
    within_PP = kernel_PP - np.diag(np.diag(kernel_PP))
    others_PR = 1 - labels_PR
    n, m = labels_PR[:, 0].sum(), others_PR[:, 0].sum()
    product_PR, rest_PR = within_PP @ labels_PR, within_PP @ others_PR
    same, other, between = (labels_PR * product_PR).sum(0), (others_PR * rest_PR).sum(0), (others_PR * product_PR).sum(0)
    return same / (n * (n - 1)) + other / (m * (m - 1)) - 2 * between / (n * m)


def _auc(pooled_PD: np.ndarray, labels_P: np.ndarray, seed: int) -> float:
    """How well the samples are told apart by rows that the classifier did not see; below 0.5 is chance."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    if pooled_PD.shape[1] == 0:
        return 0.5
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    scores_P = cross_val_predict(LogisticRegression(C=0.1, max_iter=500), pooled_PD, labels_P, cv=folds, method="decision_function")
    return max(float(roc_auc_score(labels_P, scores_P)), 0.5)
