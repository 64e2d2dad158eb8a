"""Exact copies are removed, near copies are found and grouped.

Candidates for near copies are rows whose 64-bit signatures have one of 4 bands of 16 bits in common and differ in at most the
modality's `signature_bits`: 3 of a perceptual hash (multi-index hashing, Norouzi et al. 2012), all 64 where the bands are MinHashes
(Broder 1997). The modality confirms each pair on the decoded rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from ml.contracts import Modality
from ml.ragged import Ragged, row_bytes

WINDOW = 256
"""Neighbours that a row is compared with, in the order of signatures. Whole for bands that as many rows share; in larger ones
(thousands of blank pages) the nearest are compared, so that the cost grows with the rows and not with their square."""
PAIR_BYTES = 32 * 2**20

RANK = {"test": 0, "validation": 1, "train": 2, "unlabelled": 3}
"""Of equal copies the one of lowest rank stays: a test row leaves training, never the other way round."""


def exact_duplicates(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Which rows are superfluous copies, and which are of a content that carries two labels, or sets of them; two masks over `table`.

    `table` has the columns content, label, part. Of copies that agree one stays, by RANK and then by position; rows in conflict
    all go, as nobody knows which label is right.
    """
    conflict = table.groupby("content")["label"].transform("nunique").to_numpy() > 1  # missing labels do not count
    order = np.lexsort((np.arange(len(table)), table["part"].map(RANK).to_numpy()))
    copy = np.zeros(len(table), dtype=bool)
    copy[order] = table["content"].iloc[order].duplicated().to_numpy()
    return copy & ~conflict, conflict


def near_groups(signatures: np.ndarray, rows: np.ndarray | Ragged, positions: np.ndarray, modality: Modality, groups: pd.Series, near: bool) -> np.ndarray:
    """Numbers the groups of rows that must stay together: near copies (where `near`) and rows with one user's group.

    signatures (N,) uint64, `positions` (N,) of the items within `rows`, `groups` (N,) text or None. Gives (N,) int64,
    numbered in order of appearance.
    """
    forest = Forest(len(signatures))
    named = groups.notna().to_numpy()
    codes = pd.factorize(groups.to_numpy()[named])[0]
    members = np.flatnonzero(named)
    if len(members):
        first = np.full(codes.max() + 1, -1)
        first[codes[::-1]] = members[::-1]
        forest.join(members, first[codes])
    if near:
        # Each pair reads two items, in slices that keep memory bounded.
        step = max(1, PAIR_BYTES // (8 * row_bytes(rows)))
        for left, right in _candidates(signatures, _tones(signatures, rows, positions), modality.signature_bits):
            apart = forest.roots[left] != forest.roots[right]
            left, right = left[apart], right[apart]
            for start in range(0, len(left), step):
                a, b = left[start : start + step], right[start : start + step]
                same = modality.same(rows[positions[a]], rows[positions[b]])
                forest.join(a[same], b[same])
    return pd.factorize(forest.roots)[0].astype(np.int64)


class Forest:
    """Disjoint sets of 0..N-1; `roots` holds the least member of each one's set."""

    def __init__(self, size: int) -> None:
        self.roots = np.arange(size)

    def join(self, left: np.ndarray, right: np.ndarray) -> None:
        """Unites left[i] with right[i] for all i."""
        if not len(left):
            return
        parent = self.roots
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            while parent[a] != a:
                a = parent[a]
            while parent[b] != b:
                b = parent[b]
            parent[max(a, b)] = min(a, b)
        while not np.array_equal(parent, parent[parent]):
            parent = parent[parent]
        self.roots = parent


def _candidates(signatures: np.ndarray, tones: np.ndarray, bits: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for band in range(4):
        turned = np.roll(signatures.astype(">u8").view(">u2").reshape(-1, 4), -band, axis=1).copy().view(">u8").ravel().astype(np.uint64)
        order = np.lexsort((tones, turned))
        turned = turned[order]
        bucket = turned >> np.uint64(48)
        for distance in range(1, min(WINDOW, len(order) - 1) + 1):
            together = bucket[distance:] == bucket[:-distance]
            if not together.any():
                break
            close = together & (np.bitwise_count(turned[distance:] ^ turned[:-distance]) <= bits)
            if band:  # equal signatures lie side by side in every band, and were seen in the first
                close &= turned[distance:] != turned[:-distance]
            if close.any():
                yield order[:-distance][close], order[distance:][close]


def _tones(signatures: np.ndarray, rows: np.ndarray | Ragged, positions: np.ndarray) -> np.ndarray:
    """Mean level of the rows whose signature is shared by more than WINDOW others, so that like ones become neighbours; else 0."""
    tones = np.zeros(len(signatures))
    _, inverse, counts = np.unique(signatures, return_inverse=True, return_counts=True)
    for row in np.flatnonzero(counts[inverse] > WINDOW):
        tones[row] = rows[positions[row]].mean()
    return tones
