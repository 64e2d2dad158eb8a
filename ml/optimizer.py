"""The optimizers that a training chooses from."""

from __future__ import annotations

from typing import Any

import torch

from ml.recipe import Fit, Optimizer


def optimizer_of(settings: Fit, groups: list[dict[str, Any]], device: torch.device) -> torch.optim.Optimizer:
    """An optimizer of `groups` (parameters, `lr`, `weight_decay`); fused where torch has it for the device. `groups` stay as they are."""
    copies = [dict(group) for group in groups]
    if settings.optimizer is Optimizer.sgd:
        return torch.optim.SGD(copies, lr=settings.learning_rate, momentum=0.9, nesterov=True)  # fused, it cannot take in weights that are unfrozen late
    return torch.optim.AdamW(copies, lr=settings.learning_rate, fused=device.type in ("cpu", "cuda"))
