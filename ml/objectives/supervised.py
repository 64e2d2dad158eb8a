"""Supervised pretraining: cross-entropy on the rows that have labels, a binary one for each class where rows have several.

B batch, D features, K classes.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import nn

from ml.contracts import Batch, DataSpec, InputError, Options, StepResult
from ml.losses import binary_cross_entropy, cross_entropy, labelled_accuracy, labelled_f1


class SupervisedOptions(Options):
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="Share of the target spread evenly over the classes.")


class Supervised(nn.Module):
    """Cross-entropy on labelled rows, for pretraining on a related data set with labels."""

    Options = SupervisedOptions
    needs: ClassVar[frozenset[str]] = frozenset()
    labels: ClassVar[bool] = True
    views: ClassVar[int] = 1
    augmentation: ClassVar[str] = "standard"
    packed: ClassVar[bool] = False

    def __init__(self, options: SupervisedOptions, backbone: nn.Module, spec: DataSpec):
        super().__init__()
        if len(spec.classes) < 2:
            raise InputError(f"the supervised objective needs two classes or more, found {len(spec.classes)}: choose another objective, or label rows")
        self.label_smoothing, self.backbone = options.label_smoothing, backbone
        self.linear = nn.Linear(backbone.width, len(spec.classes))

    def step(self, batch: Batch) -> StepResult:
        logits_BK = self.linear(self.backbone.encode(batch.inputs).pooled_BD)
        if batch.targets_B.ndim == 2:
            return StepResult(binary_cross_entropy(logits_BK, batch, self.label_smoothing), {"micro_f1": labelled_f1(logits_BK.detach(), batch)})
        return StepResult(cross_entropy(logits_BK, batch, self.label_smoothing), {"accuracy": labelled_accuracy(logits_BK.detach(), batch)})
