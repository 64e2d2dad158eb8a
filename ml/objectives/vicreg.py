"""VICReg (Bardes et al. 2021, arXiv:2105.04906): views agree, each feature varies, and no two features say the same.

B batch, D features.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ml.contracts import Batch, DataSpec, Options, StepResult
from ml.projector import encode_views, gathered_views, projector, spread


class VICRegOptions(Options):
    invariance: float = Field(25.0, ge=0, description="Weight of the distance between the two views.")
    variance: float = Field(25.0, ge=0, description="Weight of keeping each feature's standard deviation at 1.")
    covariance: float = Field(1.0, ge=0, description="Weight of keeping features uncorrelated.")
    hidden: int = Field(512, ge=8, le=65_536, description="Features of the expander's hidden layer.")
    output: int = Field(512, ge=4, le=65_536, description="Features that are compared.")


class VICReg(nn.Module):
    """Two augmented views, with variance, invariance and covariance terms; needs no negatives, so small batches do."""

    Options = VICRegOptions
    needs: ClassVar[frozenset[str]] = frozenset()
    labels: ClassVar[bool] = False
    views: ClassVar[int] = 2
    augmentation: ClassVar[str] = "contrastive"
    packed: ClassVar[bool] = False

    def __init__(self, options: VICRegOptions, backbone: nn.Module, spec: DataSpec):
        super().__init__()
        self.options, self.backbone = options, backbone
        self.expander = projector(backbone.width, options.hidden, options.output)

    def step(self, batch: Batch) -> StepResult:
        features_BD = encode_views(self.backbone, batch)
        expanded_BD, features_BD = gathered_views(batch.part, self.expander(features_BD).float(), features_BD.detach())
        first_BD, second_BD = expanded_BD.chunk(2)
        invariance = F.mse_loss(first_BD, second_BD)
        variance = (_variance(first_BD) + _variance(second_BD)) / 2
        covariance = _covariance(first_BD) + _covariance(second_BD)
        weights = self.options
        loss = weights.invariance * invariance + weights.variance * variance + weights.covariance * covariance
        extras = {"invariance": invariance, "variance": variance, "covariance": covariance}
        return StepResult(loss, {**{name: value.detach() for name, value in extras.items()}, "feature_spread": spread(features_BD)})


def _variance(z_BD: Tensor) -> Tensor:
    """How far standard deviations stay below 1."""
    return F.relu(1 - (z_BD.var(0, correction=0) + 1e-4).sqrt()).mean()


def _covariance(z_BD: Tensor) -> Tensor:
    """Sum of squared covariances of different features, a feature."""
    rows, width = z_BD.shape
    centred_BD = z_BD - z_BD.mean(0)
    with torch.autocast(z_BD.device.type, enabled=False):  # small covariances are differences of large products
        covariance_DD = centred_BD.T @ centred_BD / max(1, rows - 1)
    return (covariance_DD.square().sum() - covariance_DD.diagonal().square().sum()) / width
