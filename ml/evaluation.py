"""What a model is worth on the test rows: metrics with intervals, against its alternatives, by class and by slice.

Shapes in names: N test rows, S numbers of a row that metrics read: its classes' probabilities, or statistics. An *arm* is one way to answer:
"model", "baseline" (the same network fine-tuned from random weights), "classical" (the simple alternative), "int8" (the model
with weights of 8 bits), "trivial" (what takes no model).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from ml.contracts import InputError
from ml.evidence import Estimate, bootstrap
from ml.metrics import LOWER_IS_BETTER, UNITS, Metric

SLICES = 100
"""Slices shown at most, the largest first."""
SURE = 30
"""Rows below which a slice says little."""


@dataclass(frozen=True)
class Evaluation:
    """The evidence of one run; `details` is what its head alone has to tell. All but the predictions is plain data with `to_dict`."""

    n: int
    primary: str
    confidence: float
    metrics: Mapping[str, Mapping[str, Estimate]]
    differences: Mapping[str, Mapping[str, Estimate]]
    words: list[str]
    slices: list[dict[str, Any]]
    details: Mapping[str, Any]
    predictions: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """Everything but the predictions as plain JSON, NaN as None, the details beside the rest."""
        names = ("n", "primary", "confidence", "metrics", "differences", "words", "slices")
        return plain({name: getattr(self, name) for name in names} | dict(self.details))


Details = Callable[[Mapping[str, Any]], tuple[Mapping[str, Any], pd.DataFrame]]
"""Given the bootstrap's options: what only one kind of head tells, and its predictions."""


def evaluate(
    table: pd.DataFrame,
    targets_N: np.ndarray,
    arms: Mapping[str, np.ndarray],
    metrics: Mapping[str, Metric],
    primary: str,
    details: Details,
    *,
    trivial: str = "",
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Evaluation:
    """Measures the arms' scores (N, S), which `metrics` read; "model" must be among them.

    `table` holds the test rows: row_id, key, and where there are any group and slice. Near-duplicates of one group are
    resampled together. `trivial` says in words what the arm of that name does.
    """
    targets_N = np.asarray(targets_N)
    _check(targets_N, arms)
    options = {"resamples": resamples, "confidence": confidence, "seed": seed}
    groups_N = table["group"].to_numpy() if "group" in table else None
    measured = bootstrap(metrics, targets_N, arms, groups_N=groups_N, **options)
    differences = {arm: {name: measured.difference("model", arm, name) for name in metrics} for arm in arms if arm != "model"}
    found, predictions = details(options)
    return Evaluation(
        n=len(targets_N),
        primary=primary,
        confidence=confidence,
        metrics={arm: {name: measured.interval(arm, name) for name in metrics} for arm in arms},
        differences=differences,
        words=[words(arm, primary, difference[primary], trivial) for arm, difference in differences.items()],
        slices=_slices(table, targets_N, arms, metrics[primary], groups_N, options),
        details=found,
        predictions=predictions,
    )


def words(arm: str, metric: str, difference: Estimate, trivial: str = "") -> str:
    """What the difference model − arm means, said plainly."""
    sign = 0 if not difference.finite or difference.low <= 0 <= difference.high else int(math.copysign(1, difference.low))
    sign = -sign if metric in LOWER_IS_BETTER else sign
    name = metric.replace("_", " ")
    measured = f"{name} {points(difference, metric)} on {difference.n:,} test rows"
    return {
        "baseline": {
            1: f"Pretraining was worth it: {measured}, against the same network from random weights.",
            0: f"Pretraining made no difference that this test can show: {measured}, against the same network from random weights.",
            -1: f"Pretraining was not worth it: {measured}, against the same network from random weights.",
        },
        "classical": {
            1: f"The model beats the simple alternative: {measured}.",
            0: f"The model and the simple alternative cannot be told apart: {measured}. The simple one costs less.",
            -1: f"The simple alternative wins: {measured}. Use it, or give the model more labels or training.",
        },
        "int8": {
            1: f"Weights of 8 bits do harm: {measured}, for the model with its own.",
            0: f"Weights of 8 bits do no harm that this test can show: {measured}, for the model with its own.",
            -1: f"Weights of 8 bits do better: {measured}, for the model with its own.",
        },
        "trivial": {
            1: f"The model beats {trivial}: {measured}.",
            0: f"The model is not shown to beat {trivial}: {measured}. It is of no use yet.",
            -1: f"The model is worse than {trivial}: {measured}. It is of no use yet.",
        },
    }.get(arm, {1: f"The model beats {arm}: {measured}.", 0: f"The model and {arm} cannot be told apart: {measured}.", -1: f"{arm} wins: {measured}."})[sign]


def points(difference: Estimate, metric: str) -> str:
    """A difference with its interval: in percentage points, or in the metric's own unit."""
    if not difference.finite:
        return "could not be compared"
    scale, unit = (1, UNITS[metric]) if metric in UNITS else (100, "points")
    value, low, high = (f"{number * scale:+.{3 if scale == 1 else 1}f}".replace("-", "−") for number in (difference.value, difference.low, difference.high))
    return f"{value} {unit} [{low}, {high}]"


def plain(value: Any) -> Any:
    """As JSON has it: numpy and dataclasses unwrapped, what is not finite as None."""
    if isinstance(value, Estimate):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _check(targets_N: np.ndarray, arms: Mapping[str, np.ndarray]) -> None:
    for arm, scores_NS in arms.items():
        if scores_NS.ndim != 2 or len(scores_NS) != len(targets_N) or scores_NS.shape[1] != arms["model"].shape[1]:
            raise ValueError(f"{arm}: expected scores of shape {(len(targets_N), arms['model'].shape[1])}, found {scores_NS.shape}")
        bad = int((~np.isfinite(scores_NS)).any(1).sum())
        if bad:
            raise InputError(f"{arm}: the predictions of {bad} of {len(targets_N)} rows are not finite. Lower the learning rate, and train again.")


def _slices(
    table: pd.DataFrame, targets_N: np.ndarray, arms: Mapping[str, np.ndarray], metric: Metric, groups_N: np.ndarray | None, options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The primary metric of every arm on each slice, the largest slices first; `sure` says that it has SURE rows."""
    if "slice" not in table:
        return []
    names_N = table["slice"].to_numpy()
    found = []
    for name in table["slice"].value_counts().index[:SLICES]:
        inside_N = names_N == name
        own = {arm: scores_NS[inside_N] for arm, scores_NS in arms.items()}
        groups_n = None if groups_N is None else groups_N[inside_N]
        measured = bootstrap({"primary": metric}, targets_N[inside_N], own, groups_N=groups_n, **options)
        rows = int(inside_N.sum())
        found.append({"slice": str(name), "n": rows, "sure": rows >= SURE} | {arm: measured.interval(arm, "primary") for arm in arms})
    return found
