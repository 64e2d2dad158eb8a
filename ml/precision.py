"""Which precision a short probe finds fastest for a module on its device."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

from ml.contracts import Batch
from ml.recipe import Precision

GAIN = 1.15  # lower precision must be this many times as fast to be worth its rounding
REPEATS = 5


def fastest_precision(module: nn.Module, batch: Batch) -> Precision:
    """Times forward and backward passes of `module.step(batch)`, interleaved; the module is used up."""
    device = batch.targets_B.device
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return Precision.float16
    times: dict[Precision, list[float]] = {Precision.float32: [], Precision.bfloat16: []}
    module.train()
    for repeat in range(REPEATS + 1):
        for precision, taken in times.items():
            began = time.perf_counter()
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision is Precision.bfloat16):
                loss = module.step(batch).loss
            loss.backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if repeat:  # the first one warms up
                taken.append(time.perf_counter() - began)
    medians = {precision: statistics.median(taken) for precision, taken in times.items()}
    return Precision.bfloat16 if medians[Precision.bfloat16] * GAIN < medians[Precision.float32] else Precision.float32
