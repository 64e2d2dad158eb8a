"""The head learns first, then layer after layer from the top (Howard & Ruder 2018, arXiv:1801.06146)."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import nn

from ml.contracts import Options
from ml.groups import layered_groups


class GradualUnfreezingOptions(Options):
    until: float = Field(0.5, gt=0, le=1, description="Share of the training after which every layer learns.")
    backbone_rate: float = Field(1.0, gt=0, le=1, description="Learning rate of the backbone, as a share of the head's.")


class GradualUnfreezing:
    """Trains the head first, then layer after layer from the top, so that new weights do not disturb the pretrained ones."""

    Options = GradualUnfreezingOptions

    def __init__(self, options: GradualUnfreezingOptions):
        self.options = options

    def groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        rate = learning_rate * self.options.backbone_rate
        return layered_groups([(model.backbone, rate), (model.head, learning_rate)], weight_decay)

    def prepare(self, model: nn.Module, progress: float) -> None:
        """Frozen layers are in evaluation mode: their normalisation statistics stay too."""
        model.head.requires_grad_(True)
        layers = model.backbone.layers()
        # Layer i from the top starts at until · (i + 1) / n, so that the head has a share of its own and the last one starts at `until`.
        learning = min(len(layers), int(progress / self.options.until * len(layers) + 1e-9))
        if next(model.head.parameters(), None) is None:  # something has to learn
            learning = max(1, learning)
        for index, layer in enumerate(layers):
            learns = index >= len(layers) - learning
            layer.requires_grad_(learns)
            if not learns:
                layer.eval()
