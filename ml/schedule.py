"""The learning rate and the length of a training, as pure functions of the settings."""

from __future__ import annotations

import math

from ml.recipe import Fit, Schedule


def epochs_of(settings: Fit, rows: int) -> int:
    """How many passes over `rows` rows the settings ask for."""
    if settings.epochs is not None:
        return settings.epochs
    return max(1, min(settings.max_epochs, round(settings.samples / max(1, rows))))


def rate(settings: Fit, step: int, total: int) -> float:
    """Multiple of the peak learning rate at update `step` of `total`: a linear warm-up, then the schedule.

    one-cycle (Smith 2018) starts at a 25th and anneals to a ten-thousandth by cosine in both directions.
    """
    warmup = max(1, round(settings.warmup * total)) if settings.warmup else 0
    if settings.schedule is Schedule.one_cycle:
        if step < warmup:
            return _cosine(1 / 25, 1.0, (step + 1) / warmup)
        return _cosine(1.0, 1e-4, (step - warmup + 1) / max(1, total - warmup))
    if step < warmup:
        return (step + 1) / warmup
    if settings.schedule is Schedule.constant:
        return 1.0
    return _cosine(1.0, 0.0, (step - warmup) / max(1, total - warmup))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
