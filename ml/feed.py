"""Batches out of the store, as a pure function of (seed, epoch, step): that is what makes a resumed run exact."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ml.contracts import Batch, Mix, Options
from ml.store import Store


def seed_of(*parts: Any) -> int:
    """A 63-bit seed that depends on every part, the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*parts: Any) -> torch.Generator:
    """A CPU generator seeded from `parts`."""
    return torch.Generator().manual_seed(seed_of(*parts))


@dataclass(frozen=True)
class Feed:
    """Training batches of `rows` of a store: shuffled anew each epoch, augmented on the device.

    Batches of an epoch differ in size by one row at most, so every row is seen once and none is left over. With `weights`
    (one a row) an epoch draws as many rows with replacement, in proportion.
    """

    store: Store
    modality: Any
    rows: np.ndarray
    batch_size: int
    seed: int
    device: torch.device
    augmentation: Options
    views: int = 1
    accumulate: int = 1
    weights: np.ndarray | None = None

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return max(1, round(len(self.rows) / self.batch_size))

    def order(self, epoch: int) -> np.ndarray:
        """The rows of an epoch, in the order in which they are seen."""
        random = np.random.Generator(np.random.Philox(seed_of(self.seed, "order", epoch)))
        if self.weights is None:
            return self.rows[random.permutation(len(self.rows))]
        return random.choice(self.rows, size=len(self.rows), p=self.weights / self.weights.sum())

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[int, list[Batch]]]:
        """Yields (step, the micro-batches of that update) for the rest of an epoch, from step `start`."""
        parts = np.array_split(self.order(epoch), self.steps)
        for step in range(start, self.steps):
            micro = [rows for rows in np.array_split(parts[step], self.accumulate) if len(rows)]
            yield step, [self.batch(rows, epoch, step, number) for number, rows in enumerate(micro)]

    def batch(self, rows: np.ndarray, epoch: int, step: int, micro: int = 0) -> Batch:
        """The batch of the given rows, with the randomness of (epoch, step, micro)."""
        array_B = torch.from_numpy(self.store.array[rows]).to(self.device, non_blocking=True)
        targets_B = torch.from_numpy(self.store.labels[rows]).to(self.device, non_blocking=True)
        views: list[dict[str, torch.Tensor]] = []
        mix: Mix | None = None
        for view in range(self.views):
            random = generator(self.seed, "augment", epoch, step, micro, view)
            inputs, mix = self.modality.augment(array_B, self.store.spec, self.augmentation, random)
            views.append(inputs)
        return Batch(views[0], targets_B, views=tuple(views) if self.views > 1 else (), mix=mix)


def rows_of(store: Store, *parts: str) -> np.ndarray:
    """The row numbers of the given parts, ascending."""
    return np.flatnonzero(store.table["part"].isin(parts))


def plain_batches(store: Store, modality: Any, rows: np.ndarray, device: torch.device, batch_size: int = 256) -> Iterator[dict[str, torch.Tensor]]:
    """Yields the encoded inputs of `rows`, in order and without augmentation."""
    for start in range(0, len(rows), batch_size):
        array_B = torch.from_numpy(store.array[rows[start : start + batch_size]]).to(device, non_blocking=True)
        yield modality.encode(array_B, store.spec)
