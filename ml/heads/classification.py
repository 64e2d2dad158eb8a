"""Classification into one of K classes.

B batch, D features, K classes, N rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from ml import metrics
from ml.contracts import Batch, DataSpec, Features, InputError, Options
from ml.losses import cross_entropy


class ClassificationOptions(Options):
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the target spread evenly over the classes.")
    hidden: int = Field(0, ge=0, le=65_536, description="Features of a hidden layer; 0 classifies linearly.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of the features dropped in training.")


class Classification(nn.Module):
    """One of K classes for each item: softmax and cross-entropy."""

    Options = ClassificationOptions
    primary: ClassVar[str] = "accuracy"
    augmentation: ClassVar[str] = "standard"
    metrics: ClassVar[Mapping[str, Callable[[np.ndarray, np.ndarray], float]]] = metrics.CLASSIFICATION

    def __init__(self, options: ClassificationOptions, width: int, spec: DataSpec):
        super().__init__()
        classes = len(spec.classes)
        if classes < 2:
            raise InputError(f"classification needs two classes or more, found {classes}: {', '.join(spec.classes) or 'none'}")
        self.label_smoothing = options.label_smoothing
        self.dropout = nn.Dropout(options.dropout)
        hidden = [nn.Linear(width, options.hidden), nn.LayerNorm(options.hidden), nn.GELU()] if options.hidden else []
        self.hidden = nn.Sequential(*hidden)
        self.linear = nn.Linear(options.hidden or width, classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("class_weights", torch.ones(classes), persistent=False)  # of the training, not of the model

    def set_class_weights(self, weights_K: Tensor) -> None:
        """Weighs the loss by class; 1 for every class changes nothing."""
        self.class_weights.copy_(weights_K)

    def forward(self, features: Features) -> Tensor:
        """Logits (B, K)."""
        return self.linear(self.dropout(self.hidden(features.whole)))

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return cross_entropy(outputs, batch, self.label_smoothing, self.class_weights)

    def probabilities(self, outputs: Tensor) -> Tensor:
        return outputs.float().softmax(1)
