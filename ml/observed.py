"""What a model makes of items: the features that its backbone gives and the probabilities that it tells, for comparing served items with tested ones.

N rows, D features, K numbers that are told of a row (probabilities of classes; absent for heads that tell something else).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ml.contracts import InputError
from ml.predictor import Embedder, Predictor, primary

INPUTS, PREDICTIONS = "inputs", "predictions"
KEPT = 1000
"""Rows of a reference, at most."""


def of_rows(predictor: Predictor, rows: Mapping[str, Any], answers: Sequence[Any]) -> dict[str, np.ndarray]:
    """By name, inputs (N, D) and predictions (N, K) float32 of stored rows and what was told of them."""
    return {INPUTS: _embedder(predictor).embed_arrays(primary(rows))} | _predictions(predictor, answers)


def of_values(predictor: Predictor, values: Sequence[Any]) -> dict[str, np.ndarray]:
    """The same of items as users send them, those that cannot be used left out."""
    answers, errors = predictor.answers_of(values, files=False)
    usable = [value for value, error in zip(values, errors, strict=True) if error is None]
    frame = _embedder(predictor).predict(usable, files=False).drop(columns="error")
    return {INPUTS: frame.to_numpy(np.float32)} | _predictions(predictor, answers)


def chosen(count: int, seed: int) -> np.ndarray:
    """The places of at most KEPT of `count` rows, in order."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:KEPT])


def save(path: Path, found: Mapping[str, np.ndarray]) -> None:
    np.savez_compressed(path, **found)


def load(path: Path) -> dict[str, np.ndarray]:
    """What `save` wrote; raises InputError for anything else."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files if name in (INPUTS, PREDICTIONS)}
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, BadZipFile) as error:
        raise InputError(f"{path.name} cannot be read as a reference: {error}") from None
    if INPUTS not in found or any(array.ndim != 2 or array.dtype.kind != "f" for array in found.values()):
        raise InputError(f"{path.name} is no reference: expected arrays of numbers, `{INPUTS}` among them")
    return found


def _embedder(predictor: Predictor) -> Embedder:
    return Embedder(predictor.model.backbone, predictor.spec, predictor.device)


def _predictions(predictor: Predictor, answers: Any) -> dict[str, np.ndarray]:
    """Probabilities, where those are what is told."""
    if not predictor.model.head.labels or not len(answers):
        return {}
    numbers = np.asarray(answers, np.float32)
    return {PREDICTIONS: numbers if numbers.ndim == 2 else numbers[:, 0]}  # of several labels: probabilities, then what is told
