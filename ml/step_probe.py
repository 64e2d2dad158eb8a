"""How a short probe finds that a module's steps are fastest on its device: precision, memory format, compilation. What it found is remembered.

A choice that is timed may differ between two equal runs, so runs that must repeat bit for bit do without.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ml.checkpoint import write_atomically
from ml.contracts import Batch, InputError
from ml.recipe import Compilation, Compute, Precision

GAIN = 1.15  # lower precision must be this many times as fast to be worth its rounding
REPEATS = 5  # timed steps of each candidate
WORTH = 600.0
"""Seconds of training below which compilation is not tried: it takes a minute, and saves a tenth."""


@dataclass(frozen=True)
class How:
    """How steps are made."""

    precision: str = Precision.float32.value
    channels_last: bool = True
    compiled: bool = False


class Step(nn.Module):
    """Makes `step` the forward pass, where accelerate puts autocast, and parallelism and the compiler their hooks."""

    def __init__(self, module: nn.Module, how: How):
        super().__init__()
        self.module, self._contiguous = module, not how.channels_last
        if how.compiled:
            self.compile()

    def forward(self, batch: Batch):
        return self.module.step(_contiguous(batch) if self._contiguous else batch)


def how_to_step(module: nn.Module, sample: Callable[[], Batch], compute: Compute, deterministic: bool, steps: int, memory: Path) -> How:
    """What the recipe says, and of what it leaves open the fastest for a `sample()`; `steps` are to be made, `memory` is a JSON file of earlier findings."""
    if compute.compile is Compilation.always and not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        raise InputError("compute.compile=always needs a C++ compiler, and none was found (c++, g++, clang++, CXX). Install one, or set compute.compile=auto.")
    precision = compute.precision.value if compute.precision is not Precision.auto else Precision.float32.value
    how = How(precision, True, compute.compile is Compilation.always)
    if deterministic:
        return how
    batch = sample()
    key = _key(module, batch, compute)
    known = _remembered(memory)
    if key not in known:
        known[key] = asdict(_fastest(module, batch, compute, how, steps))
        write_atomically(memory, json.dumps(known, indent=1))
    return How(**known[key])


def _fastest(module: nn.Module, batch: Batch, compute: Compute, how: How, steps: int) -> How:
    device = batch.targets_B.device
    eager = [replace(how, compiled=False)]
    if compute.precision is Precision.auto:
        half = Precision.float16 if device.type == "cuda" and not torch.cuda.is_bf16_supported() else Precision.bfloat16
        eager.append(replace(eager[0], precision=half.value))
    if any(value.ndim == 4 for value in batch.inputs.values()):
        eager += [replace(one, channels_last=False) for one in eager]
    seconds = _timed(module, batch, eager)
    # Each half precision has to be worth its rounding, against the best that float32 does.
    best = min(eager, key=lambda one: seconds[one] * (1.0 if one.precision == eager[0].precision else GAIN))
    if compute.compile is Compilation.always:
        return replace(best, compiled=True)
    if compute.compile is Compilation.never or steps * seconds[best] < WORTH:
        return best
    compiled = replace(best, compiled=True)
    began = time.perf_counter()
    try:
        taken = _timed(module, batch, [compiled, best])
    except Exception:  # the compiler raises whatever what it calls does; without it all goes on
        return best
    cost = time.perf_counter() - began
    return compiled if (taken[best] - taken[compiled]) * steps > cost else best


def _timed(module: nn.Module, batch: Batch, candidates: list[How]) -> dict[How, float]:
    """Median seconds of a forward and backward pass of each, in turns."""
    device = batch.targets_B.device
    copies = {layout: copy.deepcopy(module).to(device, memory_format=layout).train() for layout in {memory_format(how) for how in candidates}}
    calls = {how: _pass(Step(copies[memory_format(how)], how), batch, how) for how in candidates}
    taken: dict[How, list[float]] = {how: [] for how in candidates}
    for repeat in range(REPEATS + 1):
        for how, call in calls.items():
            began = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if repeat:  # the first one warms up
                taken[how].append(time.perf_counter() - began)
    return {how: statistics.median(seconds) for how, seconds in taken.items()}


def _pass(step: Step, batch: Batch, how: How) -> Callable[[], None]:
    half = getattr(torch, how.precision)

    def call() -> None:
        with torch.autocast(batch.targets_B.device.type, dtype=half, enabled=half is not torch.float32):
            loss = step(batch).loss
        loss.backward()
        step.zero_grad(set_to_none=True)

    return call


def memory_format(how: How) -> torch.memory_format:
    return torch.channels_last if how.channels_last else torch.contiguous_format


def _contiguous(batch: Batch) -> Batch:
    def plain(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.contiguous() for name, value in inputs.items()}

    return replace(batch, inputs=plain(batch.inputs), views=tuple(map(plain, batch.views)))


def _key(module: nn.Module, batch: Batch, compute: Compute) -> str:
    """Of the network, the shape of what it reads, the machine and what the recipe leaves open."""
    device = batch.targets_B.device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {torch.get_num_threads()} {torch.backends.cpu.get_cpu_capability()}"
    shapes = {name: tuple(value.shape) for name, value in batch.inputs.items()}
    parts = (torch.__version__, machine, compute.precision.value, compute.compile.value, shapes, len(batch.views), module)
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]


def _remembered(memory: Path) -> dict[str, dict]:
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {key: one for key, one in known.items() if isinstance(one, dict) and one.keys() == asdict(How()).keys()} if isinstance(known, dict) else {}
