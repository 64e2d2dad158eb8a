"""VGG networks with batch normalisation (Simonyan & Zisserman 2014, arXiv:1409.1556), from torchvision, without the classifier.

B batch, C channels, D features, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from ml.contracts import DataSpec, Features, InputError, Options
from ml.published import Stem, is_small, torchvision_weights

SMALLEST_MAP = 2  # pixels on the last map's side, which the small stem keeps


class VGGOptions(Options):
    stem: Stem = Field(Stem.auto, description="small: without the last poolings, as far as needed for a map of 2x2; standard: all five; auto: small up to 64 pixels.")


class _VGG(nn.Module):
    Options = VGGOptions
    modalities: ClassVar[frozenset[str]] = frozenset({"image"})
    traits: ClassVar[frozenset[str]] = frozenset({"map"})
    width = 512
    model: ClassVar[str]

    def __init__(self, options: VGGOptions, spec: DataSpec):
        super().__init__()
        channels, *sides = spec.shape
        # Built without its classifier, whose 120 million weights would be drawn and thrown away.
        layers = _features(self.model)
        if channels != 3:
            layers[0] = nn.Conv2d(channels, 64, 3, padding=1)
        nn.init.kaiming_normal_(layers[0].weight, mode="fan_out", nonlinearity="relu")
        side = min(sides)
        for index, layer in enumerate(layers):
            if isinstance(layer, nn.MaxPool2d):
                if is_small(options.stem, spec.shape) and side // 2 < SMALLEST_MAP:
                    layers[index] = nn.Identity()  # keeps the numbering of the weights
                else:
                    side //= 2
        if side == 0:
            raise InputError(f"images of {spec.shape[1]}x{spec.shape[2]} pixels vanish in VGG's five poolings: set backbone.options.stem=small or use 32 pixels or more")
        self.net = nn.ModuleDict({"features": layers})
        self._blocks = _blocks(layers)

    def encode(self, inputs: Mapping[str, Tensor]) -> Features:
        """Encodes image (B, C, H, W)."""
        map_BDHW = inputs["image"]
        for block in self._blocks:
            map_BDHW = block(map_BDHW)
        return Features(map_BDHW.mean((2, 3)), map_BDHW=map_BDHW)

    def layers(self) -> list[nn.Module]:
        return list(self._blocks)

    def published(self, name: str) -> Mapping[str, Tensor]:
        """The tensors of torchvision's weights called `name`."""
        return torchvision_weights(self.model, name)


def _features(model: str) -> nn.Sequential:
    from torchvision.models.vgg import cfgs, make_layers  # imported where it is used: it costs seconds

    layout = cfgs[{"vgg11_bn": "A", "vgg16_bn": "D"}[model]]
    layers = make_layers(layout, batch_norm=True)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return layers


def _blocks(layers: nn.Sequential) -> tuple[nn.Sequential, ...]:
    """The same layers by the width of their maps; a tuple, so that weights keep the names that published ones have."""
    blocks: list[list[nn.Module]] = [[]]
    width = layers[0].out_channels
    for layer in layers:
        if getattr(layer, "out_channels", width) != width:
            width = layer.out_channels
            blocks.append([])
        blocks[-1].append(layer)
    return tuple(nn.Sequential(*block) for block in blocks)


class VGG11(_VGG):
    """VGG-11 with batch normalisation: 9 million weights, plain and fast to run, larger maps than ResNets at the same cost."""

    model = "vgg11_bn"


class VGG16(_VGG):
    """VGG-16 with batch normalisation: 15 million weights."""

    model = "vgg16_bn"
