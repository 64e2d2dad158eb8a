"""Only the head is trained, on features that stay as they are."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from ml.contracts import Options
from ml.groups import parameter_groups


class LinearProbeOptions(Options):
    pass


class LinearProbe:
    """Trains the head alone: measures what pretraining has taught, and is fast."""

    Options = LinearProbeOptions
    frozen: ClassVar[bool] = True

    def __init__(self, options: LinearProbeOptions):
        self.options = options

    def groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        return parameter_groups(model.head, learning_rate, weight_decay)

    def prepare(self, model: nn.Module, progress: float) -> None:
        """Freezes the backbone, its normalisation statistics and its dropout too."""
        model.backbone.requires_grad_(False)
        model.backbone.eval()
