"""From a picture's bytes to upright 8-bit pixels, with limits that are checked before anything is decoded.

Pillow's plugins are called directly, by the first bytes of the file: that is the allow-list, and it leaves aside `Image.open`,
whose warnings about large pictures would reach the user although they are refused here anyway.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import BmpImagePlugin, ImageOps, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
from PIL.Image import Image, Resampling, Transpose, fromarray, new

DRAFT_SIDE = 768
"""JPEGs whose short side is at least twice this are decoded at 1/2, 1/4 or 1/8, never below it: a rule of the file alone, so
that its content digest does not depend on any option."""

ORIENTATION = 0x0112
UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""What turns a picture upright, by its EXIF orientation (TIFF 6.0, tag 274)."""


class Unreadable(Exception):
    """The picture cannot be used; the message is the reason, in words for the quarantine's table."""


def read_header(data: bytes, max_bytes: int, max_pixels: int) -> Image:
    """The picture with its size and mode known and no pixel decoded; raises Unreadable."""
    if not data:
        raise Unreadable("empty file")
    if len(data) > max_bytes:
        raise Unreadable(f"file of {len(data):,} bytes, above the limit of {max_bytes:,}")
    plugin = _plugin(data)
    if plugin is None:
        raise Unreadable("not a PNG, JPEG, WebP, BMP or TIFF picture")
    try:
        picture = plugin(io.BytesIO(data))
    except Exception as error:  # Pillow's parsers raise about anything on damaged bytes
        raise Unreadable(f"damaged header: {_short(error)}") from None
    width, height = picture.size
    if width * height > max_pixels:
        raise Unreadable(f"{width:,} x {height:,} pixels, above the limit of {max_pixels:,} pixels")
    if not width or not height:
        raise Unreadable(f"{width} x {height} pixels")
    return picture


def pixels(picture: Image) -> Image:
    """The decoded picture, upright, in mode L or RGB of 8 bits; alpha lies on white. Raises Unreadable.

    16-bit gray is divided by 257, its whole range onto 0..255. 32-bit integers and floats have no usual range: they are
    stretched from their own least to their own greatest value. Large JPEGs come smaller, see DRAFT_SIDE.
    """
    try:
        turn = UPRIGHT.get(_orientation(picture))
        if isinstance(picture, JpegImagePlugin.JpegImageFile) and min(picture.size) >= 2 * DRAFT_SIDE:
            scale = next(scale for scale in (8, 4, 2) if min(picture.size) // scale >= DRAFT_SIDE)
            picture.draft(None, (-(-picture.width // scale), -(-picture.height // scale)))
        picture.load()
        picture = _eight_bit(picture)
        return picture.transpose(turn) if turn is not None else picture
    except MemoryError:
        raise Unreadable("not enough memory to decode it") from None
    except Exception as error:
        raise Unreadable(f"damaged or truncated: {_short(error)}") from None


def resized(picture: Image, size: int, fit: str) -> Image:
    """The picture as a square of `size` pixels, antialiased: "squash", "crop" the middle, or "pad" with black."""
    if fit == "crop":
        return ImageOps.fit(picture, (size, size), Resampling.BILINEAR)
    if fit == "pad":
        return ImageOps.pad(picture, (size, size), Resampling.BILINEAR, color=0)
    if picture.size == (size, size):
        return picture
    return picture.resize((size, size), Resampling.BILINEAR, reducing_gap=3.0)


def difference_hash(picture: Image) -> int:
    """64-bit difference hash (N. Krawetz, "Kind of like that", 2013), bit for bit that of `imagehash.dhash`."""
    gray = picture if picture.mode == "L" else picture.convert("L")
    small = np.asarray(gray.resize((9, 8), Resampling.LANCZOS))
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")


def _plugin(data: bytes) -> type[Image] | None:
    if data.startswith(b"\xff\xd8\xff"):
        return JpegImagePlugin.JpegImageFile
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImagePlugin.PngImageFile
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    if data.startswith(b"BM"):
        return BmpImagePlugin.BmpImageFile
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return TiffImagePlugin.TiffImageFile
    return None


def _orientation(picture: Image) -> int:
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        return 1  # Pillow turns these itself while it loads them
    if "exif" not in picture.info and not isinstance(picture, PngImagePlugin.PngImageFile):
        return 1
    try:
        return picture.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF does not spoil the pixels
        return 1


def _eight_bit(picture: Image) -> Image:
    mode = picture.mode
    if mode in ("L", "RGB") and "transparency" not in picture.info:
        return picture
    if mode == "1":
        return picture.convert("L")
    if mode.startswith("I;16"):
        values = np.asarray(picture).astype(np.uint32)
        return fromarray(((values + 128) // 257).astype(np.uint8))
    if mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(picture, dtype=np.float64), posinf=np.finfo(np.float32).max, neginf=np.finfo(np.float32).min)
        low, high = values.min(), values.max()
        return fromarray(np.round((values - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8))
    if mode in ("LA", "La"):
        picture = picture.convert("LA")
        white = new("L", picture.size, 255)
        white.paste(picture.getchannel("L"), mask=picture.getchannel("A"))
        return white
    if mode in ("RGBA", "RGBa", "PA") or "transparency" in picture.info:
        gray = mode == "L"
        picture = picture.convert("RGBA")
        white = new("RGB", picture.size, (255, 255, 255))
        white.paste(picture, mask=picture.getchannel("A"))
        return white.convert("L") if gray else white
    return picture.convert("RGB")


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{text[:120]}" if text else type(error).__name__
