"""Masked images: what is hidden is restored from what is seen.

A backbone that can leave patches out ("maskable") encodes the visible ones alone, as MAE does (He et al. 2021,
arXiv:2111.06377); in any other, hidden patches are replaced by a learned colour (SimMIM, Xie et al. 2021, arXiv:2111.09886).

B batch, C channels, D features, H and W height and width, P values of a patch, T patches, V visible ones.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ml.contracts import Batch, DataSpec, Options, StepResult
from ml.decoder import MapDecoder, grid, probe_features


class MaskedOptions(Options):
    ratio: float | None = Field(None, gt=0, lt=1, description="Share of the patches that is hidden; unset, 0.75 where the backbone leaves them out and 0.5 elsewhere.")
    decoder: int = Field(128, ge=16, le=4096, description="Features of the decoder.")
    decoder_depth: int = Field(2, ge=1, le=16, description="Transformer blocks of the decoder of a backbone that leaves patches out.")


class Masked(nn.Module):
    """Masked images (MAE, SimMIM): restores hidden patches from visible ones."""

    Options = MaskedOptions
    needs: ClassVar[frozenset[str]] = frozenset({"map"})
    labels: ClassVar[bool] = False
    views: ClassVar[int] = 1
    augmentation: ClassVar[str] = "light"
    packed: ClassVar[bool] = False

    def __init__(self, options: MaskedOptions, backbone: nn.Module, spec: DataSpec):
        super().__init__()
        self.backbone, self.statistics = backbone, spec.statistics
        task = _VisibleOnly if "maskable" in backbone.traits else _Replaced
        self.task = task(options, backbone, spec)

    def step(self, batch: Batch) -> StepResult:
        image_BCHW = batch.inputs["image"]
        restored_BCHW, hidden_B1HW = self.task(self.backbone, image_BCHW)
        error_BCHW = (restored_BCHW.float() - image_BCHW).square() * hidden_B1HW
        return StepResult(error_BCHW.sum() / (hidden_B1HW.sum() * image_BCHW.shape[1]).clamp(min=1))

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Rows: as given, what was seen, with the hidden part restored."""
        image_BCHW = batch.inputs["image"]
        restored_BCHW, hidden_B1HW = self.task(self.backbone, image_BCHW)
        seen_BCHW = image_BCHW * (1 - hidden_B1HW)
        return {"masked": grid([image_BCHW, seen_BCHW, seen_BCHW + restored_BCHW * hidden_B1HW], self.statistics)}


class _Replaced(nn.Module):
    """Hides squares of a convolutional network's input behind a learned colour, and decodes its map."""

    def __init__(self, options: MaskedOptions, backbone: nn.Module, spec: DataSpec):
        super().__init__()
        self.ratio = options.ratio or 0.5
        self.cells = max(2, min(8, min(spec.shape[1:]) // 4))  # squares a side: at least 4 pixels, at most an eighth of the image
        depth, side = probe_features(backbone, spec).map_BDHW.shape[1:3]
        self.decoder = MapDecoder(depth, side, spec.shape, options.decoder)
        self.colour = nn.Parameter(torch.zeros(spec.shape[0], 1, 1))

    def forward(self, backbone: nn.Module, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Restored images, and masks (B, 1, H, W) that are 1 where the image was hidden."""
        kept_BV = _kept(len(image_BCHW), self.cells**2, self.ratio, image_BCHW.device)
        hidden_B1HW = _hidden(kept_BV, self.cells, image_BCHW.shape[2:])
        seen_BCHW = torch.where(hidden_B1HW > 0, self.colour.to(image_BCHW.dtype), image_BCHW)
        return self.decoder(backbone.encode({"image": seen_BCHW}).map_BDHW), hidden_B1HW


class _VisibleOnly(nn.Module):
    """Encodes visible patches alone, and decodes all from them with a small transformer."""

    def __init__(self, options: MaskedOptions, backbone: nn.Module, spec: DataSpec):
        super().__init__()
        self.ratio, self.patch, self.grid = options.ratio or 0.75, backbone.patch, backbone.grid
        width, patches = options.decoder, backbone.grid**2
        self.enter = nn.Linear(backbone.width, width)
        self.hidden = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, patches, width) * 0.02)
        heads = next(heads for heads in (4, 2, 1) if width % heads == 0)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
            for _ in range(options.decoder_depth)
        )
        self.norm = nn.LayerNorm(width)
        self.pixels = nn.Linear(width, spec.shape[0] * backbone.patch**2)

    def forward(self, backbone: nn.Module, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Restored images, and masks (B, 1, H, W) that are 1 where the image was hidden."""
        batch, _, height, width = image_BCHW.shape
        kept_BV = _kept(batch, self.grid**2, self.ratio, image_BCHW.device)
        seen_BVD = self.enter(backbone.encode({"image": image_BCHW}, kept_BV).tokens_BTD)
        index_BVD = kept_BV[:, :, None].expand(-1, -1, seen_BVD.shape[2])
        tokens_BTD = self.hidden.to(seen_BVD.dtype).expand(batch, self.grid**2, -1).scatter(1, index_BVD, seen_BVD) + self.positions
        for block in self.blocks:
            tokens_BTD = block(tokens_BTD)
        pixels_BPT = self.pixels(self.norm(tokens_BTD)).transpose(1, 2)
        side = self.grid * self.patch
        restored_BCHW = F.fold(pixels_BPT.float(), side, self.patch, stride=self.patch)[:, :, :height, :width]
        return restored_BCHW, _hidden(kept_BV, self.grid, (side, side))[:, :, :height, :width]


def _kept(batch: int, patches: int, ratio: float, device: torch.device) -> Tensor:
    """Indices (B, V) of the patches that stay visible, sorted; drawn on the CPU, whose generator the loop seeds for each step."""
    visible = min(patches - 1, max(1, round(patches * (1 - ratio))))
    return torch.rand(batch, patches).argsort(1)[:, :visible].sort(1).values.to(device)


def _hidden(kept_BV: Tensor, cells: int, size: tuple[int, ...]) -> Tensor:
    """Masks (B, 1, H, W) over an image of cells x cells patches: 0 where a patch is kept, 1 elsewhere."""
    mask_BT = torch.ones(len(kept_BV), cells**2, device=kept_BV.device).scatter(1, kept_BV, 0.0)
    return F.interpolate(mask_BT.view(-1, 1, cells, cells), tuple(size), mode="nearest")
