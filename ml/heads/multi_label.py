"""Several of K classes for each item, or none: each class is told from its absence.

B batch, D features, K classes, N rows, S = 2K.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn

from ml.contracts import Batch, DataSpec, Features, InputError, Options, StepResult
from ml.losses import binary_cross_entropy, labelled_f1
from ml.metrics import Metric
from ml.multi_label_metrics import MULTI_LABEL
from ml.thresholds import HALF, best_thresholds, sigmoid, temperature_of, told_with

HEAVIEST = 20.0
"""What a class's presence weighs at most, and at least its inverse: a class of a few rows must not drown the rest."""


class MultiLabelOptions(Options):
    threshold: float | None = Field(None, gt=0, lt=1, description="Probability above which a class is told; unset, one for each class, that of its best F1 on the validation rows.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of each class's target moved to one half.")
    hidden: int = Field(0, ge=0, le=65_536, description="Features of a hidden layer; 0 classifies linearly.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of the features dropped in training.")


class MultiLabel(nn.Module):
    """Any number of K classes for each item: sigmoids and binary cross-entropy.

    Micro F1 decides: each label counts alike, so a handful of test rows of a rare class cannot turn it; macro F1 stands beside it.
    """

    Options = MultiLabelOptions
    needs: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[frozenset[str]] = frozenset()
    labels: ClassVar[bool] = True
    several: ClassVar[bool] = True
    packed: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    trivial: ClassVar[str] = "telling every row the classes that most rows have"
    primary: ClassVar[str] = "micro_f1"
    augmentation: ClassVar[str] = "standard"
    metrics: ClassVar[Mapping[str, Metric]] = MULTI_LABEL

    def __init__(self, options: MultiLabelOptions, width: int, spec: DataSpec):
        super().__init__()
        classes = len(spec.classes)
        if classes < 1:
            raise InputError("the head multi-label needs labelled data, and these have no class")
        self.classes, self.options = spec.classes, options
        self.dropout = nn.Dropout(options.dropout)
        hidden = [nn.Linear(width, options.hidden), nn.LayerNorm(options.hidden), nn.GELU()] if options.hidden else []
        self.hidden = nn.Sequential(*hidden)
        self.linear = nn.Linear(options.hidden or width, classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("thresholds", torch.full((classes,), options.threshold or HALF))
        self.register_buffer("class_weights", torch.ones(classes), persistent=False)  # of the training, not of the model

    def balance(self, targets_NK: np.ndarray) -> None:
        """Weighs a class's presence so that in the training rows it counts as much as its absence, within HEAVIEST."""
        there_K = np.maximum((targets_NK == 1).sum(0), 1)
        self.set_class_weights(torch.from_numpy(np.clip((len(targets_NK) - there_K) / there_K, 1 / HEAVIEST, HEAVIEST)).float())

    def set_class_weights(self, weights_K: Tensor) -> None:
        """What the presence of each class weighs in the loss, beside 1 for its absence."""
        self.class_weights.copy_(weights_K)

    def forward(self, features: Features) -> Tensor:
        """Logits (B, K)."""
        return self.linear(self.dropout(self.hidden(features.whole)))

    def step(self, backbone: nn.Module, batch: Batch) -> StepResult:
        """The loss, and the micro F1 on the batch."""
        outputs = self(backbone.encode(batch.inputs))
        return StepResult(self.loss(outputs, batch), {"micro_f1": labelled_f1(outputs.detach(), batch)})

    def outputs(self, backbone: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        return self(backbone.encode(inputs))

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return binary_cross_entropy(outputs, batch, self.options.label_smoothing, self.class_weights)

    def calibrate(self, outputs_NK: np.ndarray, rows: Mapping[str, Any]) -> float:
        """The temperature; sets the thresholds too, where none is given."""
        temperature = temperature_of(outputs_NK, rows["label"])
        if self.options.threshold is None:
            self.thresholds.copy_(torch.from_numpy(best_thresholds(sigmoid(outputs_NK / temperature), rows["label"])))
        return temperature

    def answers(self, outputs_NK: np.ndarray, rows: Mapping[str, Any], temperature: float) -> np.ndarray:
        """(N, 2, K) float32: the probability of each class, and 1 for those that are told."""
        return told_with(sigmoid(outputs_NK / temperature), self.thresholds.cpu().numpy())

    def scores(self, answers_N2K: np.ndarray, rows: Mapping[str, Any]) -> np.ndarray:
        return answers_N2K.reshape(len(answers_N2K), -1)

    def trivial_answers(self, train_rows: Mapping[str, Any], rows: Mapping[str, Any]) -> np.ndarray:
        """The classes' shares among the training rows."""
        shares_K = (train_rows["label"] == 1).mean(0)
        return told_with(np.tile(shares_K, (len(rows["label"]), 1)), HALF)

    def frame(self, answers_N2K: np.ndarray) -> pd.DataFrame:
        """labels, those that are told with commas between, and p_<class> for each class."""
        answers_N2K = np.asarray(answers_N2K, np.float32).reshape(-1, 2, len(self.classes))
        frame = pd.DataFrame(answers_N2K[:, 0], columns=[f"p_{name}" for name in self.classes])
        frame.insert(0, "labels", pd.Series([", ".join(self.classes[k] for k in np.flatnonzero(one)) for one in answers_N2K[:, 1]], dtype=object))
        return frame

    def align(self, answers_N2K: np.ndarray, classes: Sequence[str]) -> np.ndarray:
        """Answers of a model with other `classes`, in the order of this one's; a class that it does not know is never told."""
        column = {name: k for k, name in enumerate(classes)}
        known = [k for k, name in enumerate(self.classes) if name in column]
        aligned = np.zeros((len(answers_N2K), 2, len(self.classes)), dtype=answers_N2K.dtype)
        aligned[:, :, known] = answers_N2K[:, :, [column[self.classes[k]] for k in known]]
        return aligned

    def details(
        self, table: pd.DataFrame, answers_N2K: np.ndarray, before_N2K: np.ndarray, rows: Mapping[str, Any], **options: Any
    ) -> tuple[dict[str, Any], pd.DataFrame]:
        """Each class, calibration and mistakes; `before_N2K` are the answers without the temperature."""
        from ml import multi_label_details  # imported where it is used: a served model draws nothing

        return multi_label_details.details(table, rows["label"], answers_N2K, before_N2K, self.classes, **options)

    def pictures(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Pictures of the details as plain data."""
        from ml import multi_label_details

        return multi_label_details.draw(facts)
