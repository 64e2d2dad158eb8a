"""What a process computes on."""

from __future__ import annotations

import os

import torch

from ml import allocator
from ml.contracts import InputError
from ml.recipe import Compute


def device_of(compute: Compute) -> torch.device:
    """The device that the recipe asks for, with its CPU threads and memory set."""
    allocator.keep_freed()
    torch.set_num_threads(compute.threads or cores())
    wanted = compute.device
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"compute.device is {wanted}, but torch {torch.__version__} sees no CUDA device here. Use compute.device=cpu or auto.")
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise InputError("compute.device is mps, but torch sees no Apple GPU here. Use compute.device=cpu or auto.")
    return torch.device(wanted)


def cores() -> int:
    """The cores that are this process's to compute on: those that it may use, or as many as OMP_NUM_THREADS gives it."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # one number for each level of nested teams
    return int(given) if given.isdecimal() and int(given) > 0 else len(os.sched_getaffinity(0))
