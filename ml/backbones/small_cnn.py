"""A small residual network for CPUs: dense 3x3 convolutions at low resolution, which CPUs with wide vectors do fastest.

At 32x32x3 it takes at most 10 million multiply-adds (20 MFLOP). Batch normalisation goes before ReLU, as in He et al. 2015
(arXiv:1512.03385). B batch, C channels, D features, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ml.contracts import DataSpec, Features, Options

STAGES = ((32, 0), (64, 1), (128, 1))  # (channels, residual blocks) at strides 2, 4 and 8 of a 32-pixel image
BASE_SIDE = 48  # larger images are first taken down by more strided convolutions


class SmallCNNOptions(Options):
    width: float = Field(1.0, gt=0, le=16, description="Multiplies the channels of every stage; the cost grows with its square.")


class SmallCNN(nn.Module):
    """Small residual network, 20 MFLOP at 32 pixels: the choice for training on a CPU."""

    Options = SmallCNNOptions
    modalities: ClassVar[frozenset[str]] = frozenset({"image"})
    traits: ClassVar[frozenset[str]] = frozenset({"map"})

    def __init__(self, options: SmallCNNOptions, spec: DataSpec):
        super().__init__()
        channels, *sides = spec.shape
        widths = [max(8, round(options.width * width / 8) * 8) for width, _ in STAGES]
        self.width = widths[-1]
        side = max(sides)
        stem = []
        while side > BASE_SIDE:
            stem.append(_Convolution(channels, max(8, widths[0] // 2), stride=2))
            channels, side = max(8, widths[0] // 2), (side + 1) // 2
        # Tiny images keep their resolution as long as the last map would otherwise be smaller than 2x2 pixels.
        strides = [2 if side >= 2 ** (len(STAGES) - stage) * 2 else 1 for stage in range(len(STAGES))]
        self.stem = nn.Sequential(*stem, _Convolution(channels, widths[0], stride=strides[0]))
        self.stages = nn.ModuleList()
        before = widths[0]
        for index, (width, (_, blocks)) in enumerate(zip(widths, STAGES, strict=True)):
            down = [_Convolution(before, width, stride=strides[index])] if index else []
            self.stages.append(nn.Sequential(*down, *(_Block(width) for _ in range(blocks))))
            before = width

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


class _Block(nn.Module):
    """Two 3x3 convolutions around a shortcut, which starts as the identity: the last scale is zero (arXiv:1706.02677)."""

    def __init__(self, width: int):
        super().__init__()
        self.first = _Convolution(width, width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        nn.init.kaiming_normal_(self.second[0].weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.second[1].weight)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        return F.relu(x_BDHW + self.second(self.first(x_BDHW)), inplace=True)
