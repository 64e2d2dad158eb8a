"""Metrics of language models: functions of (targets_N, scores_NS), S being what LANGUAGE_SCORES names.

They are sums over all texts before a ratio is taken, as a corpus is measured; of `weights_NR` as those of ml/metrics.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ml.metrics import Metric

LANGUAGE_SCORES = ("nats", "tokens", "right", "bytes")
"""Of each text: the sum of −log of its tokens' probabilities, its tokens, those guessed right, and its bytes."""


def _of_sums(metric: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> Metric:
    def measure(targets_N: np.ndarray, scores_NS: np.ndarray, weights_NR: np.ndarray | None = None) -> float | np.ndarray:
        weights = np.ones((len(scores_NS), 1)) if weights_NR is None else weights_NR
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            values_R = metric(*(np.asarray(scores_NS, np.float64).T @ weights))
        return values_R if weights_NR is not None else float(values_R[0])

    return measure


LANGUAGE: Mapping[str, Metric] = {
    "bits_per_byte": _of_sums(lambda nats, tokens, right, size: nats / np.log(2) / size),
    "loss": _of_sums(lambda nats, tokens, right, size: nats / tokens),
    "perplexity": _of_sums(lambda nats, tokens, right, size: np.exp(nats / tokens)),
    "accuracy": _of_sums(lambda nats, tokens, right, size: right / tokens),
}
"""Bits per byte can be compared between tokenizers; loss, perplexity and accuracy are of a token."""
