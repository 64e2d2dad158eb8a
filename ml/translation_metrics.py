"""BLEU (Papineni et al. 2002) and chrF (Popović 2015) of translations, as sacrebleu defines them, from statistics of each row.

Both are of a corpus: counts are summed over the rows before a ratio is taken, so a row's statistics are its counts. Metrics are functions
of (targets_N, scores_NS) as in ml/metrics.py, that ignore the targets; they give shares, 1 where sacrebleu says 100.
N rows, R resamples, S statistics: those of BLEU, then those of chrF.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from ml.metrics import Metric

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU, CHRF

ORDERS = 4
"""Longest n-grams of words in BLEU. Its statistics: length of the answer, of the reference, matching n-grams by n, n-grams by n."""
CHARACTERS, BETA = 6, 2
"""Longest n-grams of letters in chrF, and how much more recall counts. Its statistics: n-grams of the answer, of the reference, matching ones, for each n."""
SPLIT = 2 + 2 * ORDERS
WIDTH = SPLIT + 3 * CHARACTERS


def statistics(answers: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """(N, S) float64 counts of each answer against its reference, in sacrebleu's tokens ("13a") and letters."""
    bleu, chrf = _measures()
    found = np.zeros((len(answers), WIDTH))
    if len(answers):
        found[:, :SPLIT] = bleu._extract_corpus_statistics(list(answers), [list(references)])
        found[:, SPLIT:] = chrf._extract_corpus_statistics(list(answers), [list(references)])
    return found


def _of_sums(metric: Callable[[np.ndarray], np.ndarray]) -> Metric:
    """A metric written for summed statistics (S, R)."""

    def measure(targets_N: np.ndarray, scores_NS: np.ndarray, weights_NR: np.ndarray | None = None) -> float | np.ndarray:
        scores_NS = np.asarray(scores_NS, dtype=np.float64)
        weights = np.ones((len(scores_NS), 1)) if weights_NR is None else weights_NR
        with np.errstate(divide="ignore", invalid="ignore"):
            values_R = metric(scores_NS.T @ weights)
        return values_R if weights_NR is not None else float(values_R[0])

    return measure


def _bleu(sums_SR: np.ndarray) -> np.ndarray:
    """Geometric mean of the n-grams' precisions, times the penalty for brevity; precisions of 0 are smoothed as sacrebleu's "exp" does."""
    length_R, reference_R = sums_SR[0], sums_SR[1]
    right_nR, all_nR = sums_SR[2 : 2 + ORDERS], sums_SR[2 + ORDERS : SPLIT]
    missing_nR = (right_nR == 0) & (all_nR > 0)
    smooth_nR = 0.5 ** missing_nR.cumsum(0) / all_nR
    precision_nR = np.where(missing_nR, smooth_nR, right_nR / all_nR)
    # An n without any n-gram ends sacrebleu's loop: all its precisions from there on are 0, and so is the mean.
    bleu_R = np.exp(np.log(precision_nR).mean(0)) * np.where(length_R < reference_R, np.exp(1 - reference_R / length_R), 1.0)
    return np.where((right_nR.sum(0) > 0) & (all_nR > 0).all(0), bleu_R, 0.0)


def _chrf(sums_SR: np.ndarray) -> np.ndarray:
    """F-score of the mean precision and recall over the n that both texts have n-grams of."""
    ours_nR, theirs_nR, right_nR = sums_SR[SPLIT:].reshape(CHARACTERS, 3, -1).transpose(1, 0, 2)
    counted_nR = (ours_nR > 0) & (theirs_nR > 0)
    orders_R = counted_nR.sum(0)
    precision_R, recall_R = (np.where(counted_nR, right_nR / all_nR, 0.0).sum(0) / orders_R for all_nR in (ours_nR, theirs_nR))
    return np.nan_to_num((1 + BETA**2) * precision_R * recall_R / (BETA**2 * precision_R + recall_R))


def each_chrf(scores_NS: np.ndarray) -> np.ndarray:
    """chrF of each row by itself, (N,)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return _chrf(np.asarray(scores_NS, dtype=np.float64).T)


@cache
def _measures() -> tuple[BLEU, CHRF]:
    from sacrebleu.metrics import BLEU, CHRF  # imported where it is used: a served model measures nothing

    return BLEU(max_ngram_order=ORDERS, tokenize="13a"), CHRF(char_order=CHARACTERS, beta=BETA)


TRANSLATION: Mapping[str, Metric] = {"bleu": _of_sums(_bleu), "chrf": _of_sums(_chrf)}
