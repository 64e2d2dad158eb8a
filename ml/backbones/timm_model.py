"""Any image model of the timm library, by name: `timm:convnext_atto`. Needs the extra `timm`.

B batch, C channels, D features, H and W height and width, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ml.contracts import DataSpec, Features, InputError, Options


class TimmOptions(Options):
    model: str = Field("resnet18", min_length=1, max_length=200, description="Name of the model in timm, such as convnext_atto; `timm:NAME` fills it.")
    arguments: dict[str, bool | int | float | str] = Field(default_factory=dict, description="Further arguments of timm.create_model, such as drop_path_rate.")


class TimmModel(nn.Module):
    """Any model of the timm library, as `timm:NAME`; needs `pip install 'warmstart[timm]'`."""

    Options = TimmOptions
    argument = "model"
    requires: ClassVar[tuple[str, ...]] = ("timm",)
    modalities: ClassVar[frozenset[str]] = frozenset({"image"})
    traits: ClassVar[frozenset[str]] = frozenset({"map"})

    def __init__(self, options: TimmOptions, spec: DataSpec):
        super().__init__()
        self.model = options.model
        self.net = _create(options, spec)
        training = self.net.training
        with torch.no_grad():
            self.width = self.eval().encode({"image": torch.zeros(1, *spec.shape)}).pooled_BD.shape[1]
        self.train(training)

    def encode(self, inputs: Mapping[str, Tensor]) -> Features:
        """Encodes image (B, C, H, W)."""
        features = self.net.forward_features(inputs["image"])
        pooled_BD = self.net.forward_head(features, pre_logits=True)
        return Features(pooled_BD, map_BDHW=self._map(features))

    def _map(self, features: Tensor) -> Tensor:
        """Features as (B, D, H, W): timm's models give that, (B, H, W, D) or tokens (B, T, D), some of which are no patches."""
        if features.ndim == 3:
            patches_BTD = features[:, getattr(self.net, "num_prefix_tokens", 0) :]
            grid = getattr(getattr(self.net, "patch_embed", None), "grid_size", None) or [math.isqrt(patches_BTD.shape[1])] * 2
            return patches_BTD.transpose(1, 2).unflatten(2, tuple(grid))
        if getattr(self.net, "output_fmt", "NCHW") == "NHWC":
            return features.permute(0, 3, 1, 2)
        return features

    def layers(self) -> list[nn.Module]:
        """The children in the order in which timm lists them, which is depth order; sequences of blocks are taken apart."""
        listed: list[nn.Module] = []
        loose = nn.ParameterList([parameter for _, parameter in self.net.named_parameters(recurse=False)])
        if len(loose):
            listed.append(loose)
        for child in self.net.children():
            parts = list(child) if isinstance(child, nn.Sequential | nn.ModuleList) else [child]
            listed.extend(part for part in parts if any(True for _ in part.parameters()))
        return listed

    def published(self, name: str) -> Mapping[str, Tensor]:
        """The tensors of timm's own weights: `pretrained`, or a tag such as `in1k`."""
        import timm

        model = self.model if name == "pretrained" else f"{self.model.split('.')[0]}.{name}"
        try:
            return timm.create_model(model, pretrained=True).state_dict()
        except Exception as error:  # the hub's client raises its own and its transports' errors, which are many
            raise InputError(f"timm has no weights for {model!r} within reach: {' '.join(str(error).split())[:300]}") from None


def _create(options: TimmOptions, spec: DataSpec) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise InputError("backbone timm needs the timm library: install the extra with `pip install 'warmstart[timm]'`") from None
    if not timm.is_model(options.model):
        near = timm.list_models(f"*{options.model.split('.')[0]}*")[:8]
        hint = f"Near: {', '.join(near)}." if near else "timm.list_models() lists all."
        raise InputError(f"timm has no model {options.model!r}. {hint}")
    arguments = {"pretrained": False, "num_classes": 0, "in_chans": spec.shape[0], **options.arguments}
    try:
        return timm.create_model(options.model, img_size=tuple(spec.shape[1:]), **arguments)
    except TypeError:
        pass  # convolutional models take any size and know no img_size
    except (AssertionError, ValueError) as error:
        raise InputError(f"timm's {options.model} cannot be built for images of {spec.shape[1]}x{spec.shape[2]} pixels: {error}") from None
    try:
        return timm.create_model(options.model, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"timm's {options.model} cannot be built with {arguments}: {error}") from None
