"""Images: decoded with limits, stored as uint8 at one size, encoded and augmented as batches on the device.

Shapes in names: B batch, P pairs, H and W height and width in pixels, C channels (1 gray, 3 RGB).
"""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from ml import contracts
from ml.classical import Classical, classical
from ml.contracts import ALL, DataSpec, Decoded, InputError, Mix, Raw
from ml.modalities import image_augment, image_features
from ml.pixels import Unreadable, difference_hash, pixels, read_header, resized

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MANY_ROWS = 20_000
"""From this many rows on, `plan` chooses smaller pictures: a pass over the data must stay affordable."""

SAME_LEVELS, SAME_EDGES = 0.97, 0.85
"""Least correlations of near-identical pictures: loose enough for recompressed copies, too strict to chain small digits."""
PLAIN = 1.0
"""Below this many levels of contrast a picture shows nothing, and correlations mean nothing."""


class Fit(enum.StrEnum):
    squash = "squash"
    crop = "crop"
    pad = "pad"


class Image:
    """Pictures: PNG, JPEG, WebP, BMP and TIFF; gray, RGB, palette, alpha, CMYK, 1 and 16 bit; turned upright by EXIF."""

    class Options(contracts.Options):
        size: int | None = Field(None, ge=8, le=768, description="Side of the stored square in pixels; unset, chosen by the data.")
        channels: int | None = Field(None, description="1 stores gray, 3 RGB; unset, chosen by the data.")
        fit: Fit = Field(Fit.squash, description="How a picture becomes square: squash, crop the middle, or pad with black.")
        max_pixels: int = Field(64_000_000, ge=1, le=1_000_000_000, description="A picture of more pixels is refused before it is decoded.")
        max_bytes: int = Field(64 * 2**20, ge=1, description="A file of more bytes is refused before it is decoded.")

        @field_validator("channels")
        @classmethod
        def _gray_or_rgb(cls, value: int | None) -> int | None:
            if value not in (None, 1, 3):
                raise ValueError(f"must be 1 (gray) or 3 (RGB), found {value}")
            return value

    Augmentation = image_augment.Augmentation
    presets = image_augment.PRESETS
    noun = "images"
    fields = ("image",)
    column_type = "binary"
    columns = ("image", "path", "file", "filename")
    suffixes = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
    signature_bits = 3
    requires = ()

    def __init__(self, options: Image.Options) -> None:
        self.options = options

    @property
    def item_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of a stored item, once size and channels are resolved."""
        return (self.options.size, self.options.size, self.options.channels)

    @property
    def planned(self) -> bool:
        return self.options.size is not None and self.options.channels is not None

    def plan(self, sample: Sequence[Raw], rows: int) -> Image.Options:
        """The options with size and channels resolved from a sample of the data, of which there are `rows`."""
        if self.planned:
            return self.options
        sides, gray = [], True
        for raw in sample:
            try:
                picture = self._pixels(raw)
            except Unreadable:
                continue
            sides.append(min(picture.size))
            gray = gray and _is_gray(np.asarray(picture))
        size = self.options.size or _fitting_size(sides, rows)
        channels = self.options.channels or (1 if gray and sides else 3)
        return self.options.model_copy(update={"size": size, "channels": channels})

    def decode(self, raw: Raw, served: bool = False) -> Decoded:
        """The picture as (H, W, C) uint8, or the reason why not; `content` is of the whole picture, whatever the options."""
        try:
            picture = self._pixels(raw)
            square = resized(picture, self.options.size, self.options.fit.value).convert("L" if self.options.channels == 1 else "RGB")
        except Unreadable as error:
            return Decoded(None, reason=str(error))
        except (MemoryError, ValueError, OSError) as error:
            return Decoded(None, reason=f"cannot be resized: {error}")
        array = np.asarray(square).reshape(self.item_shape)
        if served:
            return Decoded(array)
        content = hashlib.sha256(f"{picture.mode} {picture.width} {picture.height} ".encode() + picture.tobytes()).hexdigest()
        return Decoded(array, content, difference_hash(picture), {"width": picture.width, "height": picture.height})

    def same(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Whether pictures are near-identical: (..., H, W, C) uint8 against the like gives (...) bool.

        Both the levels and the edges must correlate, so that other compression, size, brightness or contrast is passed over. Levels
        alone would take one X-ray for another, edges alone one small digit for another; where the two bounds were measured
        stands in docs/decisions/0010-near-duplicates.md.
        """
        axes = (-2, -1)
        a, b = a.mean(axis=-1, dtype=np.float32), b.mean(axis=-1, dtype=np.float32)
        plain = np.maximum(a.std(axis=axes), b.std(axis=axes)) < PLAIN
        alike = np.abs(a - b).mean(axis=axes) < PLAIN
        edges = sum(_products(np.diff(a, axis=axis), np.diff(b, axis=axis)) for axis in axes)
        levels = _products(a - a.mean(axis=axes, keepdims=True), b - b.mean(axis=axes, keepdims=True))
        return np.where(plain, alike, (_correlation(levels) >= SAME_LEVELS) & (_correlation(edges) >= SAME_EDGES))

    def statistics(self, chunks: Iterable[np.ndarray]) -> dict[str, list[float]]:
        """Mean and standard deviation a channel, in units of [0, 1], over chunks (N, H, W, C) uint8."""
        # A histogram is exact, whatever the order and the size of the chunks.
        counts = np.zeros((self.options.channels, 256), dtype=np.int64)
        for chunk in chunks:
            for channel in range(self.options.channels):
                counts[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
        levels, total = np.arange(256) / 255, np.maximum(counts.sum(axis=1), 1)
        mean = counts @ levels / total
        std = np.sqrt(np.maximum(counts @ levels**2 / total - mean**2, 0))
        return {"mean": mean.tolist(), "std": np.maximum(std, 1 / 255).tolist()}  # never a division by zero

    def spec(self, classes: Sequence[str], statistics: Mapping[str, list[float]]) -> DataSpec:
        height, width, channels = self.item_shape
        return DataSpec("image", self.options.model_dump(mode="json"), (channels, height, width), tuple(classes), dict(statistics))

    def pack(self, rows: np.ndarray, spec: DataSpec) -> dict[str, np.ndarray]:
        """Decoded pictures are what is stored."""
        return {"image": rows}

    def collate(
        self, rows: np.ndarray, spec: DataSpec, augmentation: Any = None, generator: torch.Generator | None = None, whole: bool = False
    ) -> np.ndarray:
        """(B, H, W, C) uint8: stored rows are a batch already."""
        return rows

    def artifacts(self, spec: DataSpec) -> dict[str, str]:
        """Nothing beside mean and deviation is learnt from the data."""
        return {}

    def alternative(self, store: Any, train: np.ndarray, validation: np.ndarray, test: np.ndarray, seed: int) -> Classical:
        """A support vector machine on small pixels and gradients."""
        return classical(store.array, store.labels, store.targets, train, validation, test, image_features.features, len(store.spec.classes), seed)

    def overview(self, store: Any) -> dict[str, Figure]:
        """A sample and the sizes."""
        from ml import image_pictures  # imported where it is used: a served model draws nothing

        return image_pictures.overview(store)

    def mistakes(self, items: Sequence[Mapping[str, Any]], store: Any, rows: np.ndarray) -> Figure:
        """The pictures in the rows of `items`, which are as `Evaluation.mistakes`."""
        from ml import image_pictures

        return image_pictures.mistakes(items, store.array[rows])

    def encode(self, array_B: Tensor, spec: DataSpec) -> dict[str, Tensor]:
        """Stored pictures (B, H, W, C) uint8 as {"image": (B, C, H, W) float32}, normalised; no randomness."""
        return {"image": _normalised(_unit(array_B), spec)}

    def augment(
        self, array_B: Tensor, spec: DataSpec, augmentation: Any, generator: torch.Generator, part: slice = ALL
    ) -> tuple[dict[str, Tensor], Mix | None]:
        """As `encode`, altered by `augmentation` with parameters of their own for each picture, drawn from `generator`."""
        own = ALL if augmentation.mixes else part  # whom a picture is mixed with may be in another part
        x_BCHW, mix = image_augment.augment(_unit(array_B[own]), augmentation, generator, len(array_B), own)
        if mix is not None:
            x_BCHW, mix = x_BCHW[part], Mix(mix.partner_B[part], mix.weight_B[part])
        return {"image": _normalised(x_BCHW, spec)}, mix

    def serve(self, value: Any, files: bool = True) -> Raw:
        """What a user hands to a model, as raw bytes: bytes, base64 text or, where `files`, the path of a file that exists."""
        if isinstance(value, bytes | bytearray | memoryview):
            return Raw(bytes(value))
        if isinstance(value, Path) or (isinstance(value, str) and files and len(value) < 4096 and _is_file(value)):
            return self._file(Path(value)) if files else Raw(None, "paths are not accepted here")
        if not isinstance(value, str):
            raise InputError(f"a picture is bytes, base64 text or a file's path; found {type(value).__name__}")
        if value[:5].lower() == "data:" or "://" in value[:32]:
            raise InputError(f"URLs are not fetched, found {value[:32]!r}: send the picture itself, as bytes or base64")
        if len(value) > self.options.max_bytes * 4 / 3 * 1.05 + 4:  # room for line breaks
            return Raw(None, f"text of {len(value):,} characters, above the limit of {self.options.max_bytes:,} bytes")
        try:
            return Raw(base64.b64decode("".join(value.split()), validate=True))
        except (binascii.Error, ValueError):
            raise InputError(f"neither base64 nor a file that exists: {value[:64]!r}") from None

    def cell(self, value: Any, folder: Path) -> Any:
        """What a table holds: bytes as they are; text as a path beside the file that names it."""
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str) and os.path.isfile(folder / value):  # noqa: PTH113 (Path.is_file fails on text too long for a path)
            return folder / value
        return value if value is not None else b""

    def request(self, raw: bytes) -> bytes:
        """A source's item as a user would send it."""
        return raw

    def _file(self, path: Path) -> Raw:
        if not path.is_file():
            return Raw(None, "not a file that exists")
        try:
            with path.open("rb") as file:
                return Raw(file.read(self.options.max_bytes + 1))
        except OSError as error:
            return Raw(None, f"cannot be read: {error.strerror}")

    def _pixels(self, raw: Raw) -> Any:
        if raw.data is None:
            raise Unreadable(raw.reason or "no data")
        return pixels(read_header(raw.data, self.options.max_bytes, self.options.max_pixels))


