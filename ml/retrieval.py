"""How well each source finds its target among all different targets, by cosine; and the metrics of retrieval.

Targets of equal text are one, and what another row with an equal source has as its target is neither right nor wrong. Others that are as near as
the right one are ties: a row then counts as it would on average over all orders of them, and what tells nothing apart scores as chance does.

Metrics are functions of (targets_N, scores_NS) as in ml/metrics.py that ignore the targets, over ranks among all targets of the test: the candidates
stay the same whatever the weights of the rows. D features, M different targets, N rows, R resamples, S statistics: SCORES.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ml.metrics import Metric

SCORES = ("above", "tied")
"""Of each row: how many wrong targets are nearer to the source than the right one, and how many as near."""
EQUAL = 1e-6
"""Cosines that differ by less are the same: float32 says no more."""
CELLS = 8_000_000
"""Cosines held at once."""


@dataclass(frozen=True)
class Found:
    """Of each row (N,): the statistics; the cosine with its own target; the nearest wrong target, as the number of a row that has it, and its cosine.

    Where there is no wrong one its cosine is −inf.
    """

    above_N: np.ndarray
    tied_N: np.ndarray
    own_N: np.ndarray
    other_N: np.ndarray
    nearest_N: np.ndarray
    candidates: int

    @property
    def scores(self) -> np.ndarray:
        """(N, S) float64; NaN where the cosines are not finite."""
        scores_NS = np.stack([self.above_N, self.tied_N], 1).astype(np.float64)
        return np.where(np.isfinite(self.own_N)[:, None], scores_NS, np.nan)

    @property
    def rank_N(self) -> np.ndarray:
        """(N,) the right target's place, from 1; of ties the middle one."""
        return 1 + self.above_N + self.tied_N / 2


def search(source_ND: Any, target_ND: Any, sources: Sequence[str], targets: Sequence[str]) -> Found:
    """Looks for the target of each source among all targets, by rows of unit length, dense or sparse, of texts which tell what is the same.

    A chunk at a time: memory holds CELLS cosines.
    """
    numbers: dict[str, int] = {}
    pool_N = np.array([numbers.setdefault(text, len(numbers)) for text in targets], int)
    first_M = np.unique(pool_N, return_index=True)[1]
    rows, pool_DM = len(sources), target_ND[first_M].T
    right: dict[str, set[int]] = {}
    for source, number in zip(sources, pool_N.tolist(), strict=True):
        right.setdefault(source, set()).add(number)
    found = {name: np.zeros(rows, kind) for name, kind in (("above", int), ("tied", int), ("own", float), ("other", float), ("nearest", int))}
    step = max(1, CELLS // max(1, len(first_M)))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        cosine_nM = source_ND[part] @ pool_DM
        cosine_nM = np.asarray(cosine_nM if isinstance(cosine_nM, np.ndarray) else cosine_nM.toarray())
        place_n = np.arange(len(cosine_nM))
        own_n1 = cosine_nM[place_n, pool_N[part]][:, None].copy()
        for place, source in enumerate(sources[part]):
            cosine_nM[place, list(right[source])] = -np.inf
        nearest_n = cosine_nM.argmax(1)
        found["above"][part] = (cosine_nM > own_n1 + EQUAL).sum(1)
        found["tied"][part] = (np.abs(cosine_nM - own_n1) <= EQUAL).sum(1)
        found["own"][part], found["other"][part] = own_n1[:, 0], cosine_nM[place_n, nearest_n]
        found["nearest"][part] = first_M[nearest_n]
    return Found(*(found[name] for name in ("above", "tied", "own", "other", "nearest")), len(first_M))


def _mean(each: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Metric:
    """The mean over rows of what `each` makes of their statistics."""

    def measure(targets_N: np.ndarray, scores_NS: np.ndarray, weights_NR: np.ndarray | None = None) -> float | np.ndarray:
        value_N = each(*np.asarray(scores_NS, np.float64).T)
        return float(value_N.mean()) if weights_NR is None else value_N @ weights_NR / weights_NR.sum(0)

    return measure


def _reciprocal_rank(above_N: np.ndarray, tied_N: np.ndarray) -> np.ndarray:
    """1 / rank, over all places that ties may take."""
    if not np.isfinite(above_N + tied_N).all():
        return np.full(len(above_N), np.nan)
    first_N, last_N = above_N.astype(int), (above_N + tied_N).astype(int) + 1
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, last_N.max(initial=0) + 1))])
    return np.where(tied_N == 0, 1 / last_N, (harmonic[last_N] - harmonic[first_N]) / (tied_N + 1))


def _recall(k: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Whether the right target is among the first k; of ties, the share of the orders in which it is."""
    return lambda above_N, tied_N: np.clip(k - above_N, 0, tied_N + 1) / (tied_N + 1)


def median_rank(targets_N: np.ndarray, scores_NS: np.ndarray, weights_NR: np.ndarray | None = None) -> float | np.ndarray:
    """The median of the right target's place, from 1; of ties the middle one, of two medians the lower one."""
    above_N, tied_N = np.asarray(scores_NS, np.float64).T
    rank_N = 1 + above_N + tied_N / 2
    order = np.argsort(rank_N, kind="stable")
    weights = np.ones((len(rank_N), 1)) if weights_NR is None else weights_NR
    below_NR = weights[order].cumsum(0)
    values_R = rank_N[order][(below_NR >= below_NR[-1] / 2).argmax(0)]
    values_R = np.where(np.isfinite(rank_N).all(), values_R, np.nan)
    return values_R if weights_NR is not None else float(values_R[0])


RETRIEVAL: Mapping[str, Metric] = {
    "mrr": _mean(_reciprocal_rank),
    "recall_at_1": _mean(_recall(1)),
    "recall_at_10": _mean(_recall(10)),
    "median_rank": median_rank,
}
"""mrr is the mean of 1 / rank."""
