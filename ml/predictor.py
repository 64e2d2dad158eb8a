"""A trained model that takes what a user has: pictures or texts in; labels with probabilities, or what else its head answers, out.

Evaluation, batch scoring and serving all go through this file, so that they agree.
Shapes in names: B batch, N rows, K classes, D features, S numbers that a head puts out for a row.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from pandas.api.types import is_integer_dtype, is_numeric_dtype
from torch import Tensor, nn

from ml.backbones import BACKBONES
from ml.choice import choice
from ml.contracts import DataSpec, InputError
from ml.fused import fused
from ml.modalities import MODALITIES
from ml.model import Model, load_model, read_described, read_spec
from ml.onnx_graph import Graph
from ml.ragged import Ragged, at_once, joined

BATCH = 256
PIECE = 32
"""Values that a thread decodes at a time: handing over each alone costs as much as decoding a text."""
LIKE = 8
"""Batches of rows of any length that are decoded together, so that rows of like length can share a batch."""
CPU = torch.device("cpu")
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Predictor:
    """A model in evaluation mode with its preprocessing and its temperature (the divisor of its outputs).

    The model is laid out for scoring: `load_model` gives the one to train or to save. Where there is a `graph`, it makes the outputs in the place of torch.
    """

    model: Model
    spec: DataSpec
    temperature: float = 1.0
    device: torch.device = CPU
    graph: Graph | None = None

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu", graph: Graph | None = None) -> Predictor:
        """From a folder of model.safetensors and model.json; nothing is unpickled."""
        model, info = load_model(Path(folder))
        device = torch.device(device)
        model = model.to(device).eval()
        return cls(model if graph else _fastest(model, Model.__call__, info.spec, device), info.spec, info.temperature, device, graph)

    @property
    def modality(self) -> Any:
        """The modality with its options."""
        return _modality(self.spec)

    def reads(self, spec: DataSpec) -> bool:
        """Whether rows stored for `spec` are what this model reads: decoded by the same rules, into the same tokens."""
        return dict(self.spec.options) == dict(spec.options) and self.spec.statistics.get("tokenizer") == spec.statistics.get("tokenizer")

    def outputs(self, arrays: np.ndarray | Ragged, batch_size: int = BATCH) -> np.ndarray:
        """The head's outputs (N, S) float32 for stored rows of what the model reads."""
        return self._outputs(self.model, arrays, batch_size)

    def answers(self, rows: Mapping[str, Any], batch_size: int = BATCH) -> Any:
        """What is told of each stored row: probabilities (N, K) float32 of classes, or a list."""
        return self.model.head.answers(self.outputs(primary(rows), batch_size), rows, self.temperature)

    def answers_of(self, values: Sequence[Any], batch_size: int = BATCH, files: bool = True, served: bool = True) -> tuple[Any, list[str | None]]:
        """The answers for values as those of `predict` that can be used, and for each value None, or the reason why it cannot be.

        Unless they are `served` to a user, they are what is measured, and values are items as a source reads them.
        """
        forward, found, errors = self.model.serve if served else self.model, [], []
        for arrays, reasons in _decoded(values, self.modality, batch_size, files):
            errors += reasons
            if arrays:
                rows = _stored(arrays, self.spec)
                outputs_NS = self._outputs(forward, primary(rows), batch_size)
                found.append(self.model.head.answers(outputs_NS, rows, self.temperature))
        if not found:
            return [], errors
        return np.concatenate(found) if isinstance(found[0], np.ndarray) else [one for part in found for one in part], errors

    def predict(self, values: Sequence[Any], batch_size: int = BATCH, files: bool = True) -> pd.DataFrame:
        """One row for each value: the head's columns (of classes label, probability, p_<class>), and error, the reason where it is unusable.

        A value is what the modality serves: for images bytes, base64 text or, where `files`, a path; for text a string. A bad one costs
        its own row only.
        """
        answers, errors = self.answers_of(values, batch_size, files)
        return _with_errors(self.model.head.frame(answers), errors)

    def _outputs(self, module: Callable[[Any], Tensor], arrays: np.ndarray | Ragged, batch_size: int) -> np.ndarray:
        return _batched(self.graph or _eager(module, self.spec, self.device), arrays, self.spec, batch_size, self.model.head.whole)


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
        return cls(_fastest(backbone.to(device).eval(), _pooled, spec, device), spec, device)

    @property
    def modality(self) -> Any:
        """The modality with its options."""
        return _modality(self.spec)

    def embed_arrays(self, arrays: np.ndarray | Ragged, batch_size: int = BATCH) -> np.ndarray:
        """Pooled features (N, D) float32 of stored rows, of longer ones those of what a model reads at once."""
        forward = _eager(partial(_pooled, self.backbone), self.spec, self.device)
        return _batched(forward, arrays, self.spec, batch_size)

    def predict(self, values: Sequence[Any], batch_size: int = BATCH, files: bool = True) -> pd.DataFrame:
        """One row for each value: e_0 ... e_<D − 1> and error; values as those of `Predictor.predict`."""
        parts, errors = [np.empty((0, self.backbone.width), np.float32)], []
        for arrays, reasons in _decoded(values, self.modality, batch_size, files):
            errors += reasons
            if arrays:
                parts.append(self.embed_arrays(primary(_stored(arrays, self.spec))))
        features_ND = np.concatenate(parts)
        return _with_errors(pd.DataFrame(features_ND, columns=[f"e_{d}" for d in range(features_ND.shape[1])]), errors)


