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
    before = torch.get_deterministic_debug_mode(), torch.utils.deterministic.fill_uninitialized_memory
    # What `use_deterministic_algorithms` does, which beside it imports torch's compiler: 1.6 seconds.
    torch.set_deterministic_debug_mode("error" if on else "default")
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs time, and no code here reads what it did not write
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


def seed_generators(seed: int, device: torch.device) -> None:
    """Seeds the generators that a step may draw from; `torch.manual_seed` does more, and costs 0.2 ms a step."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
