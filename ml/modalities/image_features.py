"""Features of pictures without learning: small pixels and histograms of oriented gradients (Dalal and Triggs 2005), in numpy."""

from __future__ import annotations

import numpy as np

SIDE = 32
"""Side in pixels that gradients are taken at."""
PIXELS = 8
"""Side of the small picture whose colours are features."""
CELL, ORIENTATIONS = 4, 9


def features(array_NHWC: np.ndarray) -> np.ndarray:
    """(N, F) float32 for pictures (N, H, W, C) uint8, the same F for every H and W."""
    return np.concatenate([_features(array_NHWC[start : start + 512]) for start in range(0, len(array_NHWC), 512)])


def _features(array_NHWC: np.ndarray) -> np.ndarray:
    picture = _resized(np.asarray(array_NHWC).astype(np.float32) / 255, SIDE)
    small = _resized(picture, PIXELS).reshape(len(picture), -1)
    return np.concatenate([small, _gradients(picture)], axis=1)


def _resized(picture_NHWC: np.ndarray, side: int) -> np.ndarray:
    """Area-averaged (or linearly enlarged) to side × side."""
    rows = _weights(picture_NHWC.shape[1], side)
    columns = _weights(picture_NHWC.shape[2], side)
    narrow = np.einsum("nhwc,vw->nhvc", picture_NHWC, columns, optimize=True)
    return np.einsum("nhvc,uh->nuvc", narrow, rows, optimize=True)


def _weights(size: int, side: int) -> np.ndarray:
    """(side, size): a triangle filter as wide as the larger of the two grids' steps; rows sum to 1."""
    scale = size / side
    centres = (np.arange(side) + 0.5) * scale - 0.5
    weight = np.maximum(0, 1 - np.abs(np.arange(size) - centres[:, None]) / max(scale, 1))
    return (weight / weight.sum(1, keepdims=True)).astype(np.float32)


def _gradients(picture_NHWC: np.ndarray) -> np.ndarray:
    """Histograms of unsigned orientation in cells of 4 × 4 pixels, each block of 2 × 2 cells brought to unit length."""
    padded = np.pad(picture_NHWC, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    across, down = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2], padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    # Of the channels, the one with the strongest gradient counts.
    strongest = (across**2 + down**2).argmax(-1)[..., None]
    across, down = (np.take_along_axis(one, strongest, axis=-1)[..., 0] for one in (across, down))
    position = np.mod(np.arctan2(down, across), np.pi) / np.pi * ORIENTATIONS
    lower = np.floor(position).astype(np.int64)
    share = position - lower
    strength = np.hypot(across, down)
    cells = SIDE // CELL
    histogram = np.zeros((len(picture_NHWC), cells, cells, ORIENTATIONS), dtype=np.float32)
    for orientation in range(ORIENTATIONS):
        vote = strength * ((lower % ORIENTATIONS == orientation) * (1 - share) + ((lower + 1) % ORIENTATIONS == orientation) * share)
        histogram[..., orientation] = vote.reshape(-1, cells, CELL, cells, CELL).sum((2, 4))
    blocks = np.concatenate([histogram[:, a : cells - 1 + a, b : cells - 1 + b] for a in (0, 1) for b in (0, 1)], axis=-1)
    blocks /= np.sqrt((blocks**2).sum(-1, keepdims=True) + 1e-3)
    # Clipped and brought to unit length again, so that one strong edge does not drown the rest.
    blocks = np.minimum(blocks, 0.2)
    blocks /= np.sqrt((blocks**2).sum(-1, keepdims=True) + 1e-3)
    return blocks.reshape(len(blocks), -1)