def load(folder: str | Path, device: str | torch.device = "cpu") -> Predictor | Embedder:
    """The model or the backbone that a folder holds."""
    return (Predictor if (Path(folder) / "model.json").exists() else Embedder).load(folder, device)


def _pooled(backbone: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    return backbone.encode(inputs).pooled_BD


def _fastest(module: M, answer: Callable[[M, Mapping[str, Tensor]], Tensor], spec: DataSpec, device: torch.device) -> M:
    """`module` as it scores fastest on the device."""
    modality = _modality(spec)
    if device.type != "cpu" or not modality.item_shape:
        return module
    some = np.random.default_rng(0).integers(0, 256, (2, *modality.item_shape), np.uint8)
    return fused(module, partial(answer, inputs=modality.encode(torch.from_numpy(some), spec)), BATCH)


def _eager(module: Callable[[Any], Tensor], spec: DataSpec, device: torch.device) -> Callable[[np.ndarray], np.ndarray]:
    """What `module` makes of a batch of stored rows."""
    modality = _modality(spec)

    def forward(array_B: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(modality.encode(torch.from_numpy(array_B).to(device), spec)).float().cpu().numpy()

    return forward


def _batched(
    forward: Callable[[np.ndarray], np.ndarray], arrays: np.ndarray | Ragged, spec: DataSpec, batch_size: int, whole: bool = False
) -> np.ndarray:
    modality = _modality(spec)
    # Rows of like length share a batch: what fills up the shorter ones costs as much as what they hold.
    order = np.argsort(arrays.lengths, kind="stable") if isinstance(arrays, Ragged) else None
    parts = []
    batch_size = at_once(arrays, spec.shape[0], batch_size)
    for start in range(0, len(arrays), batch_size):
        chosen = slice(start, start + batch_size)
        parts.append(forward(np.array(modality.collate(arrays[chosen if order is None else order[chosen]], spec, whole=whole))))
    outputs_NS = joined(parts)
    return outputs_NS if order is None else outputs_NS[np.argsort(order)]


def values_of(frame: pd.DataFrame, modality: Any) -> list[Any]:
    """What a request's rows hold, as `predict` takes it; KeyError where a column is missing."""
    if len(modality.fields) == 1:
        return frame[modality.fields[0]].tolist()
    return frame[list(modality.fields)].to_dict("records")


def frame_of(values: Sequence[Any], modality: Any) -> pd.DataFrame:
    """The request that holds the values."""
    return pd.DataFrame({modality.fields[0]: values} if len(modality.fields) == 1 else list(values), columns=list(modality.fields))


def primary(rows: Mapping[str, Any]) -> np.ndarray | Ragged:
    """What models read of rows: the first of their arrays."""
    return next(iter(rows.values()))


def is_text(kind: Any) -> bool:
    """Whether a column of this dtype holds texts: neither numbers nor what has a type of Arrow's, such as lists of numbers."""
    return not (is_numeric_dtype(kind) or isinstance(kind, pd.ArrowDtype))


def _with_errors(frame: pd.DataFrame, errors: list[str | None]) -> pd.DataFrame:
    """The rows of `frame`, which has those without an error, in their places among all; the others hold nothing."""
    kinds = dict(frame.dtypes)  # a frame hands a column out in as long as a small network takes for a row
    whole = {name: "Int64" for name, kind in kinds.items() if is_integer_dtype(kind)}  # can hold nothing, so that all parts of a scoring have one schema
    frame = frame.astype(whole) if whole else frame
    if any(errors):
        frame = frame.set_axis([row for row, error in enumerate(errors) if error is None]).reindex(range(len(errors)))
    for name in [name for name, kind in kinds.items() if is_text(kind)]:
        frame[name] = frame[name].astype(object).where(frame[name].notna(), None)
    return frame.assign(error=pd.Series(errors, dtype=object))


def _stored(arrays: Sequence[np.ndarray], spec: DataSpec) -> Mapping[str, np.ndarray | Ragged]:
    """Decoded items as the store would hold them, by name."""
    modality = _modality(spec)
    return modality.pack(np.stack(arrays) if modality.item_shape else Ragged.of(arrays, np.uint8), spec)


def _decoded(values: Sequence[Any], modality: Any, batch_size: int, files: bool) -> Iterator[tuple[list[np.ndarray], list[str | None]]]:
    """Some batches of decoded values: the good arrays, and a reason or None for each value."""

    def decode(value: Any) -> Any:
        try:
            return modality.decode(modality.serve(value, files=files), served=True)
        except InputError as error:
            return error

    rows = batch_size if modality.item_shape else batch_size * LIKE
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(values), rows):
            chunk = values[start : start + rows]
            side_by_side = pool.map if len(chunk) > PIECE else map  # to start a thread takes longer than to decode an item
            pieces = side_by_side(lambda piece: [decode(value) for value in piece], [chunk[at : at + PIECE] for at in range(0, len(chunk), PIECE)])
            items = [item for piece in pieces for item in piece]
            arrays = [item.array for item in items if getattr(item, "array", None) is not None]
            yield arrays, [_reason(item) for item in items]


def _reason(item: Any) -> str | None:
    if isinstance(item, InputError):
        return str(item)
    return None if item.array is not None else item.reason or "cannot be decoded"


def _modality(spec: DataSpec) -> Any:
    modality = MODALITIES[spec.modality]
    return modality(modality.Options(**spec.options))
