"""All weights are trained."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import nn

from ml.contracts import Options
from ml.groups import layered_groups


class FullOptions(Options):
    backbone_rate: float = Field(1.0, gt=0, le=1, description="Learning rate of the backbone, as a share of the head's.")


class Full:
    """Trains all weights, the backbone's at a lower rate where asked."""

    Options = FullOptions

    def __init__(self, options: FullOptions):
        self.options = options

    def groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        return layered_groups([(model.backbone, learning_rate * self.options.backbone_rate), (model.head, learning_rate)], weight_decay)

    def prepare(self, model: nn.Module, progress: float) -> None:
        """Everything learns at all times."""
        model.requires_grad_(True)
