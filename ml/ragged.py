"""Rows of different lengths in one flat array: row i is values[offsets[i]:offsets[i + 1]]. What texts are stored as.

Shapes in names: N rows, V values in all, B batch, T the longest row of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

TOKENS = 32_768
"""Of texts that are looked at together, at most and with padding: the memory that attention takes grows with them."""
BYTES = 8 * 2**20
"""Of rows of equal length that are looked at together: activations take some twenty times as much."""


class Ragged:
    """Indexed by row numbers, a slice or a mask it gives another Ragged, indexed by one row number that row."""

    def __init__(self, values: np.ndarray, offsets: np.ndarray) -> None:
        self.values, self.offsets = values, offsets

    @classmethod
    def of(cls, rows: Sequence[np.ndarray], dtype: str | np.dtype) -> Ragged:
        """The rows, one after the other."""
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)]).astype(np.int64)
        values = np.concatenate([np.asarray(row, dtype) for row in rows]) if len(rows) else np.zeros(0, dtype)
        return cls(values, offsets)

    @property
    def lengths(self) -> np.ndarray:
        """Values of each row, (N,) int64."""
        return np.diff(self.offsets)

    @property
    def dtype(self) -> np.dtype:
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        return int(self.offsets[-1] - self.offsets[0]) * self.values.dtype.itemsize

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, rows: int | slice | np.ndarray | Sequence[int]) -> np.ndarray | Ragged:
        if isinstance(rows, int | np.integer):
            rows = range(len(self))[rows]
            return self.values[self.offsets[rows] : self.offsets[rows + 1]]
        chosen = np.arange(len(self))[rows if isinstance(rows, slice) else np.asarray(rows, dtype=None if len(rows) else np.int64)]
        starts, lengths = self.offsets[chosen], self.offsets[chosen + 1] - self.offsets[chosen]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Ragged(self.values[_positions(starts, lengths, offsets)], offsets)

    def padded(self, limit: int, fill: int, starts: np.ndarray | None = None) -> np.ndarray:
        """(B, T) with each row's values from `starts` on (else the first), T at most `limit` and at least 1; `fill` after a row's end."""
        starts = np.zeros(len(self), np.int64) if starts is None else starts
        lengths = np.minimum(self.lengths - starts, limit)
        width = max(1, int(lengths.max(initial=0)))
        array_BT = np.full((len(self), width), fill, dtype=self.values.dtype)
        inside_BT = np.arange(width) < lengths[:, None]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        array_BT[inside_BT] = self.values[_positions(self.offsets[:-1] + starts, lengths, offsets)]
        return array_BT


class Packed:
    """All values of some rows in blocks of equal length, as language models are trained: block b is values b·length … of the stream.

    Nothing is copied: a batch gathers its values from the rows. What does not fill a last block is left out.
    """

    def __init__(self, rows: Ragged, chosen: np.ndarray, length: int) -> None:
        self._rows, self._starts, self.length = rows, rows.offsets[chosen], length
        self._ends = np.cumsum(rows.offsets[chosen + 1] - self._starts)

    @property
    def nbytes(self) -> int:
        return len(self) * self.length * self._rows.dtype.itemsize

    def __len__(self) -> int:
        return int(self._ends[-1]) // self.length if len(self._ends) else 0

    def __getitem__(self, blocks: np.ndarray) -> np.ndarray:
        """(B, length) values of the blocks."""
        place_BT = np.asarray(blocks)[:, None] * self.length + np.arange(self.length)
        row_BT = np.searchsorted(self._ends, place_BT, side="right")
        begin_BT = np.where(row_BT > 0, self._ends[row_BT - 1], 0)
        return self._rows.values[self._starts[row_BT] + place_BT - begin_BT]


def _positions(starts: np.ndarray, lengths: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Where the values of rows lie that begin at `starts`, in the order of the rows."""
    return np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The rows (n, S) of several batches as (N, S), those of narrower ones filled up with NaN."""
    width = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=np.nan) if part.shape[1] < width else part for part in parts])


def row_bytes(rows: np.ndarray | Ragged | Packed) -> int:
    """Mean bytes of a row, at least 1."""
    return max(1, rows.nbytes // max(1, len(rows)))


def at_once(rows: np.ndarray | Ragged, width: int, most: int) -> int:
    """How many of the rows, at `most`, are looked at together: of texts of up to `width` tokens no more than TOKENS in all, of others no more than BYTES."""
    return min(most, max(1, TOKENS // width if isinstance(rows, Ragged) else BYTES // row_bytes(rows)))
