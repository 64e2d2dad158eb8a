"""Augmentation of a whole batch of images on its device, each with its own random parameters.

Shift, resized crop, flips and rotation are composed into one affine map and one resampling; colour operations follow, fused
into one matrix where they are linear; then blur, noise, erasing, and mixing. All randomness comes from the generator given,
on the CPU, so the same generator gives the same batch on every device.

B batch, C channels, H and W height and width in pixels. Images are float in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ml.contracts import ALL, DataSpec, Mix, Options

LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in gray (ITU-R BT.601)
SMALLEST = 1e-6  # alpha of a Beta distribution; below, what is drawn can no longer be told from 0 and 1


class Augmentation(Options):
    crop: float = Field(0.0, ge=0, le=0.5, description="Largest shift, as a share of the side; the border is reflected.")
    resized_crop: float = Field(0.0, ge=0, le=1, description="Smallest share of the area that a resized crop keeps; 0 crops nothing.")
    ratio: float = Field(4 / 3, ge=1, le=4, description="Largest ratio of the sides of a resized crop, either way.")
    flip: float = Field(0.0, ge=0, le=1, description="Probability of a left-right flip.")
    vertical_flip: float = Field(0.0, ge=0, le=1, description="Probability of an upside-down flip.")
    rotation: float = Field(0.0, ge=0, le=180, description="Largest rotation, in degrees, either way.")
    brightness: float = Field(0.0, ge=0, le=1, description="Largest relative change of brightness.")
    contrast: float = Field(0.0, ge=0, le=1, description="Largest relative change of contrast.")
    saturation: float = Field(0.0, ge=0, le=1, description="Largest relative change of saturation; colour images only.")
    hue: float = Field(0.0, ge=0, le=0.5, description="Largest turn of the hue, as a share of the circle; colour images only.")
    jitter: float = Field(1.0, ge=0, le=1, description="Probability that brightness, contrast, saturation and hue change at all.")
    gray: float = Field(0.0, ge=0, le=1, description="Probability that colour is removed; colour images only.")
    blur: float = Field(0.0, ge=0, le=1, description="Probability of a Gaussian blur.")
    erasing: float = Field(0.0, ge=0, le=1, description="Probability that a rectangle is replaced by the image's mean.")
    noise: float = Field(0.0, ge=0, le=1, description="Largest standard deviation of added noise; white is 1.")
    mixup: float = Field(0.0, ge=0, le=10, description="Alpha of mixup's Beta distribution; 0 mixes nothing.")
    cutmix: float = Field(0.0, ge=0, le=10, description="Alpha of cutmix's Beta distribution; 0 mixes nothing. With mixup, each batch draws one.")

    @property
    def mixes(self) -> bool:
        return bool(self.mixup or self.cutmix)


def _none(spec: DataSpec) -> Augmentation:
    return Augmentation()


def _light(spec: DataSpec) -> Augmentation:
    """Shifts, and flips of colour images. Gray ones are often digits, glyphs or X-rays, which a flip falsifies."""
    return Augmentation(crop=_shift(spec), flip=0.5 if _is_colour(spec) else 0.0)


def _standard(spec: DataSpec) -> Augmentation:
    if _is_colour(spec):
        return Augmentation(crop=_shift(spec), flip=0.5, brightness=0.2, contrast=0.2, saturation=0.2, jitter=0.5, erasing=0.25)
    return Augmentation(crop=_shift(spec), rotation=8, brightness=0.1, contrast=0.2, jitter=0.5)


def _contrastive(spec: DataSpec) -> Augmentation:
    """After SimCLR (arXiv:2002.05709), with gentler crops of tiny images, where a small one shows nothing."""
    side = min(spec.shape[1:])
    smallest = 0.5 if side < 16 else 0.25 if side <= 32 else 0.2
    if _is_colour(spec):
        return Augmentation(
            resized_crop=smallest, flip=0.5, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter=0.8, gray=0.2,
            blur=0.5 if side > 64 else 0.0,
        )  # fmt: skip
    return Augmentation(
        resized_crop=max(smallest, 0.35), rotation=12, brightness=0.3, contrast=0.4, jitter=0.8,
        blur=0.5 if side > 64 else 0.0, noise=0.05,
    )  # fmt: skip


def _is_colour(spec: DataSpec) -> bool:
    return spec.shape[0] == 3


def _shift(spec: DataSpec) -> float:
    return 0.125 if min(spec.shape[1:]) >= 16 else 0.1


PRESETS: dict[str, Callable[[DataSpec], Augmentation]] = {
    "none": _none,
    "light": _light,
    "standard": _standard,
    "contrastive": _contrastive,
}


def augment(x_BCHW: Tensor, augmentation: Augmentation, generator: torch.Generator, batch: int = 0, part: slice = ALL) -> tuple[Tensor, Mix | None]:
    """Augments float images in [0, 1]; a Mix says which targets were mixed, where mixup or cutmix is on.

    The images may be a `part` of a `batch` of so many, and are then augmented as they are in the whole, unless it mixes them.
    """
    draw = _Draw(batch or len(x_BCHW), part, x_BCHW.device, generator)
    x_BCHW = _geometry(x_BCHW, augmentation, draw)
    x_BCHW = _colour(x_BCHW, augmentation, draw)
    if augmentation.blur:
        x_BCHW = _blur(x_BCHW, augmentation.blur, draw)
    if augmentation.noise:
        std_B = draw.uniform(0, augmentation.noise)
        x_BCHW = (x_BCHW + std_B[:, None, None, None] * draw.normal(*x_BCHW.shape[1:])).clamp_(0, 1)
    if augmentation.erasing:
        x_BCHW = _erase(x_BCHW, augmentation.erasing, draw)
    return _mix(x_BCHW, augmentation, draw)


class _Draw:
    """Random numbers for a batch, of which those of a part are used: drawn on the CPU, used on the device."""

    def __init__(self, batch: int, part: slice, device: torch.device, generator: torch.Generator):
        self.batch, self.part, self.device, self.generator = batch, part, device, generator

    def uniform(self, low: float, high: float) -> Tensor:
        """One number a sample."""
        return (torch.rand(self.batch, generator=self.generator)[self.part] * (high - low) + low).to(self.device)

    def chance(self, probability: float) -> Tensor:
        """One truth value a sample."""
        return (torch.rand(self.batch, generator=self.generator)[self.part] < probability).to(self.device)

    def normal(self, *shape: int) -> Tensor:
        """Numbers of that shape for each sample."""
        return torch.randn(self.batch, *shape, generator=self.generator)[self.part].to(self.device)

    def permutation(self) -> Tensor:
        return torch.randperm(self.batch, generator=self.generator).to(self.device)

    def beta(self, alpha: float) -> float:
        """One Beta(alpha, alpha) number for the batch; by numpy, as torch draws none from a generator."""
        seed = int(torch.randint(2**62, (), generator=self.generator))
        return float(np.random.default_rng(seed).beta(*2 * [max(alpha, SMALLEST)]))


def _geometry(x_BCHW: Tensor, augmentation: Augmentation, draw: _Draw) -> Tensor:
    """One affine map from output to input positions, both in [−1, 1], and one bilinear resampling, of which shifts and flips alone need none."""
    a = augmentation
    if not (a.crop or a.resized_crop or a.flip or a.vertical_flip or a.rotation):
        return x_BCHW
    batch, _, height, width = x_BCHW.shape
    scale_x, scale_y = torch.ones(batch, device=x_BCHW.device), torch.ones(batch, device=x_BCHW.device)
    shift_x, shift_y = torch.zeros_like(scale_x), torch.zeros_like(scale_x)
    if a.resized_crop:
        area_B = draw.uniform(a.resized_crop, 1)
        ratio_B = draw.uniform(-math.log(a.ratio), math.log(a.ratio)).exp()
        scale_x, scale_y = (area_B * ratio_B).sqrt().clamp(max=1), (area_B / ratio_B).sqrt().clamp(max=1)
        shift_x, shift_y = draw.uniform(-1, 1) * (1 - scale_x), draw.uniform(-1, 1) * (1 - scale_y)
    if a.crop:  # whole pixels, so that a shift alone does not blur
        shift_x = shift_x + (draw.uniform(-a.crop, a.crop) * width).round() * 2 / width
        shift_y = shift_y + (draw.uniform(-a.crop, a.crop) * height).round() * 2 / height
    if a.flip:
        scale_x = torch.where(draw.chance(a.flip), -scale_x, scale_x)
    if a.vertical_flip:
        scale_y = torch.where(draw.chance(a.vertical_flip), -scale_y, scale_y)
    if not (a.resized_crop or a.rotation):
        return _moved(x_BCHW, _places(scale_y, shift_y, height), _places(scale_x, shift_x, width))
    angle_B = draw.uniform(-a.rotation, a.rotation) * (math.pi / 180) if a.rotation else torch.zeros_like(scale_x)
    cosine_B, sine_B, aspect = angle_B.cos(), angle_B.sin(), height / width
    x_W, y_H = _middles(width, x_BCHW.device), _middles(height, x_BCHW.device)
    across = scale_x * cosine_B, -scale_x * sine_B * aspect, shift_x
    down = scale_y * sine_B / aspect, scale_y * cosine_B, shift_y
    grid_BHW2 = torch.empty(batch, height, width, 2, device=x_BCHW.device)
    for axis, (by_x, by_y, shift) in enumerate((across, down)):  # as affine_grid, whose matrix product takes as long as the resampling
        torch.add((by_x[:, None] * x_W)[:, None, :], (by_y[:, None] * y_H + shift[:, None])[:, :, None], out=grid_BHW2[..., axis])
    return F.grid_sample(x_BCHW, grid_BHW2, mode="bilinear", padding_mode="reflection", align_corners=False)


def _middles(side: int, device: torch.device) -> Tensor:
    """Where the middles of the pixels lie between −1 and 1."""
    return (2 * torch.arange(side, device=device) + 1) / side - 1


def _places(scale_B: Tensor, shift_B: Tensor, side: int) -> Tensor:
    """(B, side) int64: which line or column of the input each one of the output shows, reflected at the border."""
    place = torch.arange(side, device=scale_B.device)
    place_BN = torch.where(scale_B[:, None] < 0, side - 1 - place, place) + (shift_B * side / 2).round().long()[:, None]
    place_BN = torch.where(place_BN < 0, -1 - place_BN, place_BN)
    return torch.where(place_BN >= side, 2 * side - 1 - place_BN, place_BN)


def _moved(x_BCHW: Tensor, line_BH: Tensor, column_BW: Tensor) -> Tensor:
    """Pixels taken from where they are told to be, nine times as fast as resampling."""
    place_BN = (line_BH[:, :, None] * x_BCHW.shape[3] + column_BW[:, None, :]).flatten(1)
    return x_BCHW.flatten(2).gather(2, place_BN[:, None].expand(-1, x_BCHW.shape[1], -1)).view(x_BCHW.shape)


def _colour(x_BCHW: Tensor, augmentation: Augmentation, draw: _Draw) -> Tensor:
    """Brightness, contrast, saturation, hue and gray, all linear in the channels: one matrix and one offset a sample."""
    a = augmentation
    batch, channels = x_BCHW.shape[:2]
    colour = channels == 3
    if not (a.brightness or a.contrast or (colour and (a.saturation or a.hue or a.gray))):
        return x_BCHW
    device = x_BCHW.device
    eye = torch.eye(channels, device=device)
    changed_B = draw.chance(a.jitter) if a.jitter < 1 else torch.ones(batch, dtype=torch.bool, device=device)

    def factor(change: float) -> Tensor:
        return torch.where(changed_B, draw.uniform(1 - change, 1 + change), 1.0)[:, None, None]

    matrix_BCC = factor(a.brightness) * eye if a.brightness else eye.expand(batch, -1, -1)
    offset_BC1 = torch.zeros(batch, channels, 1, device=device)
    luma = torch.tensor([LUMA] if colour else [[1 / channels] * channels], device=device)
    if a.contrast:
        keep = factor(a.contrast)
        mean_BC1 = x_BCHW.mean((2, 3))[:, :, None]
        offset_BC1 = (1 - keep) * (luma @ (matrix_BCC @ mean_BC1)).expand(-1, channels, -1)
        matrix_BCC = keep * matrix_BCC
    if colour and (a.saturation or a.hue or a.gray):
        to_gray = luma.expand(3, 3)
        turn = eye.expand(batch, -1, -1)
        if a.saturation:
            keep = factor(a.saturation)
            turn = keep * eye + (1 - keep) * to_gray
        if a.hue:
            angle_B = torch.where(changed_B, draw.uniform(-a.hue, a.hue) * 2 * math.pi, 0.0)
            turn = _hue(angle_B) @ turn
        if a.gray:
            turn = torch.where(draw.chance(a.gray)[:, None, None], to_gray, turn)
        matrix_BCC, offset_BC1 = turn @ matrix_BCC, turn @ offset_BC1
    return torch.baddbmm(offset_BC1, matrix_BCC, x_BCHW.flatten(2)).clamp_(0, 1).view(x_BCHW.shape)


def _hue(angle_B: Tensor) -> Tensor:
    """Rotation (B, 3, 3) of the colours around the gray axis (Rodrigues), close to a turn of the hue and linear."""
    cosine, sine = angle_B.cos()[:, None, None], angle_B.sin()[:, None, None]
    third = torch.full((3, 3), 1 / 3, device=angle_B.device)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=angle_B.device) / math.sqrt(3)
    return cosine * torch.eye(3, device=angle_B.device) + sine * cross + (1 - cosine) * third


def _blur(x_BCHW: Tensor, probability: float, draw: _Draw) -> Tensor:
    """Gaussian blur with a standard deviation of up to 2 % of the side (at least 1 pixel) as a grouped, separable convolution."""
    batch, channels, height, width = x_BCHW.shape
    largest = max(1.0, 0.02 * min(height, width))
    radius = min(math.ceil(2 * largest), min(height, width) - 1)
    sigma_B = draw.uniform(0.1 * largest, largest)
    at = torch.arange(-radius, radius + 1, device=x_BCHW.device)
    kernel_BK = torch.exp(-0.5 * (at / sigma_B[:, None]) ** 2)
    kernel_BK = kernel_BK / kernel_BK.sum(1, keepdim=True)
    identity_K = (at == 0).to(kernel_BK.dtype)
    kernel_BK = torch.where(draw.chance(probability)[:, None], kernel_BK, identity_K)
    kernel = kernel_BK.repeat_interleave(channels, 0)
    x = x_BCHW.reshape(1, batch * channels, height, width)
    x = F.conv2d(F.pad(x, (0, 0, radius, radius), mode="reflect"), kernel[:, None, :, None], groups=batch * channels)
    x = F.conv2d(F.pad(x, (radius, radius, 0, 0), mode="reflect"), kernel[:, None, None, :], groups=batch * channels)
    return x.view(x_BCHW.shape).clamp_(0, 1)


def _box(height: int, width: int, scale_y: Tensor, scale_x: Tensor, draw: _Draw, device: torch.device) -> Tensor:
    """Masks (B, 1, H, W) of one rectangle a sample, with sides that are the given shares, wholly inside the image."""
    top, left = draw.uniform(0, 1) * (1 - scale_y) * height, draw.uniform(0, 1) * (1 - scale_x) * width
    y = torch.arange(height, device=device)[None, :] + 0.5
    x = torch.arange(width, device=device)[None, :] + 0.5
    rows = (y >= top[:, None]) & (y < (top + scale_y * height)[:, None])
    columns = (x >= left[:, None]) & (x < (left + scale_x * width)[:, None])
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def _erase(x_BCHW: Tensor, probability: float, draw: _Draw) -> Tensor:
    """Random erasing (arXiv:1708.04896) of 2 to 25 % of the area, by the image's mean."""
    area_B, ratio_B = draw.uniform(0.02, 0.25), draw.uniform(-1, 1).exp()
    scale_y, scale_x = (area_B * ratio_B).sqrt().clamp(max=1), (area_B / ratio_B).sqrt().clamp(max=1)
    mask = _box(*x_BCHW.shape[2:], scale_y, scale_x, draw, x_BCHW.device) & draw.chance(probability)[:, None, None, None]
    return torch.where(mask, x_BCHW.mean((2, 3), keepdim=True), x_BCHW)


def _mix(x_BCHW: Tensor, augmentation: Augmentation, draw: _Draw) -> tuple[Tensor, Mix | None]:
    """Mixup (arXiv:1710.09412) or cutmix (arXiv:1905.04899) with another sample of the batch."""
    if not augmentation.mixes:
        return x_BCHW, None
    cut = bool(augmentation.cutmix)
    if cut and augmentation.mixup:
        cut = bool(torch.rand((), generator=draw.generator) < 0.5)
    weight, partner_B = draw.beta(augmentation.cutmix if cut else augmentation.mixup), draw.permutation()
    if cut:
        scale = torch.full((len(x_BCHW),), math.sqrt(1 - weight), device=x_BCHW.device)
        mask = _box(*x_BCHW.shape[2:], scale, scale, draw, x_BCHW.device)
        return torch.where(mask, x_BCHW[partner_B], x_BCHW), Mix(partner_B, 1 - mask.float().mean((1, 2, 3)))
    mixed = torch.lerp(x_BCHW[partner_B], x_BCHW, weight)
    return mixed, Mix(partner_B, torch.full((len(x_BCHW),), weight, device=x_BCHW.device))
