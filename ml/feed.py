"""Batches out of the store, as a pure function of (seed, epoch, step): that is what makes a resumed run exact."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ml.contracts import UNLABELLED, Batch, DataSpec, Mix, Options, Part
from ml.ragged import Packed, Ragged, at_once, row_bytes
from ml.shuffling import shuffled
from ml.store import Store

HELD, HELD_BLOCKS = 0.02, 256
"""Share of the blocks of a stream that is held out where the data has no validation part, and the most that are looked at."""
BUCKET = 32
"""Batches among which rows are sorted by length."""


def seed_of(*parts: Any) -> int:
    """A 63-bit seed that depends on every part, the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*parts: Any) -> torch.Generator:
    """A CPU generator seeded from `parts`."""
    return torch.Generator().manual_seed(seed_of(*parts))


@dataclass(frozen=True)
class Blocks:
    """What a feed reads of a store, where a stream of tokens takes the place of rows: blocks of equal length, without labels."""

    array: Packed
    spec: DataSpec

    @classmethod
    def of(cls, store: Store, rows: np.ndarray) -> Blocks:
        """The texts of `rows`, one after the other in that order."""
        return cls(Packed(store.array, rows, store.spec.shape[0]), store.spec)

    def targets(self, numbers: np.ndarray) -> np.ndarray:
        return np.full(len(numbers), UNLABELLED)


@dataclass(frozen=True)
class Feed:
    """Training batches of `rows` of a store: shuffled anew each epoch, augmented on the device.

    Batches of an epoch differ in size by one row at most, so every row is seen once and none is left over. With `weights`
    (one a row) an epoch draws as many rows with replacement, in proportion. Of several `ranks` each gets its part of every micro-batch, as it
    is in the whole: rows, augmentation and partners of a mix are the same for any number of them.
    """

    store: Store | Blocks
    modality: Any
    rows: np.ndarray
    batch_size: int
    seed: int
    device: torch.device
    augmentation: Options
    views: int = 1
    accumulate: int = 1
    weights: np.ndarray | None = None
    rank: int = 0
    ranks: int = 1

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return max(1, round(len(self.rows) / self.batch_size))

    def order(self, epoch: int) -> np.ndarray:
        """The rows of an epoch, in the order in which they are seen."""
        random = np.random.Generator(np.random.Philox(seed_of(self.seed, "order", epoch)))
        if self.weights is None:
            return shuffled(self.rows, row_bytes(self.store.array), random)
        return random.choice(self.rows, size=len(self.rows), p=self.weights / self.weights.sum())

    def parts(self, epoch: int) -> list[np.ndarray]:
        """The rows of each step of an epoch. Texts of like length go together, so that little of a batch is padding."""
        parts = np.array_split(self.order(epoch), self.steps)
        if not isinstance(self.store.array, Ragged):
            return parts
        lengths, sorted_parts = self.store.array.lengths, []
        for start in range(0, len(parts), BUCKET):
            rows = np.concatenate(parts[start : start + BUCKET])
            sorted_parts += np.array_split(rows[np.argsort(lengths[rows], kind="stable")], len(parts[start : start + BUCKET]))
        random = np.random.Generator(np.random.Philox(seed_of(self.seed, "buckets", epoch)))
        return [sorted_parts[step] for step in random.permutation(len(sorted_parts))]

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[int, list[Batch]]]:
        """Yields (step, the micro-batches of that update) for the rest of an epoch, from step `start`."""
        parts = self.parts(epoch)
        for step in range(start, self.steps):
            micro = [rows for rows in np.array_split(parts[step], self.accumulate) if len(rows)]
            yield step, [self.batch(rows, epoch, step, number) for number, rows in enumerate(micro)]

    def batch(self, rows: np.ndarray, epoch: int, step: int, micro: int = 0) -> Batch:
        """This rank's part of the batch of the given rows, with the randomness of (epoch, step, micro): as many as the others', or one more or less."""
        own = slice(len(rows) * self.rank // self.ranks, len(rows) * (self.rank + 1) // self.ranks)
        chosen, spec = self.store.array[rows], self.store.spec
        targets_B = torch.from_numpy(self.store.targets(rows)).to(self.device, non_blocking=True)
        views: list[dict[str, torch.Tensor]] = []
        mix: Mix | None = None
        for view in range(self.views):
            random = generator(self.seed, "augment", epoch, step, micro, view)
            array_B = torch.from_numpy(self.modality.collate(chosen, spec, self.augmentation, random)).to(self.device, non_blocking=True)
            inputs, mix = self.modality.augment(array_B, spec, self.augmentation, random, own)
            views.append(inputs)
        part = Part(own.start, len(rows), targets_B) if self.ranks > 1 else None
        return Batch(views[0], targets_B[own], views=tuple(views) if self.views > 1 else (), mix=mix, part=part)


def stream(store: Store, rows: np.ndarray, seed: int) -> tuple[Blocks, np.ndarray, np.ndarray]:
    """The texts as blocks of tokens: all of them, those to train on, and those held out (an official validation part, else the last)."""
    official = rows_of(store, "validation")
    order = shuffled(rows, row_bytes(store.array), np.random.Generator(np.random.Philox(seed_of(seed, "blocks"))))
    inside = len(Blocks.of(store, order).array)
    blocks = Blocks.of(store, np.concatenate([order, official]))
    held = np.arange(inside, len(blocks.array))
    if not len(held):  # nor is there one where the official part fills no block
        held = np.arange(inside)[max(1, int(inside * (1 - HELD))) :]
    return blocks, np.setdiff1d(np.arange(inside), held), held[:HELD_BLOCKS]


def rows_of(store: Store, *parts: str) -> np.ndarray:
    """The row numbers of the given parts, ascending."""
    return np.flatnonzero(store.table["part"].isin(parts))


def plain_batches(
    store: Store, modality: Any, rows: np.ndarray, device: torch.device, batch_size: int = 256, whole: bool = False
) -> Iterator[dict[str, torch.Tensor]]:
    """Yields the encoded inputs of `rows`, in order and without augmentation, cut to what a model reads at once unless they are to be `whole`."""
    batch_size = at_once(store.array, store.spec.shape[0], batch_size)
    for start in range(0, len(rows), batch_size):
        array_B = torch.from_numpy(modality.collate(store.array[rows[start : start + batch_size]], store.spec, whole=whole)).to(device, non_blocking=True)
        yield modality.encode(array_B, store.spec)
