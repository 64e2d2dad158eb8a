"""Denoising autoencoder (Vincent et al. 2008): restores an image from one with noise and missing rectangles.

B batch, C channels, H and W height and width.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ml.contracts import Batch, DataSpec, Options, StepResult
from ml.decoder import MapDecoder, grid, probe_features


class DenoisingOptions(Options):
    noise: float = Field(0.5, ge=0, le=10, description="Standard deviation of the noise; that of the data is 1.")
    erased: float = Field(0.3, ge=0, le=0.9, description="Share of the image that is erased, in squares of an eighth of the side.")
    decoder: int = Field(128, ge=16, le=4096, description="Channels of the decoder's first layer.")


class Denoising(nn.Module):
    """Denoising autoencoder: restores images from noisy ones with missing squares."""

    Options = DenoisingOptions
    needs: ClassVar[frozenset[str]] = frozenset({"map"})
    labels: ClassVar[bool] = False
    views: ClassVar[int] = 1
    augmentation: ClassVar[str] = "light"
    packed: ClassVar[bool] = False

    def __init__(self, options: DenoisingOptions, backbone: nn.Module, spec: DataSpec):
        super().__init__()
        self.options, self.backbone, self.statistics = options, backbone, spec.statistics
        depth, side = probe_features(backbone, spec).map_BDHW.shape[1:3]
        self.decoder = MapDecoder(depth, side, spec.shape, options.decoder)

    def step(self, batch: Batch) -> StepResult:
        clean_BCHW = batch.inputs["image"]
        restored_BCHW = self._restore(self._corrupt(clean_BCHW))
        return StepResult(F.mse_loss(restored_BCHW.float(), clean_BCHW))

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Rows: as given, corrupted, restored."""
        clean_BCHW = batch.inputs["image"]
        corrupted_BCHW = self._corrupt(clean_BCHW)
        return {"denoising": grid([clean_BCHW, corrupted_BCHW, self._restore(corrupted_BCHW)], self.statistics)}

    def _restore(self, corrupted_BCHW: Tensor) -> Tensor:
        return self.decoder(self.backbone.encode({"image": corrupted_BCHW}).map_BDHW)

    def _corrupt(self, clean_BCHW: Tensor) -> Tensor:
        # Drawn on the CPU, whose generator the loop seeds for each step.
        corrupted_BCHW = clean_BCHW + self.options.noise * torch.randn(clean_BCHW.shape).to(clean_BCHW)
        erased_B1HW = (torch.rand(len(clean_BCHW), 1, 8, 8) < self.options.erased).to(clean_BCHW)
        return corrupted_BCHW * (1 - F.interpolate(erased_B1HW, clean_BCHW.shape[2:], mode="nearest"))
