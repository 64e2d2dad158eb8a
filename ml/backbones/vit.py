"""Vision transformers (Dosovitskiy et al. 2020, arXiv:2010.11929), from torchvision, with patches fit to the image size.

B batch, C channels, D features, H and W height and width, T patches, V patches that are kept.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ml.contracts import DataSpec, Features, InputError, Options
from ml.published import torchvision_weights


class Pool(enum.StrEnum):
    mean = "mean"
    token = "class"


class ViTTinyOptions(Options):
    patch: int | None = Field(None, ge=1, le=64, description="Side of a patch in pixels; unset, about an eighth of the image (a fourteenth from 128 pixels).")
    depth: int = Field(6, ge=1, le=48, description="Transformer blocks.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of activations dropped in the blocks.")
    pool: Pool = Field(Pool.mean, description="mean of the patch tokens, or the class token.")


class ViTB16Options(Options):
    patch: int | None = Field(None, ge=1, le=64, description="Side of a patch in pixels; unset, 16, or an eighth of images below 128 pixels.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of activations dropped in the blocks.")
    pool: Pool = Field(Pool.token, description="mean of the patch tokens, or the class token.")


class _ViT(nn.Module):
    modalities: ClassVar[frozenset[str]] = frozenset({"image"})
    traits: ClassVar[frozenset[str]] = frozenset({"map", "tokens", "maskable"})

    def _build(self, spec: DataSpec, patch: int | None, depth: int, heads: int, width: int, dropout: float, pool: Pool) -> None:
        from torchvision.models.vision_transformer import VisionTransformer  # imported where it is used: it costs seconds

        channels, height, breadth = spec.shape
        side = max(height, breadth)
        self.patch = patch or fitting_patch(side)
        if self.patch > side:
            raise InputError(f"backbone.options.patch={self.patch} is larger than the images ({height}x{breadth} pixels)")
        self.width, self.pool = width, pool
        self.side = -(-side // self.patch) * self.patch
        self.grid = self.side // self.patch
        self.net = VisionTransformer(self.side, self.patch, depth, heads, width, 4 * width, dropout=dropout, num_classes=1)
        self.net.heads = nn.Identity()
        if channels != 3:
            self.net.conv_proj = nn.Conv2d(channels, width, self.patch, stride=self.patch)
        # A patch is a linear map of its pixels; torchvision's start leaves the class token at zero, which is fine.
        nn.init.trunc_normal_(self.net.conv_proj.weight, std=(1 / self.net.conv_proj.weight[0].numel()) ** 0.5)
        nn.init.zeros_(self.net.conv_proj.bias)

    def encode(self, inputs: Mapping[str, Tensor], kept_BV: Tensor | None = None) -> Features:
        """Encodes image (B, C, H, W); with `kept_BV`, indices of patches in row order, those patches alone (no map then)."""
        net, image = self.net, inputs["image"]
        image = F.pad(image, (0, self.side - image.shape[3], 0, self.side - image.shape[2]))
        tokens_BTD = net.conv_proj(image).flatten(2).transpose(1, 2) + net.encoder.pos_embedding[:, 1:]
        if kept_BV is not None:
            tokens_BTD = tokens_BTD.gather(1, kept_BV[:, :, None].expand(-1, -1, self.width))
        token_B1D = (net.class_token + net.encoder.pos_embedding[:, :1]).expand(len(image), -1, -1)
        encoder = net.encoder
        x_BTD = encoder.ln(encoder.layers(encoder.dropout(torch.cat([token_B1D, tokens_BTD], 1))))
        token_BD, tokens_BTD = x_BTD[:, 0], x_BTD[:, 1:]
        pooled_BD = token_BD if self.pool is Pool.token else tokens_BTD.mean(1)
        map_BDHW = None if kept_BV is not None else tokens_BTD.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return Features(pooled_BD, map_BDHW=map_BDHW, tokens_BTD=tokens_BTD)

    def layers(self) -> list[nn.Module]:
        net = self.net
        return [_Embedding(net), *net.encoder.layers, net.encoder.ln]


class _Embedding(nn.Module):
    """The patch projection with the class token and the positions, which are parameters of no module of their own."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.projection, self.token, self.positions = net.conv_proj, net.class_token, net.encoder.pos_embedding


def fitting_patch(side: int) -> int:
    """A patch side that makes a grid of about 8x8 patches of small images and 14x14 of large ones."""
    return max(1, round(side / (14 if side >= 128 else 8)))


class ViTTiny(_ViT):
    """Tiny vision transformer: 192 features, 3 heads, 6 blocks, 2.7 million weights; made for masked pretraining."""

    Options = ViTTinyOptions

    def __init__(self, options: ViTTinyOptions, spec: DataSpec):
        super().__init__()
        self._build(spec, options.patch, options.depth, 3, 192, options.dropout, options.pool)


class ViTB16(_ViT):
    """ViT-B/16: 86 million weights, for published weights and GPUs."""

    Options = ViTB16Options

    def __init__(self, options: ViTB16Options, spec: DataSpec):
        super().__init__()
        self._build(spec, options.patch or (16 if max(spec.shape[1:]) >= 128 else None), 12, 12, 768, options.dropout, options.pool)

    def published(self, name: str) -> Mapping[str, Tensor]:
        """The tensors of torchvision's weights called `name`."""
        return torchvision_weights("vit_b_16", name)
