"""SimCLR (Chen et al. 2020, arXiv:2002.05709): two views of an item attract each other and repel those of all others.

Of texts that are not altered at all, by the preset "none", two views still differ by the backbone's dropout: that is unsupervised SimCSE (Gao et
al. 2021, arXiv:2104.08821), with a temperature of 0.05 and an output of 0.

B rows of both views of a batch, b those of this process, D features.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import nn
from torch.nn import functional as F

from ml.contracts import Batch, DataSpec, Options, StepResult
from ml.losses import similarities
from ml.projector import encode_views, gathered_views, own_places, projector, spread


class SimCLROptions(Options):
    temperature: float = Field(0.2, gt=0, le=10, description="Divides the similarities: lower looks harder at near neighbours.")
    hidden: int = Field(512, ge=8, le=65_536, description="Features of the projector's hidden layer.")
    output: int = Field(128, ge=0, le=65_536, description="Features that are compared; 0 compares those of the backbone, without a projector.")


class SimCLR(nn.Module):
    """Contrastive learning of two augmented views with the NT-Xent loss."""

    Options = SimCLROptions
    needs: ClassVar[frozenset[str]] = frozenset()
    labels: ClassVar[bool] = False
    views: ClassVar[int] = 2
    augmentation: ClassVar[str] = "contrastive"
    packed: ClassVar[bool] = False

    def __init__(self, options: SimCLROptions, backbone: nn.Module, spec: DataSpec):
        super().__init__()
        self.temperature, self.backbone = options.temperature, backbone
        self.projector = projector(backbone.width, options.hidden, options.output) if options.output else nn.Identity()

    def step(self, batch: Batch) -> StepResult:
        features_bD = encode_views(self.backbone, batch)
        own_bD = self.projector(features_bD)
        projected_BD, features_BD = gathered_views(batch.part, own_bD, features_bD.detach())
        own_b, rows = own_places(batch.part, own_bD), len(projected_BD)
        similarity_bB = similarities(own_bD, projected_BD, self.temperature)  # each process asks for its rows
        similarity_bB = similarity_bB.scatter(1, own_b[:, None], float("-inf"))
        partner_b = (own_b + rows // 2) % rows
        loss = F.cross_entropy(similarity_bB, partner_b)
        found = (similarity_bB.detach().argmax(1) == partner_b).float().mean()
        return StepResult(loss, {"contrastive_accuracy": found, "feature_spread": spread(features_BD)})
