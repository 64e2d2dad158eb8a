"""What an evaluation of several classes a row shows beyond its metrics: each class, calibration, the most confident mistakes.

Shapes in names: N test rows, K classes; answers are (N, 2, K), probabilities and what is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ml import pictures
from ml.calibration import reliability
from ml.evidence import bootstrap
from ml.label_sets import shown
from ml.metrics import expected_calibration_error, log_loss
from ml.multi_label_metrics import PER_CLASS


def details(
    table: pd.DataFrame,
    targets_NK: np.ndarray,
    model_N2K: np.ndarray,
    before_N2K: np.ndarray,
    classes: tuple[str, ...],
    *,
    temperature: float,
    mistakes: int,
    options: Mapping[str, Any],
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The facts, and the predictions of each row. `before_N2K` is what the model says without its temperature."""
    groups_N = table["group"].to_numpy() if "group" in table else None
    predictions = _predictions(table, targets_NK, model_N2K, classes)
    return {
        "classes": classes,
        "per_class": _per_class(targets_NK, model_N2K, classes, groups_N, options),
        "calibration": {"temperature": temperature, "before": _calibration(targets_NK, before_N2K[:, 0]), "after": _calibration(targets_NK, model_N2K[:, 0])},
        "mistakes": _mistakes(predictions, targets_NK, model_N2K, classes, mistakes),
    }, predictions


def draw(facts: Mapping[str, Any]) -> dict[str, Figure]:
    """Pictures of `details` as plain data."""
    return {"reliability": pictures.reliability(facts["calibration"]), "per_class": pictures.per_class(facts["per_class"])}


def _calibration(targets_NK: np.ndarray, probabilities_NK: np.ndarray) -> dict[str, Any]:
    """Each pair of a row and a class is one of two cases."""
    targets, present = targets_NK.ravel().astype(np.int64), probabilities_NK.ravel().astype(np.float64)
    cases = np.stack([1 - present, present], axis=1)
    measured = {one.__name__: one(targets, cases) for one in (expected_calibration_error, log_loss)}
    return {"curve": reliability(targets, cases)} | measured


def _per_class(
    targets_NK: np.ndarray, model_N2K: np.ndarray, classes: tuple[str, ...], groups_N: np.ndarray | None, options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    scores_NS = model_N2K.reshape(len(model_N2K), -1)
    measured = bootstrap(PER_CLASS, targets_NK, {"model": scores_NS}, groups_N=groups_N, **options)
    support_K, told_K = (targets_NK == 1).sum(0), model_N2K[:, 1].sum(0).astype(np.int64)
    columns = {name: measured.intervals("model", name, told_K if name == "precision" else support_K) for name in PER_CLASS}
    return [{"class": name, "support": int(support_K[k])} | {metric: column[k] for metric, column in columns.items()} for k, name in enumerate(classes)]


def _predictions(table: pd.DataFrame, targets_NK: np.ndarray, model_N2K: np.ndarray, classes: tuple[str, ...]) -> pd.DataFrame:
    def named(chosen_NK: np.ndarray) -> list[str]:
        return [shown(tuple(classes[k] for k in np.flatnonzero(one))) for one in chosen_NK]

    frame = pd.DataFrame(
        {
            "row_id": table["row_id"].to_numpy(),
            "key": table["key"].to_numpy(),
            "label": named(targets_NK == 1),
            "predicted": named(model_N2K[:, 1] > 0),
        }
    )
    return pd.concat([frame, pd.DataFrame(model_N2K[:, 0], columns=[f"p_{name}" for name in classes])], axis=1)


def _mistakes(predictions: pd.DataFrame, targets_NK: np.ndarray, model_N2K: np.ndarray, classes: tuple[str, ...], count: int) -> list[dict[str, Any]]:
    """The rows with the surest wrong class, `about`, which was told with the `probability` or missed with that of its absence."""
    told_NK = model_N2K[:, 1] > 0
    sure_NK = np.where(told_NK != (targets_NK == 1), np.where(told_NK, model_N2K[:, 0], 1 - model_N2K[:, 0]), -1.0)
    worst_N, sure_N = sure_NK.argmax(1), sure_NK.max(1)
    rows = [row for row in np.argsort(-sure_N, kind="stable")[:count] if sure_N[row] >= 0]
    records = predictions.loc[rows, ["row_id", "key", "label", "predicted"]].to_dict("records")
    return [
        {"row": int(row)} | record | {"about": classes[worst_N[row]], "probability": float(sure_N[row])} for row, record in zip(rows, records, strict=True)
    ]
