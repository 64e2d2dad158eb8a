"""A small residual network for CPUs: dense 3x3 convolutions at low resolution, which CPUs with wide vectors do fastest.

At 32x32x3 it takes at most 10 million multiply-adds (20 MFLOP). Blocks after He et al. 2015 (arXiv:1512.03385), with one
convolution each. B batch, C channels, D features, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from ml.contracts import DataSpec, Features, Options

STEM = 32  # channels at half the side
STAGES = ((64, 2), (128, 1))  # (channels, residual convolutions) at a quarter and an eighth of the side
LARGE_SIDE = 48  # pixels; larger images are first taken down by further strided convolutions, so that the cost grows slowly


class SmallCNNOptions(Options):
    width: float = Field(1.0, gt=0, le=16, description="Multiplies the channels of every stage; the cost grows with its square.")


class SmallCNN(nn.Module):
    """Small residual network, 20 MFLOP at 32 pixels: the choice for training on a CPU."""

    Options = SmallCNNOptions
    modalities: ClassVar[frozenset[str]] = frozenset({"image"})
    traits: ClassVar[frozenset[str]] = frozenset({"map"})

    def __init__(self, options: SmallCNNOptions, spec: DataSpec):
        super().__init__()
        channels, side = spec.shape[0], max(spec.shape[1:])
        stem_width, *widths = (max(8, round(options.width * width / 8) * 8) for width in (STEM, *(width for width, _ in STAGES)))
        stem = []
        while side > LARGE_SIDE:
            stem.append(_Convolution(channels, stem_width // 2, stride=2))
            channels, side = stem_width // 2, (side + 1) // 2
        stem.append(_Convolution(channels, stem_width, stride=2 if side >= 16 else 1))  # tiny images keep their resolution
        self.stem = nn.Sequential(*stem)
        self.stages = nn.ModuleList()
        before = stem_width
        for width, (_, blocks) in zip(widths, STAGES, strict=True):
            self.stages.append(nn.Sequential(_Convolution(before, width, stride=2), *(_Block(width) for _ in range(blocks))))
            before = width
        self.width = before

    def encode(self, inputs: Mapping[str, Tensor]) -> Features:
        """Encodes image (B, C, H, W)."""
        map_BDHW = self.stem(inputs["image"])
        for stage in self.stages:
            map_BDHW = stage(map_BDHW)
        return Features(map_BDHW.mean((2, 3)), map_BDHW=map_BDHW)

    def layers(self) -> list[nn.Module]:
        return [self.stem, *self.stages]


class _Convolution(nn.Sequential):
    """3x3 convolution, batch normalisation, ReLU."""

    def __init__(self, before: int, after: int, stride: int = 1):
        super().__init__(
            nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
        )
        nn.init.kaiming_normal_(self[0].weight, mode="fan_out", nonlinearity="relu")


class _Block(_Convolution):
    """A convolution beside a shortcut."""

    def __init__(self, width: int):
        super().__init__(width, width)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        return x_BDHW + super().forward(x_BDHW)
