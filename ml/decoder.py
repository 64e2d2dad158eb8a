"""Decoders and pictures that objectives share: from a backbone's map back to the image.

B batch, C channels, D features, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ml.contracts import DataSpec, Features

SHOWN = 8  # images in a reconstruction picture


def probe_features(backbone: nn.Module, spec: DataSpec) -> Features:
    """What the backbone makes of one black image: tells the sizes of its map. Leaves its mode and statistics as they were."""
    training = backbone.training
    with torch.no_grad():
        features = backbone.eval().encode({"image": torch.zeros(1, *spec.shape, device=next(backbone.parameters()).device)})
    backbone.train(training)
    return features


class MapDecoder(nn.Module):
    """A light decoder from a map (B, D, h, w) to images (B, C, H, W): doubles the side and halves the channels at each step."""

    def __init__(self, depth: int, side: int, shape: tuple[int, ...], width: int):
        super().__init__()
        self.size = tuple(shape[1:])
        layers: list[nn.Module] = [nn.Conv2d(depth, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        while side < max(self.size):
            narrower = max(16, width // 2)
            layers += [nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(width, narrower, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(narrower), nn.ReLU(inplace=True)]
            width, side = narrower, side * 2
        self.layers = nn.Sequential(*layers)
        self.image = nn.Conv2d(width, shape[0], 3, padding=1)

    def forward(self, map_BDHW: Tensor) -> Tensor:
        x_BDHW = self.layers(map_BDHW)
        if x_BDHW.shape[2:] != self.size:
            x_BDHW = F.interpolate(x_BDHW, self.size, mode="bilinear", align_corners=False)
        return self.image(x_BDHW)


def to_pixels(x_BCHW: Tensor, statistics: Mapping[str, list[float]]) -> Tensor:
    """Undoes the normalisation: images in [0, 1]."""
    mean, std = (torch.tensor(statistics[name], device=x_BCHW.device)[:, None, None] for name in ("mean", "std"))
    return (x_BCHW.float() * std + mean).clamp(0, 1)


def grid(rows: list[Tensor], statistics: Mapping[str, list[float]]) -> Tensor:
    """One image (C, H, W) in [0, 1]: each row shows the first images of a batch."""
    return torch.cat([torch.cat(list(to_pixels(row[:SHOWN], statistics)), 2) for row in rows], 1).cpu()
