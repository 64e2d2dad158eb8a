"""How well answers agree with the truth, as the official scripts of SQuAD v1.1 and v2 measure it (Rajpurkar et al. 2016, 2018).

Metrics are functions of statistics of each row, (N, S) with the columns of STATISTICS. N rows, R resamples.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from ml.metrics import Metric

QUESTION_WORDS = ("what", "who", "when", "where", "which", "why", "how")
STATISTICS = ("exact", "f1", "answerable")
EXACT, F1, ANSWERABLE = range(len(STATISTICS))

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """In small letters, without punctuation and English articles, single-spaced."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, truth: str) -> float:
    """1 where both are the same once normalised."""
    return float(normalise(answer) == normalise(truth))


def token_f1(answer: str, truth: str) -> float:
    """Harmonic mean of the shares of the answer's and of the truth's words that they have in common; where one is empty, 1 if both are."""
    ours, theirs = normalise(answer).split(), normalise(truth).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = (Counter(ours) & Counter(theirs)).total()
    return 2 * common / (len(ours) + len(theirs))


def statistics(answers: Sequence[str], truths: Sequence[Sequence[str]]) -> np.ndarray:
    """(N, S) float64: the best match of each answer with one of its truths; no truth means that no answer ("") is right."""
    rows = np.zeros((len(answers), len(STATISTICS)))
    for row, (answer, accepted) in enumerate(zip(answers, truths, strict=True)):
        known = [truth for truth in accepted if normalise(truth)] or [""]  # as the official script has it
        rows[row] = max(exact_match(answer, truth) for truth in known), max(token_f1(answer, truth) for truth in known), bool(accepted)
    return rows


def question_word(question: str) -> str:
    """The first of QUESTION_WORDS in a question, "" where there is none."""
    words = re.findall(r"[^\W\d_]+", question.lower())
    return next((word for word in words if word in QUESTION_WORDS), "who" if {"whose", "whom"} & set(words) else "")


def _mean(column: int, *, answerable: bool) -> Metric:
    """The mean of a statistic over all rows, or over those that have an answer; NaN where there is none."""

    def measure(targets_N: np.ndarray, scores_NS: np.ndarray, weights_NR: np.ndarray | None = None) -> float | np.ndarray:
        scores_NS = np.asarray(scores_NS, dtype=np.float64)
        weights = np.ones((len(scores_NS), 1)) if weights_NR is None else weights_NR
        counts_N = scores_NS[:, ANSWERABLE] if answerable else np.ones(len(scores_NS))
        with np.errstate(divide="ignore", invalid="ignore"):
            values = (scores_NS[:, column] * counts_N) @ weights / (counts_N @ weights)
        return values if weights_NR is not None else float(values[0])

    return measure


ANSWERS: Mapping[str, Metric] = {
    "f1": _mean(F1, answerable=False),
    "exact_match": _mean(EXACT, answerable=False),
    "answerable_f1": _mean(F1, answerable=True),
    "answerable_exact_match": _mean(EXACT, answerable=True),
}
"""By name; those of answerable rows leave out the questions to which no answer is right."""
