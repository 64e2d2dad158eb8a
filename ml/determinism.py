"""Whether a run must repeat bit for bit, and what torch is told then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ml.recipe import Compute


def is_deterministic(compute: Compute, device: torch.device) -> bool:
    """What the recipe says, or true on a CPU and false elsewhere."""
    return device.type == "cpu" if compute.deterministic is None else compute.deterministic


@contextmanager
def determinism(on: bool) -> Iterator[None]:
    """Deterministic algorithms while the block runs, or not."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(on)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs time, and no code here reads what it did not write
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]
