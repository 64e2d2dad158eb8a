"""Contrastive sentence pairs (supervised SimCSE, Gao et al. 2021, arXiv:2104.08821): a text must find its partner among those of a batch.

B pairs, D features.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import nn

from ml.contracts import Batch, DataSpec, Options, StepResult
from ml.pairs import both_sides, contrast_sides
from ml.projector import gathered_views, spread


class PairsOptions(Options):
    temperature: float = Field(0.05, gt=0, le=10, description="Divides the similarities: lower looks harder at near neighbours.")


class Pairs(nn.Module):
    """Contrastive pairs of texts, source and target read by one backbone; the other pairs of a batch are the negatives."""

    Options = PairsOptions
    needs: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[frozenset[str]] = frozenset({"text-pair"})
    labels: ClassVar[bool] = True  # rows without a target have none to find
    views: ClassVar[int] = 1
    augmentation: ClassVar[str] = "none"
    packed: ClassVar[bool] = False

    def __init__(self, options: PairsOptions, backbone: nn.Module, spec: DataSpec):
        super().__init__()
        self.temperature, self.backbone = options.temperature, backbone

    def step(self, batch: Batch) -> StepResult:
        """InfoNCE in nats in both directions, and the share of sources that find their targets."""
        features_BD = self.backbone.encode(both_sides(batch.inputs)).pooled_BD
        result = contrast_sides(features_BD, batch, self.temperature)
        (all_BD,) = gathered_views(batch.part, features_BD.detach())
        return StepResult(result.loss, {**result.extras, "feature_spread": spread(all_BD)})
