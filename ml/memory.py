"""Whether an error says that memory ran out."""

from __future__ import annotations

import torch

WORDS = ("can't allocate memory", "out of memory", "bad_alloc", "bad allocation")


def ran_out(error: BaseException) -> bool:
    """Of a GPU torch raises an error of its own kind, of a CPU one that only its words tell from others."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and any(words in str(error) for words in WORDS))
