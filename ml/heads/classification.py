"""Classification into one of K classes.

B batch, D features, K classes, N rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ml import metrics
from ml.calibration import fit_temperature
from ml.classical import majority
from ml.contracts import Batch, DataSpec, Features, InputError, Options, StepResult
from ml.losses import cross_entropy, labelled_accuracy, part_weight


class ClassificationOptions(Options):
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the target spread evenly over the classes.")
    hidden: int = Field(0, ge=0, le=65_536, description="Features of a hidden layer; 0 classifies linearly.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of the features dropped in training.")
    standardise: bool = Field(False, description="Brings each feature to mean 0 and deviation 1 over the training rows first, which helps linear probes (He et al. 2021).")


class _Standardised(nn.BatchNorm1d):
    """By the batch in training, by all batches so far where there is one row and when it is used."""

    def forward(self, features_BD: Tensor) -> Tensor:
        if len(features_BD) > 1:
            return super().forward(features_BD)
        return F.batch_norm(features_BD, self.running_mean, self.running_var, eps=self.eps)


class Classification(nn.Module):
    """One of K classes for each item: softmax and cross-entropy."""

    Options = ClassificationOptions
    needs: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[frozenset[str]] = frozenset()
    labels: ClassVar[bool] = True
    several: ClassVar[bool] = False
    packed: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    trivial: ClassVar[str] = "always naming the commonest class"
    primary: ClassVar[str] = "accuracy"
    augmentation: ClassVar[str] = "standard"
    metrics: ClassVar[Mapping[str, Callable[[np.ndarray, np.ndarray], float]]] = metrics.CLASSIFICATION

    def __init__(self, options: ClassificationOptions, width: int, spec: DataSpec):
        super().__init__()
        classes = len(spec.classes)
        if classes < 2:
            raise InputError(f"classification needs two classes or more, found {classes}: {', '.join(spec.classes) or 'none'}")
        self.classes, self.label_smoothing = spec.classes, options.label_smoothing
        self.scaled = _Standardised(width, affine=False) if options.standardise else nn.Identity()
        self.dropout = nn.Dropout(options.dropout)
        hidden = [nn.Linear(width, options.hidden), nn.LayerNorm(options.hidden), nn.GELU()] if options.hidden else []
        self.hidden = nn.Sequential(*hidden)
        self.linear = nn.Linear(options.hidden or width, classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("class_weights", torch.ones(classes), persistent=False)  # of the training, not of the model

    def balance(self, targets_N: np.ndarray) -> None:
        """Weighs the loss so that the classes of the training rows count alike."""
        counts_K = np.bincount(targets_N, minlength=len(self.classes))
        self.set_class_weights(torch.from_numpy(counts_K.mean() / counts_K).float())

    def set_class_weights(self, weights_K: Tensor) -> None:
        """Weighs the loss by class; 1 for every class changes nothing."""
        self.class_weights.copy_(weights_K)

    def forward(self, features: Features) -> Tensor:
        """Logits (B, K)."""
        return self.linear(self.dropout(self.hidden(self.scaled(features.whole))))

    def step(self, backbone: nn.Module, batch: Batch) -> StepResult:
        """The loss, and the accuracy on the batch."""
        outputs = self(backbone.encode(batch.inputs))
        return StepResult(self.loss(outputs, batch), {"accuracy": labelled_accuracy(outputs.detach(), batch)}, part_weight(batch, self.class_weights))

    def outputs(self, backbone: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        return self(backbone.encode(inputs))

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return cross_entropy(outputs, batch, self.label_smoothing, self.class_weights)

    def probabilities(self, outputs: Tensor) -> Tensor:
        return outputs.float().softmax(1)

    def calibrate(self, outputs_NK: np.ndarray, rows: Mapping[str, Any]) -> float:
        """The temperature that suits the rows' labels best."""
        return fit_temperature(outputs_NK, rows["label"])

    def answers(self, outputs_NK: np.ndarray, rows: Mapping[str, Any], temperature: float) -> np.ndarray:
        """Probabilities (N, K) float32."""
        return self.probabilities(torch.from_numpy(outputs_NK) / temperature).numpy()

    def scores(self, answers_NK: np.ndarray, rows: Mapping[str, Any]) -> np.ndarray:
        return answers_NK

    def trivial_answers(self, train_rows: Mapping[str, Any], rows: Mapping[str, Any]) -> np.ndarray:
        """The classes' shares among the training rows."""
        return majority(train_rows["label"], len(self.classes), len(rows["label"]))

    def frame(self, answers_NK: np.ndarray) -> pd.DataFrame:
        """label, probability, and p_<class> for each class."""
        answers_NK = np.asarray(answers_NK, np.float32).reshape(-1, len(self.classes))
        frame = pd.DataFrame(answers_NK, columns=[f"p_{name}" for name in self.classes])
        frame.insert(0, "label", pd.Series([self.classes[k] for k in answers_NK.argmax(1)], dtype=object))
        frame.insert(1, "probability", answers_NK.max(axis=1).astype(np.float32))
        return frame

    def align(self, answers_NK: np.ndarray, classes: Sequence[str]) -> np.ndarray:
        """Answers of a model with other `classes`, in the order of this one's; a class that it does not know has probability 0."""
        column = {name: k for k, name in enumerate(classes)}
        known = [k for k, name in enumerate(self.classes) if name in column]
        aligned = np.zeros((len(answers_NK), len(self.classes)), dtype=answers_NK.dtype)
        aligned[:, known] = answers_NK[:, [column[self.classes[k]] for k in known]]
        return aligned

    def details(
        self, table: pd.DataFrame, answers_NK: np.ndarray, before_NK: np.ndarray, rows: Mapping[str, Any], **options: Any
    ) -> tuple[dict[str, Any], pd.DataFrame]:
        """Each class, calibration, confusion and mistakes; `before_NK` are the answers without the temperature."""
        from ml import class_details  # imported where it is used: a served model draws nothing

        return class_details.details(table, rows["label"], answers_NK, before_NK, self.classes, **options)

    def pictures(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Pictures of the details as plain data."""
        from ml import class_details

        return class_details.draw(facts)
