"""What an evaluation of classes shows beyond its metrics: each class, calibration, confusion, the most confident mistakes.

Shapes in names: N test rows, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ml import pictures
from ml.calibration import reliability
from ml.evidence import Bootstrap, bootstrap
from ml.metrics import CLASSIFICATION, PER_CLASS


def details(
    table: pd.DataFrame,
    targets_N: np.ndarray,
    model_NK: np.ndarray,
    before_NK: np.ndarray,
    classes: tuple[str, ...],
    *,
    temperature: float,
    mistakes: int,
    options: Mapping[str, Any],
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The facts, and the predictions of each row. `before_NK` is what the model says without its temperature.

    `confusion[i][j]`: rows of class i predicted as j. `mistakes` count from the first of the test rows, the most confident first.
    """
    groups_N = table["group"].to_numpy() if "group" in table else None
    predictions = _predictions(table, targets_N, model_NK, classes)
    return {
        "classes": classes,
        "per_class": _per_class(targets_N, model_NK, classes, groups_N, options),
        "confusion": _confusion(targets_N, model_NK),
        "calibration": {
            "temperature": temperature,
            "before": {"curve": reliability(targets_N, before_NK)} | _calibration(targets_N, before_NK),
            "after": {"curve": reliability(targets_N, model_NK)} | _calibration(targets_N, model_NK),
        },
        "mistakes": _mistakes(predictions, mistakes),
    }, predictions


def draw(facts: Mapping[str, Any]) -> dict[str, Figure]:
    """Pictures of `details` as plain data."""
    return {
        "confusion": pictures.confusion(np.array(facts["confusion"]), facts["classes"]),
        "reliability": pictures.reliability(facts["calibration"]),
        "per_class": pictures.per_class(facts["per_class"]),
    }


def _calibration(targets_N: np.ndarray, probabilities_NK: np.ndarray) -> dict[str, float]:
    return {name: CLASSIFICATION[name](targets_N, probabilities_NK) for name in ("expected_calibration_error", "log_loss")}


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
