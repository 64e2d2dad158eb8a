"""The order in which rows are seen: any permutation of what fits in memory, and one that reads a disk in long runs for what does not.

N rows.
"""

from __future__ import annotations

import numpy as np

LARGE = 8 * 2**30
"""Bytes from which on rows are read in runs. Not what a machine has, as an order is to be the same on all."""
RUN = 4 * 2**20
"""Bytes of a run: long beside the time that a disk takes to find it."""
WINDOW = 2**30
"""Bytes of the runs whose rows are mixed with one another, which memory is to hold."""


def shuffled(rows_N: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """The row numbers in random order, each of `size` bytes. Of large data runs of neighbouring rows are drawn, and the rows of many runs mixed."""
    if len(rows_N) * size < LARGE:
        return rows_N[random.permutation(len(rows_N))]
    runs = np.array_split(np.sort(rows_N), np.ceil(len(rows_N) * size / RUN))
    order, together = random.permutation(len(runs)), WINDOW // RUN
    windows = [np.concatenate([runs[number] for number in order[start : start + together]]) for start in range(0, len(runs), together)]
    return np.concatenate([random.permutation(window) for window in windows])
