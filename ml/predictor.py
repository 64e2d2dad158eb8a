"""A trained model that takes what a user has: pictures or texts in; labels with probabilities out.

Evaluation, batch scoring and serving all go through this file, so that they agree.
Shapes in names: B batch, N rows, K classes, D features.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ml.backbones import BACKBONES
from ml.choice import choice
from ml.contracts import DataSpec, InputError
from ml.modalities import MODALITIES
from ml.model import Model, load_model, read_described, read_spec
from ml.ragged import Ragged

BATCH = 256
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Predictor:
    """A model in evaluation mode with its preprocessing and its temperature (the divisor of its outputs)."""

    model: Model
    spec: DataSpec
    temperature: float = 1.0
    device: torch.device = CPU

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> Predictor:
        """From a folder of model.safetensors and model.json; nothing is unpickled."""
        model, info = load_model(Path(folder))
        device = torch.device(device)
        return cls(model.to(device).eval(), info.spec, info.temperature, device)

    @property
    def modality(self) -> Any:
        """The modality with its options."""
        return _modality(self.spec)

    def reads(self, spec: DataSpec) -> bool:
        """Whether rows stored for `spec` are what this model reads: decoded by the same rules, into the same tokens."""
        return dict(self.spec.options) == dict(spec.options) and self.spec.statistics.get("tokenizer") == spec.statistics.get("tokenizer")

    def outputs(self, arrays: np.ndarray | Ragged, batch_size: int = BATCH) -> np.ndarray:
        """The head's raw outputs (N, K) float32 for stored arrays, before the temperature."""
        return _batched(self.model, arrays, self.spec, self.device, batch_size)

    def probabilities(self, outputs_NK: np.ndarray) -> np.ndarray:
        """Probabilities (N, K) float32 of raw outputs, at the model's temperature."""
        return self.model.head.probabilities(torch.from_numpy(outputs_NK) / self.temperature).numpy()

    def predict_arrays(self, arrays: np.ndarray | Ragged, batch_size: int = BATCH) -> np.ndarray:
        """Probabilities (N, K) float32 for stored rows."""
        return self.probabilities(self.outputs(arrays, batch_size))

    def predict(self, values: Sequence[Any], batch_size: int = BATCH, files: bool = True) -> pd.DataFrame:
        """One row for each value: label, probability, p_<class> for each class, and error, the reason where it is unusable.

        A value is what the modality serves: for images bytes, base64 text or, where `files`, a path; for text a string. A bad one costs
        its own row only.
        """
        probabilities_NK, errors = _scored(values, self.spec, batch_size, files, self.predict_arrays, len(self.spec.classes))
        bad_N = np.array([error is not None for error in errors], dtype=bool)
        top_N = np.where(bad_N, -1, np.nan_to_num(probabilities_NK).argmax(1))
        frame = pd.DataFrame(probabilities_NK, columns=[f"p_{name}" for name in self.spec.classes])
        frame.insert(0, "label", pd.Series([None if k < 0 else self.spec.classes[k] for k in top_N], dtype=object))
        frame.insert(1, "probability", frame.iloc[:, 1:].max(axis=1).astype(np.float32))
        return frame.assign(error=pd.Series(errors, dtype=object))


@dataclass(frozen=True)
class Embedder:
    """A pretrained backbone in evaluation mode with its preprocessing."""

    backbone: Any
    spec: DataSpec
    device: torch.device = CPU

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> Embedder:
        """From a folder of backbone.safetensors and backbone.json; nothing is unpickled."""
        described, tensors = read_described(Path(folder), "backbone")
        try:
            spec = read_spec(described["spec"])
            backbone = choice("backbone", BACKBONES)(**described["backbone"]).make(spec)
            backbone.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{folder} does not hold a backbone of ours: {' '.join(str(error).split())}") from None
        device = torch.device(device)
        return cls(backbone.to(device).eval(), spec, device)

    def embed_arrays(self, arrays: np.ndarray | Ragged, batch_size: int = BATCH) -> np.ndarray:
        """Pooled features (N, D) float32 of stored rows."""
        return _batched(lambda inputs: self.backbone.encode(inputs).pooled_BD, arrays, self.spec, self.device, batch_size)

    def predict(self, values: Sequence[Any], batch_size: int = BATCH, files: bool = True) -> pd.DataFrame:
        """One row for each value: e_0 ... e_<D − 1> and error; values as those of `Predictor.predict`."""
        features_ND, errors = _scored(values, self.spec, batch_size, files, self.embed_arrays, self.backbone.width)
        frame = pd.DataFrame(features_ND, columns=[f"e_{d}" for d in range(features_ND.shape[1])])
        return frame.assign(error=pd.Series(errors, dtype=object))


def load(folder: str | Path, device: str | torch.device = "cpu") -> Predictor | Embedder:
    """The model or the backbone that a folder holds."""
    return (Predictor if (Path(folder) / "model.json").exists() else Embedder).load(folder, device)


def _batched(forward: Callable[[Any], Tensor], arrays: np.ndarray | Ragged, spec: DataSpec, device: torch.device, batch_size: int) -> np.ndarray:
    modality = _modality(spec)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(arrays), batch_size):
            array_B = torch.from_numpy(np.array(modality.collate(arrays[start : start + batch_size], spec))).to(device)
            parts.append(forward(modality.encode(array_B, spec)).float().cpu().numpy())
    return np.concatenate(parts)


def _scored(
    values: Sequence[Any], spec: DataSpec, batch_size: int, files: bool, score: Callable[[np.ndarray | Ragged], np.ndarray], width: int
) -> tuple[np.ndarray, list[str | None]]:
    """Scores (N, width) float32, NaN where a value is unusable, and the reasons, None where it is not."""
    scores = np.full((len(values), width), np.nan, dtype=np.float32)
    errors: list[str | None] = []
    for start, arrays, reasons in _decoded(values, _modality(spec), batch_size, files):
        errors += reasons
        good = [start + i for i, reason in enumerate(reasons) if reason is None]
        if good:
            scores[good] = score(_stored(arrays, spec))
    return scores, errors


def _stored(arrays: Sequence[np.ndarray], spec: DataSpec) -> np.ndarray | Ragged:
    """Decoded items as the store would hold them."""
    modality = _modality(spec)
    rows = np.stack(arrays) if modality.item_shape else Ragged.of(arrays, np.uint8)
    return next(iter(modality.pack(rows, spec).values()))


def _decoded(values: Sequence[Any], modality: Any, batch_size: int, files: bool) -> Iterator[tuple[int, list[np.ndarray], list[str | None]]]:
    """Batches of decoded values: where each starts, its good arrays, and a reason or None for each value."""

    def decode(value: Any) -> Any:
        try:
            return modality.decode(modality.serve(value, files=files))
        except InputError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(values), batch_size):
            items = list(pool.map(decode, values[start : start + batch_size]))
            arrays = [item.array for item in items if getattr(item, "array", None) is not None]
            yield start, arrays, [_reason(item) for item in items]


def _reason(item: Any) -> str | None:
    if isinstance(item, InputError):
        return str(item)
    return None if item.array is not None else item.reason or "cannot be decoded"


def _modality(spec: DataSpec) -> Any:
    modality = MODALITIES[spec.modality]
    return modality(modality.Options(**spec.options))
