"""Residual networks (He et al. 2015, arXiv:1512.03385), from torchvision.

B batch, C channels, D features, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from ml.contracts import DataSpec, Features, Options
from ml.published import Stem, is_small, torchvision_weights


class ResNetOptions(Options):
    stem: Stem = Field(Stem.auto, description="small: 3x3 stride 1 without pooling; standard: 7x7 stride 2 and pooling; auto: small up to 64 pixels.")


class _ResNet(nn.Module):
    Options = ResNetOptions
    modalities: ClassVar[frozenset[str]] = frozenset({"image"})
    traits: ClassVar[frozenset[str]] = frozenset({"map"})
    model: ClassVar[str]

    def __init__(self, options: ResNetOptions, spec: DataSpec):
        super().__init__()
        import torchvision  # imported where it is used: it costs seconds

        channels = spec.shape[0]
        self.net = torchvision.models.get_model(self.model, weights=None)
        self.width = self.net.fc.in_features
        self.net.fc = nn.Identity()
        if is_small(options.stem, spec.shape):
            self.net.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
            self.net.maxpool = nn.Identity()
        elif channels != 3:
            self.net.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.net.conv1.weight, mode="fan_out", nonlinearity="relu")

    def encode(self, inputs: Mapping[str, Tensor]) -> Features:
        """Encodes image (B, C, H, W)."""
        net = self.net
        x_BDHW = net.maxpool(net.relu(net.bn1(net.conv1(inputs["image"]))))
        map_BDHW = net.layer4(net.layer3(net.layer2(net.layer1(x_BDHW))))
        return Features(map_BDHW.mean((2, 3)), map_BDHW=map_BDHW)

    def layers(self) -> list[nn.Module]:
        net = self.net
        return [nn.ModuleList([net.conv1, net.bn1]), net.layer1, net.layer2, net.layer3, net.layer4]

    def published(self, name: str) -> Mapping[str, Tensor]:
        """The tensors of torchvision's weights called `name`."""
        return torchvision_weights(self.model, name)


class ResNet18(_ResNet):
    """ResNet-18: 11 million weights; the usual choice where there is a GPU or much time."""

    model = "resnet18"


class ResNet34(_ResNet):
    """ResNet-34: 21 million weights."""

    model = "resnet34"


class ResNet50(_ResNet):
    """ResNet-50: 24 million weights, bottleneck blocks."""

    model = "resnet50"
