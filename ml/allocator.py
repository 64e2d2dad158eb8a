"""Freed memory kept for the next step. glibc hands each larger block back to the system when it is freed, and a training step that asks for the same
blocks again pays for every page anew: two fifths of the time of a small language model (docs/decisions/0016).
"""

from __future__ import annotations

import ctypes
import platform
from functools import cache

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
"""Parameters of `mallopt(3)`."""
KEPT, PAD = 2**31 - 1, 64 << 20
"""Bytes at the heap's end that may lie idle before the system gets them back, and how many more than asked for are taken from it."""


@cache
def keep_freed() -> None:
    """Takes all blocks from a heap that is kept, in this process from now on. Does nothing where there is no glibc."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, KEPT), (TOP_PAD, PAD)):
            libc.mallopt(parameter, value)
