"""Lower layers learn more slowly (Clark et al. 2020, arXiv:2003.10555; Bao et al. 2021, arXiv:2106.08254)."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import nn

from ml.contracts import Options
from ml.groups import layered_groups


class LayerDecayOptions(Options):
    decay: float = Field(0.75, gt=0, le=1, description="Each layer learns at this share of the rate of the one above it.")


class LayerDecay:
    """Trains all weights, each layer more slowly than the one above it."""

    Options = LayerDecayOptions

    def __init__(self, options: LayerDecayOptions):
        self.options = options

    def groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        upwards = [*model.backbone.layers(), model.head]
        rates = [learning_rate * self.options.decay ** (len(upwards) - 1 - depth) for depth in range(len(upwards))]
        return layered_groups(zip(upwards, rates, strict=True), weight_decay)

    def prepare(self, model: nn.Module, progress: float) -> None:
        """Everything learns at all times."""
        model.requires_grad_(True)