def _fitting_size(sides: Sequence[int], rows: int) -> int:
    """The one rule for a size nobody set, by the median short side of the sample.

    1. Up to 16 pixels: 16. Up to 32: 32. No picture is thrown away for a few pixels of padding or scaling.
    2. Above: the multiple of 16 at or below it, but at most 64 with MANY_ROWS or more and 96 with fewer, as the cost of
       training grows with the square of the side, and few rows can afford more of it.
    """
    side = statistics.median(sides) if sides else 32
    if side <= 32:
        return 16 if side <= 16 else 32
    return min(int(side) // 16 * 16, 64 if rows >= MANY_ROWS else 96)


def _products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The sums of a·a, b·b and a·b over the last two axes, stacked first."""
    return np.stack([(x * y).sum(axis=(-2, -1)) for x, y in ((a, a), (b, b), (a, b))])


def _correlation(products: np.ndarray) -> np.ndarray:
    return products[2] / np.sqrt(np.maximum(products[0] * products[1], 1e-12))


def _is_gray(array: np.ndarray) -> bool:
    return array.ndim == 2 or bool((array[..., :1] == array[..., 1:]).all())


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # not a path at all: too long, or with a zero byte
        return False


def _unit(array_B: Tensor) -> Tensor:
    """(B, H, W, C) uint8 as (B, C, H, W) float32 in [0, 1]."""
    return array_B.permute(0, 3, 1, 2).to(torch.float32).div_(255)


def _normalised(x_BCHW: Tensor, spec: DataSpec) -> Tensor:
    mean = torch.tensor(spec.statistics["mean"], dtype=x_BCHW.dtype, device=x_BCHW.device).view(1, -1, 1, 1)
    std = torch.tensor(spec.statistics["std"], dtype=x_BCHW.dtype, device=x_BCHW.device).view(1, -1, 1, 1)
    return (x_BCHW - mean).div_(std)
