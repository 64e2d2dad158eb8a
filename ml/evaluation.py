"""What a model is worth on the test rows: metrics with intervals, against its alternatives, by class and by slice.

Shapes in names: N test rows, K classes. An *arm* is one way to predict: "model", "baseline" (the same network fine-tuned
from random weights), "classical" (the simple alternative), "majority" (the commonest class).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from ml.calibration import reliability
from ml.contracts import InputError
from ml.evidence import Bootstrap, Estimate, bootstrap
from ml.metrics import LOWER_IS_BETTER, PER_CLASS, Metric

SLICES = 100
"""Slices shown at most, the largest first."""
SURE = 30
"""Rows below which a slice says little."""


@dataclass(frozen=True)
class Evaluation:
    """The evidence of one run; see `to_dict` for what of it is JSON. `mistakes` are test rows, the most confident first."""

    n: int
    classes: tuple[str, ...]
    primary: str
    confidence: float
    metrics: Mapping[str, Mapping[str, Estimate]]
    differences: Mapping[str, Mapping[str, Estimate]]
    words: list[str]
    per_class: list[dict[str, Any]]
    confusion_KK: np.ndarray
    calibration: Mapping[str, Any]
    slices: list[dict[str, Any]]
    mistakes: list[dict[str, Any]]
    predictions: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """Everything but the predictions as plain JSON, NaN as None. `confusion[i][j]`: rows of class i predicted as j."""
        names = ("n", "classes", "primary", "confidence", "metrics", "differences", "words", "per_class", "calibration", "slices", "mistakes")
        return plain({name: getattr(self, name) for name in names} | {"confusion": self.confusion_KK})


def evaluate(
    table: pd.DataFrame,
    targets_N: np.ndarray,
    arms: Mapping[str, np.ndarray],
    classes: Sequence[str],
    metrics: Mapping[str, Metric],
    primary: str,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    mistakes: int = 24,
    seed: int = 0,
    uncalibrated_NK: np.ndarray | None = None,
    temperature: float = 1.0,
) -> Evaluation:
    """Measures the arms' probabilities_NK; "model" must be among them.

    `table` holds the test rows: row_id, key, and where there are any group and slice. Near-duplicates of one group are
    resampled together. `uncalibrated_NK` is what the model says without its temperature.
    """
    targets_N, classes = np.asarray(targets_N), tuple(classes)
    _check(targets_N, arms, classes)
    options = {"resamples": resamples, "confidence": confidence, "seed": seed}
    groups_N = table["group"].to_numpy() if "group" in table else None
    model_NK = arms["model"]
    measured = bootstrap(metrics, targets_N, arms, groups_N=groups_N, **options)
    differences = {arm: {name: measured.difference("model", arm, name) for name in metrics} for arm in arms if arm != "model"}
    predictions = _predictions(table, targets_N, model_NK, classes)
    before_NK = model_NK if uncalibrated_NK is None else uncalibrated_NK
    return Evaluation(
        n=len(targets_N),
        classes=classes,
        primary=primary,
        confidence=confidence,
        metrics={arm: {name: measured.interval(arm, name) for name in metrics} for arm in arms},
        differences=differences,
        words=[words(arm, primary, difference[primary]) for arm, difference in differences.items()],
        per_class=_per_class(targets_N, model_NK, classes, groups_N, options),
        confusion_KK=_confusion(targets_N, model_NK),
        calibration={
            "temperature": temperature,
            "before": {"curve": reliability(targets_N, before_NK)} | _calibration(metrics, targets_N, before_NK),
            "after": {"curve": reliability(targets_N, model_NK)} | _calibration(metrics, targets_N, model_NK),
        },
        slices=_slices(table, targets_N, arms, metrics[primary], groups_N, options),
        mistakes=_mistakes(predictions, mistakes),
        predictions=predictions,
    )


def words(arm: str, metric: str, difference: Estimate) -> str:
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
        "majority": {
            1: f"The model beats always naming the commonest class: {measured}.",
            0: f"The model is not shown to beat always naming the commonest class: {measured}. It is of no use yet.",
            -1: f"The model is worse than always naming the commonest class: {measured}. It is of no use yet.",
        },
    }.get(arm, {1: f"The model beats {arm}: {measured}.", 0: f"The model and {arm} cannot be told apart: {measured}.", -1: f"{arm} wins: {measured}."})[sign]


def points(difference: Estimate, metric: str) -> str:
    """A difference with its interval: in percentage points, or in nats for the log-loss."""
    if not difference.finite:
        return "could not be compared"
    scale, unit = (1, "nats") if metric == "log_loss" else (100, "points")
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


def _check(targets_N: np.ndarray, arms: Mapping[str, np.ndarray], classes: tuple[str, ...]) -> None:
    for arm, probabilities_NK in arms.items():
        if probabilities_NK.shape != (len(targets_N), len(classes)):
            raise ValueError(f"{arm}: expected probabilities of shape {(len(targets_N), len(classes))}, found {probabilities_NK.shape}")
        bad = int((~np.isfinite(probabilities_NK)).any(1).sum())
        if bad:
            raise InputError(f"{arm}: the probabilities of {bad} of {len(targets_N)} rows are not finite. Lower the learning rate, and train again.")


def _calibration(metrics: Mapping[str, Metric], targets_N: np.ndarray, probabilities_NK: np.ndarray) -> dict[str, float]:
    return {name: metrics[name](targets_N, probabilities_NK) for name in ("expected_calibration_error", "log_loss") if name in metrics}


def _confusion(targets_N: np.ndarray, probabilities_NK: np.ndarray) -> np.ndarray:
    classes = probabilities_NK.shape[1]
    return np.bincount(targets_N * classes + probabilities_NK.argmax(1), minlength=classes**2).reshape(classes, classes)


def _per_class(
    targets_N: np.ndarray, probabilities_NK: np.ndarray, classes: tuple[str, ...], groups_N: np.ndarray | None, options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    measured: Bootstrap = bootstrap(PER_CLASS, targets_N, {"model": probabilities_NK}, groups_N=groups_N, **options)
    support_K = np.bincount(targets_N, minlength=len(classes))
    predicted_K = np.bincount(probabilities_NK.argmax(1), minlength=len(classes))
    rows = {"precision": predicted_K, "recall": support_K, "f1": support_K}
    columns = {name: measured.intervals("model", name, rows[name]) for name in PER_CLASS}
    return [
        {"class": classes[k], "support": int(support_K[k])} | {name: column[k] for name, column in columns.items()} for k in range(len(classes))
    ]


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
        own = {arm: probabilities_NK[inside_N] for arm, probabilities_NK in arms.items()}
        groups_n = None if groups_N is None else groups_N[inside_N]
        measured = bootstrap({"primary": metric}, targets_N[inside_N], own, groups_N=groups_n, **options)
        rows = int(inside_N.sum())
        found.append({"slice": str(name), "n": rows, "sure": rows >= SURE} | {arm: measured.interval(arm, "primary") for arm in arms})
    return found


def _predictions(table: pd.DataFrame, targets_N: np.ndarray, probabilities_NK: np.ndarray, classes: tuple[str, ...]) -> pd.DataFrame:
    predicted_N = probabilities_NK.argmax(1)
    names = np.array(classes, dtype=object)
    frame = pd.DataFrame(
        {
            "row_id": table["row_id"].to_numpy(),
            "key": table["key"].to_numpy(),
            "label": names[targets_N],
            "predicted": names[predicted_N],
            "probability": probabilities_NK.max(1),
        }
    )
    return pd.concat([frame, pd.DataFrame(probabilities_NK, columns=[f"p_{name}" for name in classes])], axis=1)


def _mistakes(predictions: pd.DataFrame, count: int) -> list[dict[str, Any]]:
    wrong = predictions[predictions["label"] != predictions["predicted"]].sort_values("probability", ascending=False, kind="stable").head(count)
    columns = ["row_id", "key", "label", "predicted", "probability"]
    return [{"row": int(row)} | record for row, record in zip(wrong.index, wrong[columns].to_dict("records"), strict=True)]
