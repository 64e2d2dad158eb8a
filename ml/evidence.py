"""How sure a measured number is: bootstrap intervals, and paired differences on the same resamples.

All metrics and all models are measured on one set of resamples of the rows (or of whole groups, where near-duplicates
are not independent), so that a difference of two models is an interval of its own (Efron and Tibshirani 1993).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ml.contracts import InputError
from ml.metrics import Metric, expected_calibration_error

CHUNK = 4_000_000
"""Weights held at once (rows × resamples), 8 bytes each."""
INFLATED = frozenset({expected_calibration_error})
"""Metrics that are larger on a resample than on the sample: a mean of absolute gaps grows with noise."""


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, measured on n rows. NaN where the rows do not say."""

    value: float
    low: float
    high: float
    n: int

    @property
    def finite(self) -> bool:
        return all(math.isfinite(number) for number in (self.value, self.low, self.high))


@dataclass(frozen=True)
class Bootstrap:
    """Every metric of every model on the sample (`values`) and on R resamples of it (`draws`), by (model, metric).

    Values are floats, or (K,) for a metric of each class; draws have an axis of R in front.
    """

    values: Mapping[tuple[str, str], np.ndarray]
    draws: Mapping[tuple[str, str], np.ndarray]
    inflated: frozenset[str]
    n: int
    confidence: float

    def interval(self, model: str, metric: str) -> Estimate:
        """The percentile interval of one metric of one model."""
        return self._estimate(self.values[model, metric], self.draws[model, metric], metric, self.n)

    def difference(self, a: str, b: str, metric: str) -> Estimate:
        """The paired percentile interval of a's metric minus b's."""
        values, draws = self.values[a, metric] - self.values[b, metric], self.draws[a, metric] - self.draws[b, metric]
        return self._estimate(values, draws, metric, self.n)

    def intervals(self, model: str, metric: str, n_K: np.ndarray) -> list[Estimate]:
        """As `interval`, for a metric of each class, measured on n_K rows."""
        values, draws = self.values[model, metric], self.draws[model, metric]
        return [self._estimate(values[k], draws[:, k], metric, int(n_K[k])) for k in range(len(values))]

    def _estimate(self, value: np.ndarray, draws_R: np.ndarray, metric: str, n: int) -> Estimate:
        draws_R = draws_R[np.isfinite(draws_R)]
        if not np.isfinite(value) or len(draws_R) == 0:
            return Estimate(float(value), math.nan, math.nan, n)
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(draws_R, [tail, 1 - tail])
        if metric in self.inflated:
            shift = value - draws_R.mean()
            floor = 0.0 if draws_R.min() >= 0 else -math.inf
            low, high = max(low + shift, floor), max(high + shift, floor)
        return Estimate(float(value), float(low), float(high), n)


def bootstrap(
    metrics: Mapping[str, Metric],
    targets_N: np.ndarray,
    models: Mapping[str, np.ndarray],
    *,
    resamples: int,
    confidence: float = 0.95,
    seed: int = 0,
    groups_N: np.ndarray | None = None,
) -> Bootstrap:
    """Measures each model's probabilities_NK by each metric on the rows and on the same `resamples` of them.

    With `groups_N`, whole groups are drawn (cluster bootstrap). Depends on the arguments and the seed alone.
    """
    targets_N = np.asarray(targets_N)
    if len(targets_N) == 0:
        raise InputError("there is no labelled row to measure on. Give labelled test data, or a larger data.test_fraction.")
    pairs = [(model, metric) for model in models for metric in metrics]
    values = {(model, metric): np.asarray(metrics[metric](targets_N, models[model])) for model, metric in pairs}
    parts: dict[tuple[str, str], list[np.ndarray]] = {pair: [] for pair in pairs}
    for weights_NR in _resample(len(targets_N), resamples, seed, groups_N):
        for model, metric in pairs:
            parts[model, metric].append(metrics[metric](targets_N, models[model], weights_NR))
    draws = {pair: np.concatenate(part) for pair, part in parts.items()}
    inflated = frozenset(name for name, metric in metrics.items() if metric in INFLATED)
    return Bootstrap(values, draws, inflated, len(targets_N), confidence)


def interval(metric: Metric, targets_N: np.ndarray, probabilities_NK: np.ndarray, **options: object) -> Estimate:
    """One metric of one model with its interval; options as those of `bootstrap`."""
    return bootstrap({"metric": metric}, targets_N, {"a": probabilities_NK}, **options).interval("a", "metric")  # type: ignore[arg-type]


def paired(metric: Metric, targets_N: np.ndarray, a_NK: np.ndarray, b_NK: np.ndarray, **options: object) -> Estimate:
    """The difference a − b of one metric on the same resamples; options as those of `bootstrap`."""
    return bootstrap({"metric": metric}, targets_N, {"a": a_NK, "b": b_NK}, **options).difference("a", "b", "metric")  # type: ignore[arg-type]


def _resample(rows: int, resamples: int, seed: int, groups_N: np.ndarray | None) -> Iterator[np.ndarray]:
    """Chunks of weights_NR: how often each row is in each resample."""
    member_N = np.arange(rows) if groups_N is None else np.unique(groups_N, return_inverse=True)[1].ravel()
    units = int(member_N.max()) + 1
    generator = np.random.default_rng(seed)
    step = max(1, CHUNK // rows)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = generator.integers(0, units, size=(size, units)) + np.arange(size)[:, None] * units
        counts_RU = np.bincount(drawn.ravel(), minlength=size * units).reshape(size, units)
        yield np.ascontiguousarray(counts_RU.T[member_N], dtype=np.float64)
