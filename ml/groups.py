"""Parameter groups: rates by part, and no weight decay where it only does harm."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


def parameter_groups(module: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """The module's parameters as one group that decays (matrices, kernels) and one that does not (biases, norms, 1-d ones)."""
    matrices, vectors = [], []
    for parameter in module.parameters():
        # Tokens and positions, (1, T, D), are vectors that stand beside one another and not a matrix.
        (vectors if parameter.squeeze().ndim <= 1 or len(parameter) == 1 else matrices).append(parameter)
    return [
        {"params": parameters, "lr": learning_rate, "weight_decay": decay}
        for parameters, decay in ((matrices, weight_decay), (vectors, 0.0))
        if parameters
    ]


def layered_groups(layers: Iterable[tuple[nn.Module, float]], weight_decay: float) -> list[dict[str, Any]]:
    """The groups of several modules, each with its own learning rate."""
    return [group for module, rate in layers for group in parameter_groups(module, rate, weight_decay)]
