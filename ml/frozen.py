"""What a backbone that stays as it is makes of rows, computed once, so that a head alone is trained on vectors instead of on items.

D features of an item as a whole, M rows that are remembered, N rows of the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ml import progress
from ml.contracts import ALL, DataSpec, Features
from ml.feed import plain_batches
from ml.store import Store

MOST_BYTES = 2 << 30
"""Above which features are made anew at each step, as memory may not hold them."""
BATCH = 64


class Vectors:
    """As a modality: rows of a `Remembered` are what a model reads."""

    def collate(self, rows_BD: np.ndarray, spec: DataSpec, *args: Any, **options: Any) -> np.ndarray:
        return rows_BD

    def encode(self, array_BD: Tensor, spec: DataSpec) -> dict[str, Tensor]:
        return {"features": array_BD}

    def augment(
        self, array_BD: Tensor, spec: DataSpec, augmentation: Any, generator: torch.Generator, part: slice = ALL
    ) -> tuple[dict[str, Tensor], None]:
        return {"features": array_BD[part]}, None


class Recalled(nn.Module):
    """As a backbone: gives what the frozen one made."""

    def encode(self, inputs: Mapping[str, Tensor]) -> Features:
        return Features(inputs["features"])


@dataclass(frozen=True)
class _Rows:
    """(M, D) features, under the numbers that their rows have in the store."""

    features_MD: np.ndarray
    place_N: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.features_MD.nbytes

    def __len__(self) -> int:
        return len(self.features_MD)

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        return self.features_MD[self.place_N[numbers]]


@dataclass(frozen=True)
class Remembered:
    """As a store: the features of some of its rows, and their targets."""

    array: _Rows
    store: Store

    @property
    def spec(self) -> DataSpec:
        return self.store.spec

    def targets(self, numbers: np.ndarray) -> np.ndarray:
        return self.store.targets(numbers)


def remember(stage: str, backbone: nn.Module, store: Store, modality: Any, rows: np.ndarray, device: torch.device) -> Remembered | None:
    """What `backbone`, left in evaluation mode, makes of `rows` without augmentation; None where that is more than MOST_BYTES."""
    width = backbone.width + getattr(backbone, "wide", 0)
    if 4 * width * len(rows) > MOST_BYTES:
        return None
    backbone.to(device).eval()
    features_MD, done = np.empty((len(rows), width), np.float32), 0
    with torch.no_grad():
        for inputs in plain_batches(store, modality, rows, device, BATCH):
            part_BD = backbone.encode(inputs).whole.float().cpu().numpy()
            features_MD[done : done + len(part_BD)] = part_BD
            done += len(part_BD)
            progress.update(stage, done, len(rows))
    place_N = np.full(len(store.array), -1)
    place_N[rows] = np.arange(len(rows))
    return Remembered(_Rows(features_MD, place_N), store)
